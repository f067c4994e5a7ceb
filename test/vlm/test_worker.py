"""The worker among threads: whatever comes at whatever moment, each prompt gets one answer."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fake_vlm import FakeModel, draw_number

from edge_perception.core.answers import Answer, Request
from edge_perception.vlm.answerer import Answerer
from edge_perception.vlm.inbox import Inbox
from edge_perception.vlm.scene import SceneGate, SeenObject
from edge_perception.vlm.vision_cache import Picture, VisionCache
from edge_perception.vlm.worker import Worker, WorkerSettings

PATIENCE_S = 30.0


class Desk:
    """A worker, a camera whose newest frame is ``number``, and what was told."""

    def __init__(self, model: FakeModel, *, capacity: int = 4, **settings) -> None:
        self.model = model
        self.number = 1
        self.camera_works = True
        self.answers: list[Answer] = []
        self.captions: list[Answer] = []
        self.partials: list[str] = []
        self.failures: list[str] = []
        self.worker = Worker(
            Answerer(model, VisionCache(8.0)),
            self,
            WorkerSettings(**{"captions": "off", "frame_timeout_ms": 20_000, **settings}),
            Inbox(capacity),
            SceneGate(0.5, patience=1),
        )

    def want_picture(self) -> None:
        if self.camera_works:
            number = self.number
            pixels = draw_number(number)
            self.worker.put_picture(Picture(pixels, number, "front", time.monotonic_ns()))
        else:
            self.worker.put_picture(None)

    def tell_partial(self, asked, picture, text: str) -> None:
        self.partials.append(text)

    def tell_answer(self, asked, answer: Answer, picture) -> None:
        (self.captions if asked.is_caption else self.answers).append(answer)

    def tell_work(self, picture, start_ns: int, end_ns: int) -> None:
        assert start_ns <= end_ns

    def fail(self, reason: str) -> None:
        self.failures.append(reason)

    def wait_for(self, condition: Callable[[], object]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until_s, (self.answers, self.captions, self.failures)
            time.sleep(0.001)

    def answer_to(self, request_id: str) -> Answer:
        self.wait_for(lambda: any(answer.id == request_id for answer in self.answers))
        (answer,) = [answer for answer in self.answers if answer.id == request_id]
        return answer


@pytest.fixture
def make_desk() -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(model: FakeModel | None = None, **settings) -> Desk:
        desk = Desk(model or FakeModel(), **settings)
        desk.worker.start()
        made.append(desk)
        return desk

    yield make
    for desk in made:
        desk.worker.stop()


def ask(desk: Desk, request_id: str, prompt: str = "number?", **fields) -> None:
    desk.worker.submit(Request(prompt, request_id, **fields))


class Gate:
    """Holds a model before a token until it is opened."""

    def __init__(self, at_token: int = 1) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self._left = at_token

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.reached.set()
            assert self.opened.wait(PATIENCE_S)


def test_prompts_are_answered_in_order(make_desk) -> None:
    desk = make_desk()
    for name in "abc":
        ask(desk, name)
    desk.answer_to("c")
    assert [answer.id for answer in desk.answers] == ["a", "b", "c"]
    assert {answer.text for answer in desk.answers} == {"1"}


def test_answer_belongs_to_the_frame_it_speaks_of(make_desk) -> None:
    desk = make_desk()
    for number in range(1, 40):
        desk.number = number
        ask(desk, str(number))
        answer = desk.answer_to(str(number))
        assert (answer.text, answer.stamp_ns) == (str(answer.stamp_ns), number)


def test_flood_is_bounded_counted_and_answered(make_desk) -> None:
    gate = Gate()
    desk = make_desk(FakeModel(on_token=gate), capacity=3)
    ask(desk, "first")
    assert gate.reached.wait(PATIENCE_S)
    for number in range(500):
        ask(desk, f"n{number}")
    refused = [answer for answer in desk.answers if answer.finish_reason == "error"]
    assert len(refused) == 497
    assert "wait already" in refused[0].error
    gate.opened.set()
    desk.answer_to("n2")
    assert desk.worker.counts["refused"] == 497
    assert len(desk.answers) == 501


@pytest.mark.parametrize("at_token", [1, 2, 3])
def test_running_answer_is_cancelled_at_any_token(make_desk, at_token: int) -> None:
    gate = Gate(at_token)
    desk = make_desk(FakeModel(on_token=gate))
    ask(desk, "long", "Describe.")
    assert gate.reached.wait(PATIENCE_S)
    desk.worker.cancel("long")
    gate.opened.set()
    assert desk.answer_to("long").finish_reason == "cancelled"
    ask(desk, "next")
    assert desk.answer_to("next").finish_reason == "end"


def test_waiting_prompt_is_cancelled_and_others_are_not(make_desk) -> None:
    gate = Gate()
    desk = make_desk(FakeModel(on_token=gate))
    for name in "abc":
        ask(desk, name)
    assert gate.reached.wait(PATIENCE_S)
    desk.worker.cancel("b")
    assert desk.answer_to("b").finish_reason == "cancelled"
    gate.opened.set()
    assert desk.answer_to("c").finish_reason == "end"


def test_cancel_at_any_moment_leaves_one_answer_each(make_desk) -> None:
    desk = make_desk(FakeModel(token_s=0.0005), capacity=100)
    for number in range(60):
        ask(desk, str(number), "Describe.")
        time.sleep(0.0007 * (number % 7))
        desk.worker.cancel(str(number))
    ask(desk, "last")
    assert desk.answer_to("last").finish_reason == "end"
    assert sorted(answer.id for answer in desk.answers) == sorted([*map(str, range(60)), "last"])


def test_unknown_id_cancels_nothing(make_desk) -> None:
    desk = make_desk()
    desk.worker.cancel("nobody")
    ask(desk, "a")
    assert desk.answer_to("a").finish_reason == "end"


def test_prompt_with_a_deadline_ends_a_caption(make_desk) -> None:
    gate = Gate(at_token=2)
    desk = make_desk(FakeModel(on_token=gate), captions="rate", caption_rate_hz=0.01)
    desk.worker.captions_wanted = True
    desk.worker.wake()
    assert gate.reached.wait(PATIENCE_S)
    ask(desk, "now", deadline_ms=3_600_000)
    gate.opened.set()
    assert desk.answer_to("now").text == "1"
    assert desk.captions == []
    assert desk.worker.counts["captions_cancelled"] == 1


def test_prompt_without_a_deadline_lets_a_caption_be_finished(make_desk) -> None:
    gate = Gate(at_token=2)
    desk = make_desk(FakeModel(on_token=gate), captions="rate", caption_rate_hz=0.01)
    desk.worker.captions_wanted = True
    desk.worker.wake()
    assert gate.reached.wait(PATIENCE_S)
    ask(desk, "later")
    gate.opened.set()
    assert desk.answer_to("later").text == "1"
    assert [caption.text for caption in desk.captions] == ["this is frame 1"]


def test_caption_comes_when_the_view_changes(make_desk) -> None:
    desk = make_desk(captions="change", caption_rate_hz=100.0)
    desk.worker.see([])
    desk.worker.captions_wanted = True
    desk.worker.wake()
    desk.wait_for(lambda: len(desk.captions) == 1)  # the first view is new
    cup = SeenObject("cup", 0.9, (0, 0, 10, 10))
    desk.number = 2
    desk.worker.see([cup])
    desk.wait_for(lambda: len(desk.captions) == 2)
    for _ in range(20):
        desk.worker.see([cup])
    ask(desk, "after")
    desk.answer_to("after")
    assert [caption.text for caption in desk.captions] == ["this is frame 1", "this is frame 2"]


def test_nobody_listening_means_no_caption(make_desk) -> None:
    desk = make_desk(captions="rate", caption_rate_hz=100.0)
    ask(desk, "a")
    desk.answer_to("a")
    assert desk.captions == []


def test_camera_that_is_gone_is_told(make_desk) -> None:
    desk = make_desk(frame_timeout_ms=5.0)
    desk.camera_works = False
    ask(desk, "a")
    answer = desk.answer_to("a")
    assert (answer.finish_reason, answer.stamp_ns) == ("error", 0)
    assert "no image" in answer.error


def test_frame_that_came_long_ago_is_not_spoken_of(make_desk) -> None:
    desk = make_desk(frame_timeout_ms=30.0, max_frame_age_ms=10.0)
    desk.want_picture()
    desk.camera_works = False
    time.sleep(0.02)
    ask(desk, "a")
    assert desk.answer_to("a").finish_reason == "error"


def test_camera_that_comes_back_is_waited_for(make_desk) -> None:
    desk = make_desk()
    desk.camera_works = False
    ask(desk, "a")
    desk.wait_for(lambda: desk.worker.counts["prompts"])
    desk.number, desk.camera_works = 9, True
    desk.want_picture()
    assert desk.answer_to("a").text == "9"


def test_stale_answer_is_told_without_its_text_where_that_is_wanted(make_desk) -> None:
    desk = make_desk(stale_answers="drop")
    desk.worker.answerer.settings = type(desk.worker.answerer.settings)(max_stale_ms=1e-6)
    ask(desk, "a")
    answer = desk.answer_to("a")
    assert (answer.finish_reason, answer.text, answer.stale) == ("stale", "", True)


def test_stopping_answers_everybody(make_desk) -> None:
    gate = Gate()
    desk = make_desk(FakeModel(on_token=gate))
    for name in "abc":
        ask(desk, name)
    assert gate.reached.wait(PATIENCE_S)
    stopper = threading.Thread(target=desk.worker.stop)
    stopper.start()
    gate.opened.set()
    stopper.join(PATIENCE_S)
    assert not stopper.is_alive()
    assert {answer.id: answer.finish_reason for answer in desk.answers} == dict.fromkeys(
        "abc", "cancelled"
    )


def test_broken_model_fails_the_worker_and_answers_everybody(make_desk) -> None:
    def break_down() -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    desk = make_desk(FakeModel(on_token=break_down))
    ask(desk, "a")
    assert "illegal memory access" in desk.answer_to("a").error
    desk.wait_for(lambda: desk.failures)
    assert "illegal memory access" in desk.failures[0]
    ask(desk, "b")
    assert desk.answer_to("b").finish_reason == "error"
    assert "stops answering" in desk.answer_to("b").error


class Panic(BaseException):
    """As a Rust library's is: no ``Exception``."""


