"""Which frames a language model was at work beside, so that what it costs them can be told.

The model tells an interval when a piece of its work is done, which may be seconds after a frame
arrived. So a frame waits: the first interval that touches its way from stamp to arrival makes it
one *with*, the first that begins after its arrival makes it one *without*. Work that was told
before the frame arrived counts as well: short pieces are told at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

_LONGEST_WORK_NS = 30_000_000_000
_MOST_WAITING = 4096
_LOOK_BACK = 64  # intervals; those told during a frame's way are a few


@dataclass(frozen=True)
class SplitFrame:
    """A frame that has been told apart; ``end_to_end_ns`` is its latency."""

    end_to_end_ns: int
    beside_work: bool


@dataclass
class _Waiting:
    stamp_ns: int
    arrival_ns: int
    beside_work: bool = False

    def touches(self, start_ns: int, end_ns: int) -> bool:
        return self.stamp_ns <= end_ns and start_ns <= self.arrival_ns

    def decided(self) -> SplitFrame:
        return SplitFrame(self.arrival_ns - self.stamp_ns, self.beside_work)


class ContentionSplit:
    """Tells frames apart; times in ns of one clock. Yields nothing before work was ever told."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque(maxlen=_MOST_WAITING)
        self._told: deque[tuple[int, int]] = deque(maxlen=_LOOK_BACK)

    def add_frame(self, stamp_ns: int, arrival_ns: int) -> None:
        """Take a frame by its stamp and its arrival; in order of arrival."""
        frame = _Waiting(stamp_ns, arrival_ns)
        frame.beside_work = any(frame.touches(*interval) for interval in self._told)
        self._waiting.append(frame)

    def add_work(self, start_ns: int, end_ns: int) -> Iterator[SplitFrame]:
        """Take an interval of work, in order; yields the frames that it decides."""
        self._told.append((start_ns, end_ns))
        undecided: list[_Waiting] = []
        for frame in self._waiting:
            frame.beside_work |= frame.touches(start_ns, end_ns)
            if frame.beside_work or frame.arrival_ns < start_ns:
                yield frame.decided()
            else:
                undecided.append(frame)
        self._waiting = deque(undecided, maxlen=_MOST_WAITING)

    def expire(self, now_ns: int) -> Iterator[SplitFrame]:
        """Yield the frames of long ago: no work can have touched them without being told."""
        while self._waiting and now_ns - self._waiting[0].arrival_ns > _LONGEST_WORK_NS:
            frame = self._waiting.popleft()
            if self._told:
                yield frame.decided()

    def finish(self) -> Iterator[SplitFrame]:
        """Yield what still waits, when no more work will be told."""
        yield from self.expire(max((f.arrival_ns for f in self._waiting), default=0) + 10**12)
