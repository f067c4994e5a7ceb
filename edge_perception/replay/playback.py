"""Plays a source by an open-loop schedule into any function that takes a topic and bytes.

Reading ahead by one message and changing its stamp happen before the wait for its due time, so
that what is late is only the wake-up and the publication itself.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from edge_perception.core.latency import LatencySummary, LatencyWindow
from edge_perception.errors import BagError, ConfigError
from edge_perception.replay import messages
from edge_perception.replay.schedule import (
    EvenTimes,
    PlaySchedule,
    RecordedTimes,
    TimeMap,
    pass_length_ns,
    stamp_offset_ns,
)
from edge_perception.replay.source import Source, TimedMessage

STAMPS = ("shifted", "recorded")
Publish = Callable[[str, bytes], None]


@dataclass(frozen=True)
class PlayOptions:
    """How to play. ``fps`` 0 keeps the recorded times; empty ``topics`` plays all.

    Raises:
        ConfigError: unknown ``stamps``, or both a rate and a fixed frame rate.

    """

    rate: float = 1.0
    fps: float = 0.0
    loop: bool = False
    stamps: str = "shifted"
    topics: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.stamps not in STAMPS:
            raise ConfigError(
                "unknown kind of stamps", expected=" or ".join(STAMPS), got=self.stamps
            )
        if self.fps and self.rate != 1.0:
            raise ConfigError(
                "rate and fps exclude each other",
                got={"rate": self.rate, "fps": self.fps},
                mend="Leave rate at 1 for a fixed frame rate.",
            )


@dataclass(frozen=True)
class SentMessage:
    """A row of the player's ledger; times in ns, ``*_monotonic_ns`` of ``time.monotonic_ns``.

    ``sequence`` counts the messages of a topic from 1. ``published_monotonic_ns`` is taken just
    before the message is handed to the middleware.
    """

    topic: str
    sequence: int
    recorded_stamp_ns: int
    stamp_ns: int
    due_monotonic_ns: int
    published_monotonic_ns: int

    @property
    def late_ns(self) -> int:
        """How much later than due the message left."""
        return self.published_monotonic_ns - self.due_monotonic_ns


@dataclass(frozen=True)
class PlayCounts:
    """What was played so far; ``malformed`` messages could not be given a stamp."""

    images: int = 0
    messages: int = 0
    passes: int = 0
    malformed: int = 0
    lateness: LatencySummary = field(default_factory=lambda: LatencySummary.of_ns([]))


class Playback:
    """One run of a source, from ``run`` to its end or to ``stop``; not reusable.

    ``run`` blocks and belongs to a thread of its own; the other methods may be called from any.
    """

    def __init__(
        self, source: Source, options: PlayOptions, publish: Publish, ledger: Path | None = None
    ) -> None:
        self._source = source
        self._options = options
        self._publish = publish
        self._ledger_path = ledger
        self._ledger: TextIO | None = None
        self._stopped = threading.Event()
        self._schedule: PlaySchedule | None = None
        self._sequences: dict[str, int] = {}
        self._lock = threading.Lock()
        self._lateness = LatencyWindow()
        self._images = self._passes = self._malformed = 0

    def run(self) -> None:
        """Open the source and play it to its end, or until ``stop``.

        Raises:
            BagError: the source turns out to be damaged, or the ledger cannot be written.

        """
        messages.warm_up()
        with ExitStack() as resources:
            resources.enter_context(self._source)
            if self._ledger_path is not None:
                self._ledger = resources.enter_context(_open_ledger(self._ledger_path))
            while self._play_once() and self._options.loop:
                pass

    def stop(self) -> None:
        """End ``run`` before its next message."""
        self._stopped.set()

    def counts(self) -> PlayCounts:
        """Return what was played so far and how late it was."""
        with self._lock:
            lateness = self._lateness.summaries().get("lateness", LatencySummary.of_ns([]))
            total = sum(self._sequences.values())
            return PlayCounts(self._images, total, self._passes, self._malformed, lateness)

    def recorded_now_ns(self) -> int | None:
        """Return the recorded moment being played, or None before the first message."""
        schedule = self._schedule
        return None if schedule is None else schedule.recorded_ns(time.monotonic_ns())

    def _play_once(self) -> bool:
        """Play one pass; False if it was stopped or the source holds nothing to play."""
        image_topic: str | None = None
        played_image_times_ns: list[int] = []
        for message in self._chosen_messages():
            schedule = self._schedule = self._schedule or self._start(message)
            due_ns = schedule.due_ns(message.recorded_ns)
            if not self._send(message, due_ns):
                return False
            if message.msgtype in messages.IMAGE_TYPES:
                image_topic = image_topic or message.topic
                if message.topic == image_topic:
                    played_image_times_ns.append(schedule.time_map.played_ns(message.recorded_ns))
        if self._schedule is None:
            return False
        self._passes += 1
        if self._options.loop:
            self._schedule = self._schedule.next_pass(pass_length_ns(played_image_times_ns))
        return True

    def _chosen_messages(self) -> Iterator[TimedMessage]:
        for message in self._source.messages():
            if self._options.topics and message.topic not in self._options.topics:
                continue
            if len(message.cdr) < messages.SHORTEST_STAMPED_BYTES:
                self._malformed += 1
                continue
            yield message

    def _start(self, first: TimedMessage) -> PlaySchedule:
        offset_ns = stamp_offset_ns(first.recorded_ns, messages.read_stamp_ns(first.cdr))
        time_map = self._time_map(first)
        return PlaySchedule(time_map, time.monotonic_ns(), time.time_ns(), offset_ns)

    def _time_map(self, first: TimedMessage) -> TimeMap:
        if self._options.fps:
            return EvenTimes(self._source.image_times_ns(), self._options.fps)
        return RecordedTimes(first.recorded_ns, self._options.rate)

    def _send(self, message: TimedMessage, due_ns: int) -> bool:
        try:
            cdr = self._with_played_stamp(message)
        except BagError:
            self._malformed += 1
            return True
        if self._source.live:
            due_ns = time.monotonic_ns()
        elif not self._wait_until(due_ns):
            return False
        published_ns = time.monotonic_ns()
        self._publish(message.topic, cdr)
        self._account(message, cdr, due_ns, published_ns)
        return not self._stopped.is_set()

    def _with_played_stamp(self, message: TimedMessage) -> bytes:
        if self._source.live or self._options.stamps == "recorded" or self._schedule is None:
            return message.cdr
        return messages.restamp(message.cdr, message.msgtype, self._schedule.shifted_stamp_ns)

    def _wait_until(self, due_ns: int) -> bool:
        """Sleep without spinning; False if stopped meanwhile."""
        remaining_ns = due_ns - time.monotonic_ns()
        if remaining_ns > 0:
            return not self._stopped.wait(remaining_ns / 1e9)
        return not self._stopped.is_set()

    def _account(self, message: TimedMessage, cdr: bytes, due_ns: int, published_ns: int) -> None:
        with self._lock:
            sequence = self._sequences[message.topic] = self._sequences.get(message.topic, 0) + 1
            self._images += message.msgtype in messages.IMAGE_TYPES
            self._lateness.add("lateness", published_ns - due_ns)
        if self._ledger is not None:
            row = SentMessage(
                message.topic,
                sequence,
                messages.read_stamp_ns(message.cdr),
                messages.read_stamp_ns(cdr),
                due_ns,
                published_ns,
            )
            self._ledger.write(json.dumps(asdict(row)) + "\n")


def read_ledger(path: Path) -> list[SentMessage]:
    """Read a player's ledger.

    Raises:
        BagError: it is missing or not a ledger.

    """
    try:
        lines = path.read_text().splitlines()
        return [SentMessage(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise BagError(f"player's ledger {str(path)!r} cannot be read: {error}") from error


def _open_ledger(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", buffering=1)  # whole lines, for who reads along
    except OSError as error:
        raise BagError(f"the player's ledger cannot be written: {error}") from error
