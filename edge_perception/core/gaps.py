"""Estimating, from stamps alone, how many frames a camera sent that never arrived.

ROS 2 headers carry no sequence number, so a loss before the first subscriber is invisible except
as a hole in the rhythm of the stamps.
"""

from __future__ import annotations

import statistics
from collections import deque

# A hole is counted from this many periods on; jitter stays below.
_HOLE = 1.6
# Intervals after which the rhythm counts as known.
_INTERVALS_NEEDED = 5
# A hole longer than this is a pause of the source (a bag's loop, a restarted driver), not losses.
_LONGEST_HOLE = 50.0


class GapEstimator:
    """Sees losses in a stream of stamps with a roughly constant period.

    The period is the median of the newest 31 intervals, so that it follows a changed rate within
    a second and a few holes do not move it.
    """

    def __init__(self) -> None:
        self._intervals_ns: deque[int] = deque(maxlen=31)
        self._last_ns = 0

    def add(self, stamp_ns: int) -> int:
        """Take the next stamp and return how many frames seem missing before it.

        Zero and backward stamps begin a new rhythm and count nothing.
        """
        interval_ns = stamp_ns - self._last_ns
        missing = 0
        if self._last_ns > 0 and interval_ns > 0:
            if len(self._intervals_ns) >= _INTERVALS_NEEDED:
                missing = self._missing(interval_ns)
            self._intervals_ns.append(interval_ns)
        self._last_ns = stamp_ns
        return missing

    def _missing(self, interval_ns: int) -> int:
        periods = interval_ns / statistics.median(self._intervals_ns)
        return round(periods) - 1 if _HOLE <= periods <= _LONGEST_HOLE else 0
