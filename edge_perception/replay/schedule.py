"""When each recorded message is due: open loop, on the monotonic clock.

A benchmark that waits for its consumer before it sends the next frame measures a kinder world than
the robot's ("coordinated omission", Gil Tene). So every due time follows from the recording and
the chosen rate alone; a consumer that is slow, or a player that is late, moves none of them.

One function of the time does everything: a ``TimeMap`` carries recorded times to offsets from the
start of a pass. Due times are its values of the recorded times, and the *shifted* stamps are its
values of the recorded stamps, on the wall clock. Equal recorded stamps therefore stay equal to the
nanosecond, which is what joins ground truth to its image. The price: a stamp tells when a message
was due, not when it left. The player's lateness is inside the measured latency, and is told
separately so that it can be judged.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edge_perception.errors import ConfigError

MIN_RATE, MAX_RATE = 0.01, 100.0

# Recorders receive an image after its exposure, by less than this. A larger distance, or a stamp
# after its reception, means that stamps and bag were timed by different clocks.
MAX_RECORDING_DELAY_NS = 1_000_000_000


class TimeMap(Protocol):
    """Monotone map between recorded times and offsets from the start of a pass, both in ns."""

    def played_ns(self, recorded_ns: int) -> int:
        """Return when a recorded moment is played; negative before the pass starts."""

    def recorded_ns(self, played_ns: int) -> int:
        """Return the recorded moment that is played at an offset."""


@dataclass(frozen=True)
class RecordedTimes:
    """The recording's own times, stretched: at ``rate`` 2 it plays twice as fast."""

    first_ns: int
    rate: float = 1.0

    def __post_init__(self) -> None:
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise ConfigError(
                "rate out of range", expected=f"{MIN_RATE} to {MAX_RATE}", got=self.rate
            )

    def played_ns(self, recorded_ns: int) -> int:
        """Return the distance from the first message over the rate; exact at rate 1."""
        return round((recorded_ns - self.first_ns) / self.rate)

    def recorded_ns(self, played_ns: int) -> int:
        """Return the inverse of ``played_ns``, to the rounding."""
        return self.first_ns + round(played_ns * self.rate)


@dataclass(frozen=True)
class EvenTimes:
    """A fixed frame rate: image ``k`` is played at ``k / fps``, the times between in proportion.

    ``image_times_ns`` are the images' recorded times in order; repeated times count once.

    Raises:
        ConfigError: fewer than two different times, or a frame rate that is not positive.

    """

    image_times_ns: Sequence[int]
    fps: float
    _knots: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        knots = sorted(set(self.image_times_ns))
        if len(knots) < 2:
            raise ConfigError(
                "a fixed frame rate needs a recording of two images or more", got=len(knots)
            )
        if not self.fps > 0:
            raise ConfigError("frame rate must be positive", got=self.fps)
        object.__setattr__(self, "_knots", knots)

    def _segment(self, index: int) -> int:
        return min(max(index, 0), len(self._knots) - 2)

    def _knot_played_ns(self, index: int) -> int:
        return round(index * 1e9 / self.fps)

    def played_ns(self, recorded_ns: int) -> int:
        """Interpolate between the images around; beyond the ends the outer interval goes on."""
        index = self._segment(bisect.bisect_right(self._knots, recorded_ns) - 1)
        start, end = self._knots[index], self._knots[index + 1]
        played = self._knot_played_ns(index)
        span = self._knot_played_ns(index + 1) - played
        return played + (recorded_ns - start) * span // (end - start)

    def recorded_ns(self, played_ns: int) -> int:
        """Return the inverse of ``played_ns``, to the rounding."""
        index = self._segment(int(played_ns * self.fps / 1e9))
        start, end = self._knots[index], self._knots[index + 1]
        played = self._knot_played_ns(index)
        span = self._knot_played_ns(index + 1) - played
        return start + (played_ns - played) * (end - start) // span


@dataclass(frozen=True)
class PlaySchedule:
    """One pass over a recording, started at the same moment of two clocks.

    ``start_monotonic_ns`` is of ``time.monotonic_ns`` and rules the due times;
    ``start_wall_ns`` is of the wall clock and rules the shifted stamps.
    ``stamp_offset_ns`` is added to recorded stamps to make them recorded times.
    """

    time_map: TimeMap
    start_monotonic_ns: int
    start_wall_ns: int
    stamp_offset_ns: int = 0

    def due_ns(self, recorded_ns: int) -> int:
        """Return when a message recorded then is due, in ``time.monotonic_ns``."""
        return self.start_monotonic_ns + self.time_map.played_ns(recorded_ns)

    def shifted_stamp_ns(self, recorded_stamp_ns: int) -> int:
        """Return a recorded header stamp, moved to this pass; never below zero."""
        played_ns = self.time_map.played_ns(recorded_stamp_ns + self.stamp_offset_ns)
        return max(0, self.start_wall_ns + played_ns)

    def recorded_ns(self, monotonic_ns: int) -> int:
        """Return the recorded moment that is played at ``monotonic_ns``: what /clock tells."""
        return self.time_map.recorded_ns(monotonic_ns - self.start_monotonic_ns)

    def next_pass(self, length_ns: int) -> PlaySchedule:
        """Return the schedule of the pass that starts ``length_ns`` after this one."""
        return PlaySchedule(
            self.time_map,
            self.start_monotonic_ns + length_ns,
            self.start_wall_ns + length_ns,
            self.stamp_offset_ns,
        )


def stamp_offset_ns(recorded_ns: int, recorded_stamp_ns: int) -> int:
    """Return what brings a bag's stamps into the clock of its recorded times.

    Zero if the first image's stamp lies less than a second before its recording: that distance is
    the camera driver's real latency and is kept. Otherwise the clocks differ (stamps since boot,
    or none at all) and the first image is taken as stamped when it was recorded.
    """
    delay_ns = recorded_ns - recorded_stamp_ns
    return 0 if 0 <= delay_ns < MAX_RECORDING_DELAY_NS else delay_ns


def pass_length_ns(played_image_times_ns: Sequence[int]) -> int:
    """Return after how long a looped recording starts again: one mean interval after its last.

    ``played_image_times_ns`` are the offsets of one topic's images. A single image repeats after
    a thirtieth of a second.
    """
    if len(played_image_times_ns) < 2:
        return round(1e9 / 30)
    span_ns = played_image_times_ns[-1] - played_image_times_ns[0]
    return played_image_times_ns[-1] + max(1, span_ns // (len(played_image_times_ns) - 1))
