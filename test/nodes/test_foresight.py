"""The next frame is asked for once, early enough and no earlier."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy")  # the package of nodes needs it, this module does not
from edge_perception.nodes.foresight import Foresight

MS = 1_000_000


@pytest.fixture
def foresight() -> Iterator[Foresight]:
    foresight = Foresight()
    foresight.start(early=True)
    yield foresight
    foresight.stop()


class Asks:
    """Counts, and tells when the first came."""

    def __init__(self) -> None:
        self.count = 0
        self.came = threading.Event()

    def __call__(self) -> None:
        self.count += 1
        self.came.set()


def work(foresight: Foresight, asks: Asks, infer_s: float, prepare_ms: float) -> None:
    foresight.begin(asks)
    time.sleep(infer_s)
    foresight.inference_ended()
    foresight.finished(round(prepare_ms * MS))


def test_without_experience_it_asks_when_inference_ends(foresight: Foresight) -> None:
    asks = Asks()
    foresight.begin(asks)
    assert foresight.lead_ns == 0
    time.sleep(0.02)
    assert asks.count == 0
    foresight.inference_ended()
    assert asks.came.wait(5)


def test_frames_slow_to_prepare_are_asked_for_before_inference_ends(foresight: Foresight) -> None:
    work(foresight, Asks(), infer_s=0.05, prepare_ms=20)
    assert 10 * MS < foresight.lead_ns < 25 * MS
    asks = Asks()
    foresight.begin(asks)
    assert asks.came.wait(5)  # inference goes on: nothing else asks
    assert asks.count == 1


def test_a_frame_is_asked_for_once_though_it_was_foreseen(foresight: Foresight) -> None:
    work(foresight, Asks(), infer_s=0.03, prepare_ms=20)
    asks = Asks()
    foresight.begin(asks)
    assert asks.came.wait(5)
    foresight.inference_ended()
    time.sleep(0.02)
    assert asks.count == 1


def test_beside_a_model_on_the_cpu_its_own_thread_asks_after_all_else() -> None:
    foresight, threads = Foresight(), []
    foresight.start(early=False)
    for _ in range(2):
        foresight.begin(lambda: threads.append(threading.current_thread()))
        foresight.inference_ended()
        assert not threads
        foresight.finished(20 * MS)
        assert threads.pop() is threading.current_thread()
    foresight.stop()


def test_frames_ready_sooner_than_the_node_are_not_asked_for_early(foresight: Foresight) -> None:
    foresight.begin(Asks())
    foresight.inference_ended()
    time.sleep(0.02)  # publishing takes longer than taking and decoding
    foresight.finished(MS)
    assert foresight.lead_ns == 0


def test_the_lead_is_never_longer_than_inference(foresight: Foresight) -> None:
    work(foresight, Asks(), infer_s=0.001, prepare_ms=5000)
    assert foresight.lead_ns < 400 * MS


def test_a_passing_delay_is_forgotten(foresight: Foresight) -> None:
    work(foresight, Asks(), infer_s=0.1, prepare_ms=90)
    slow = foresight.lead_ns
    for _ in range(60):
        work(foresight, Asks(), infer_s=0.0, prepare_ms=0)
    assert foresight.lead_ns < slow / 10


def test_a_stopped_one_asks_no_more_and_starts_again(foresight: Foresight) -> None:
    asks = Asks()
    work(foresight, Asks(), infer_s=0.05, prepare_ms=20)
    foresight.begin(asks)
    foresight.stop()
    foresight.inference_ended()
    assert asks.count == 0
    foresight.start(early=True)
    work(foresight, asks, infer_s=0.0, prepare_ms=1)
    assert asks.came.wait(5)
