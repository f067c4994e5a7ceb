"""Whether something has happened lately, told from counts that only grow.

A robot runs for weeks: one frame lost on the first day must not be warned of on the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable

WINDOW_S = 30.0
SILENT_S = 5.0
"""After so long without it, what comes many times a second is told to be missing."""


class Lately:
    """Remembers when each count was last seen to grow; ``clock`` tells seconds, monotonic."""

    def __init__(
        self, window_s: float = WINDOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_s = window_s
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}

    def grew(self, name: str, count: int) -> bool:
        """Take a count's present value; tell whether it grew within the last ``window_s``."""
        before, grew_s = self._seen.get(name, (0, float("-inf")))
        now_s = self._clock()
        if count > before:
            grew_s = now_s
        self._seen[name] = count, grew_s
        return now_s - grew_s <= self._window_s