def test_panic_of_a_library_ends_the_worker_audibly(make_desk) -> None:
    def panic() -> None:
        raise Panic("index out of bounds")

    desk = make_desk(FakeModel(on_token=panic))
    ask(desk, "a")
    assert "index out of bounds" in desk.answer_to("a").error
    desk.wait_for(lambda: desk.failures)


def test_worker_that_cannot_even_tell_fails_all_the_same(make_desk, monkeypatch) -> None:
    desk = make_desk(FakeModel())

    def mute(*_) -> None:
        raise RuntimeError("publisher is gone")

    monkeypatch.setattr(desk, "tell_answer", mute)
    ask(desk, "a")
    desk.wait_for(lambda: desk.failures)


def test_memory_that_is_short_for_everything_fails_the_worker(make_desk) -> None:
    desk = make_desk(FakeModel(memory_px=1))
    ask(desk, "a")
    assert desk.answer_to("a").finish_reason == "error"
    desk.wait_for(lambda: desk.failures)
    assert "memory is short" in desk.failures[0]


def test_partial_texts_grow_into_the_answer(make_desk) -> None:
    desk = make_desk()
    ask(desk, "a", "Describe.")
    answer = desk.answer_to("a")
    assert desk.partials == sorted(desk.partials, key=len)
    assert desk.partials[-1] == answer.text
