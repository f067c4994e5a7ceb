"""Estimating, from stamps alone, how many frames a camera sent that never arrived.

ROS 2 headers carry no sequence number, so a loss before the first subscriber is invisible except
as a hole in the rhythm of the stamps.
"""

from __future__ import annotations

import statistics
from collections import deque

# A hole is counted from this many periods on; jitter stays below.
_HOLE = 1.6
# A hole longer than this is a pause of the source (a bag's loop, a restarted driver), not losses.
_LONGEST_HOLE = 50.0


class GapEstimator:
    """Counts losses in a stream of stamps with a roughly constant period.

    The period is the median of the newest 31 intervals, so that it follows a changed rate within
    a second and a few holes do not move it.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._intervals_ns: deque[int] = deque(maxlen=31)
        self._last_ns = 0

    def add(self, stamp_ns: int) -> None:
        """Take the next stamp; zero and backward ones begin a new rhythm and count nothing."""
        interval_ns = stamp_ns - self._last_ns
        rhythm_known = self._last_ns > 0 and len(self._intervals_ns) >= 5
        if self._last_ns > 0 and interval_ns > 0:
            if rhythm_known:
                self.lost += self._missing(interval_ns)
            self._intervals_ns.append(interval_ns)
        self._last_ns = stamp_ns

    def _missing(self, interval_ns: int) -> int:
        periods = interval_ns / statistics.median(self._intervals_ns)
        return round(periods) - 1 if _HOLE <= periods <= _LONGEST_HOLE else 0
