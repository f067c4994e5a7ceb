"""A container's memory stays flat however many frames go through it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("rclpy")
from pictures import picture, raw_fields
from sensor_msgs.msg import Image

# What allocators and caches may still move after the warm-up.
ALLOWED_GROWTH_MB = 8
WARM_UP_FRAMES = 500


def play(running: Any, frames: int, frames_each_s: float = 600) -> None:
    """Send frames at a steady rate; the detections of all that get through are heard."""
    publisher = running.publisher(Image, "image")
    message = Image(**raw_fields(picture()))
    start = time.monotonic()
    for i in range(frames):
        message.header = running.next_header()
        publisher.publish(message)
        while time.monotonic() - start < i / frames_each_s:
            running.executor.spin_once(timeout_sec=0.001)
    running.answer_to(running.send(picture()), running.detections)


def resident_mb(running: Any) -> float:
    return psutil.Process(running.container.pid).memory_info().rss / 1e6


@pytest.mark.parametrize(
    "frames", [2_000, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_memory_is_flat_over_frames(running: Any, frames: int) -> None:
    # The profiler's window of percentiles fills up to its capacity, and is not what is measured.
    assert running.change_state("profiler", "deactivate")
    play(running, WARM_UP_FRAMES)
    before_mb, processed = resident_mb(running), running.counters("detector")["processed"]
    play(running, frames)
    running.detections.clear()
    assert running.counters("detector")["processed"] - processed > frames / 4
    assert resident_mb(running) - before_mb < ALLOWED_GROWTH_MB
    assert running.change_state("profiler", "activate")


def test_large_and_small_images_in_turn_do_not_pile_up(running: Any) -> None:
    small = picture()
    large = small.repeat(5, axis=0).repeat(5, axis=1)
    for image in (small, large, small, large):
        running.answer_to(running.send(image), running.detections)
    before_mb = resident_mb(running)
    for _ in range(100):
        for image in (small, large):
            running.answer_to(running.send(image), running.detections)
    assert resident_mb(running) - before_mb < ALLOWED_GROWTH_MB


def test_files_of_the_process_stay_as_many(running: Any, manifest: Path) -> None:
    process = psutil.Process(running.container.pid)
    counts = []
    for _ in range(4):
        for transition in ("deactivate", "cleanup", "configure", "activate"):
            assert running.change_state("detector", transition)
        counts.append((process.num_fds(), process.num_threads()))
    assert len(set(counts[1:])) == 1
