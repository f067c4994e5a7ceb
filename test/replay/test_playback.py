"""Playback without ROS: what is published when, with which stamps, and what the ledger says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edge_perception.errors import BagError, ConfigError
from edge_perception.replay import messages
from edge_perception.replay.bags import BagSource
from edge_perception.replay.playback import Playback, PlayOptions, read_ledger
from edge_perception.replay.source import TimedMessage


class Published(list[tuple[str, bytes]]):
    """Collects what is published."""

    def __call__(self, topic: str, cdr: bytes) -> None:
        self.append((topic, cdr))

    def stamps(self, topic: str) -> list[int]:
        return [messages.read_stamp_ns(cdr) for name, cdr in self if name == topic]


class FakeSource:
    """Yields given messages."""

    topics: Mapping[str, str]

    def __init__(self, *played: TimedMessage, live: bool = False) -> None:
        self.played = played
        self.live = live
        self.topics = {message.topic: message.msgtype for message in played}

    def __enter__(self) -> FakeSource:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def messages(self) -> Iterator[TimedMessage]:
        yield from self.played

    def image_times_ns(self) -> list[int]:
        return [message.recorded_ns for message in self.played]


def image(recorded_ns: int, stamp_ns: int) -> TimedMessage:
    cdr = messages.serialize_compressed_image(stamp_ns, "cam", b"jpeg")
    return TimedMessage(recorded_ns, "/image", messages.COMPRESSED_IMAGE, cdr)


def play(source: object, ledger: Path | None = None, **options: object) -> Published:
    published = Published()
    Playback(source, PlayOptions(**options), published, ledger).run()  # type: ignore[arg-type]
    return published


def test_shifted_stamps_keep_their_distances_and_the_pairs(make_bag: Any) -> None:
    before_ns = time.time_ns()
    published = play(BagSource(make_bag()))
    stamps = published.stamps("/image/compressed")
    assert [stamp - stamps[0] for stamp in stamps] == [
        i * make_bag.INTERVAL_NS for i in range(make_bag.FRAMES)
    ]
    assert published.stamps("/ground_truth") == stamps
    assert before_ns <= stamps[0] <= time.time_ns()


def test_rate_changes_the_distances_of_stamps(make_bag: Any) -> None:
    stamps = play(BagSource(make_bag()), rate=4.0).stamps("/image/compressed")
    expected = [round(i * make_bag.INTERVAL_NS / 4) for i in range(make_bag.FRAMES)]
    assert [stamp - stamps[0] for stamp in stamps] == expected


def test_fixed_rate_spaces_images_evenly_and_keeps_pairs(make_bag: Any) -> None:
    published = play(BagSource(make_bag()), fps=200.0)
    stamps = published.stamps("/image/compressed")
    assert [stamp - stamps[0] for stamp in stamps] == [
        i * 5_000_000 for i in range(make_bag.FRAMES)
    ]
    assert published.stamps("/ground_truth") == stamps


def test_recorded_stamps_are_kept(make_bag: Any) -> None:
    published = play(BagSource(make_bag()), rate=10.0, stamps="recorded")
    assert published.stamps("/image/compressed") == make_bag.times_ns()


def test_unset_stamps_become_the_due_times() -> None:
    source = FakeSource(image(10**18, 0), image(10**18 + 5_000_000, 5_000_000))
    first_ns, second_ns = play(source).stamps("/image")
    assert abs(time.time_ns() - first_ns) < 10**9
    assert second_ns - first_ns == 5_000_000


def test_loop_goes_on_without_a_gap(make_bag: Any) -> None:
    published = Published()
    playback = Playback(BagSource(make_bag()), PlayOptions(rate=10.0, loop=True), published)
    thread = threading.Thread(target=playback.run)
    thread.start()
    while playback.counts().passes < 3:
        time.sleep(0.01)
    playback.stop()
    thread.join()
    stamps = published.stamps("/image/compressed")[: 3 * make_bag.FRAMES]
    distances = [after - before for before, after in pairwise(stamps)]
    assert max(distances) - min(distances) <= 1
    assert playback.counts().passes == 3


def test_slow_consumer_moves_no_due_time(make_bag: Any, tmp_path: Path) -> None:
    def publish_slowly(topic: str, cdr: bytes) -> None:
        time.sleep(0.03)

    ledger = tmp_path / "player.jsonl"
    options = PlayOptions(rate=5.0, topics={"/image/compressed"})
    playback = Playback(BagSource(make_bag()), options, publish_slowly, ledger)
    playback.run()
    rows = read_ledger(ledger)
    due = [row.due_monotonic_ns - rows[0].due_monotonic_ns for row in rows]
    assert due == [round(i * make_bag.INTERVAL_NS / 5) for i in range(make_bag.FRAMES)]
    assert rows[-1].late_ns > 0.05e9
    lateness = playback.counts().lateness
    assert lateness.max == pytest.approx(max(row.late_ns for row in rows) / 1e6)


def test_ledger_tells_each_message_with_both_stamps(make_bag: Any, tmp_path: Path) -> None:
    ledger = tmp_path / "new" / "player.jsonl"
    published = play(BagSource(make_bag()), ledger)
    rows = [row for row in read_ledger(ledger) if row.topic == "/image/compressed"]
    assert [row.sequence for row in rows] == list(range(1, make_bag.FRAMES + 1))
    assert [row.recorded_stamp_ns for row in rows] == make_bag.times_ns()
    assert [row.stamp_ns for row in rows] == published.stamps("/image/compressed")
    assert all(row.late_ns >= 0 for row in rows)


def test_message_too_short_for_a_header_is_counted_and_left_out() -> None:
    stub = TimedMessage(10**18, "/image", messages.COMPRESSED_IMAGE, b"\x00\x01\x00")
    published = Published()
    playback = Playback(FakeSource(stub, image(10**18, 10**18)), PlayOptions(), published)
    playback.run()
    assert len(published) == 1
    assert playback.counts().malformed == 1


def test_ground_truth_that_cannot_be_read_is_counted_and_left_out(make_bag: Any) -> None:
    damaged = TimedMessage(10**18, "/truth", messages.DETECTIONS, make_bag.truth(0)[:90])
    published = Published()
    playback = Playback(FakeSource(image(10**18, 10**18), damaged), PlayOptions(), published)
    playback.run()
    assert [topic for topic, _ in published] == ["/image"]
    assert playback.counts().malformed == 1


def test_source_with_nothing_chosen_ends_even_when_looped(make_bag: Any) -> None:
    assert play(BagSource(make_bag()), topics={"/elsewhere"}, loop=True) == []


def test_live_source_is_published_at_once_and_unchanged() -> None:
    far_future = image(10**19, 10**18)
    assert play(FakeSource(far_future, live=True)) == [("/image", far_future.cdr)]


def test_stop_interrupts_a_long_wait() -> None:
    source = FakeSource(image(10**18, 10**18), image(10**18 + 3600 * 10**9, 10**18))
    playback = Playback(source, PlayOptions(), Published())
    thread = threading.Thread(target=playback.run)
    thread.start()
    playback.stop()
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stamps": "mine"}, "expected shifted or recorded, got 'mine'"),
        ({"rate": 2.0, "fps": 10.0}, "exclude each other"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        PlayOptions(**options)  # type: ignore[arg-type]


def test_unwritable_ledger_is_told(make_bag: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match="ledger cannot be written"):
        play(BagSource(make_bag()), tmp_path / "file" / "player.jsonl")


@pytest.mark.parametrize("text", ["not json", '{"topic": 1}', "[]"])
def test_damaged_ledger_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "player.jsonl").write_text(text + "\n")
    with pytest.raises(BagError, match=r"ledger .* cannot be read"):
        read_ledger(tmp_path / "player.jsonl")
