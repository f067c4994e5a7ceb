"""Who goes first where a detector and a language model share a processor.

A token of a 2B model takes an Orin ten milliseconds, a detector's whole budget. The detector cannot
wait for it; the language model can wait for the detector, and loses only what the detector takes.
So between two tokens, between the segments of a step and between the layers of a prompt, the
language model calls a ``Yield``. ``DetectorTurns`` waits there while a frame is worked on, and
also when the next one is due within ``lead_s``: work that was queued cannot be taken back.

Left out: stopping work in the middle. Stream priorities do that on a GPU, block by block, and the
processors of a CPU are shared by its scheduler.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

Yield = Callable[[], None]
"""Called where a step or a prefill may wait: a detector's turn. What it raises ends the work."""

_NEWEST_WEIGHT = 0.2
_LONGEST_PERIOD_S = 1.0


def go_on() -> None:
    """The ``Yield`` that does not wait."""


class DetectorTurns:
    """The detector's turns: ``begin`` and ``end`` on any thread, ``give_way`` on the model's.

    Args:
        longest_wait_s: most that one call of ``give_way`` waits; 0 never waits. A detector that is
            always busy, or that never tells its end, slows the language model by no more.
        lead_s: how long before a frame is due nothing new is begun.
    """

    def __init__(self, longest_wait_s: float, lead_s: float = 0.0) -> None:
        self.longest_wait_s = longest_wait_s
        self.lead_s = lead_s
        self.waited_s = 0.0
        self._changed = threading.Condition()
        self._working = False
        self._began_s = 0.0
        self._period_s = 0.0

    def begin(self) -> None:
        """A frame is ready: the detector works from now on."""
        now_s = time.monotonic()
        with self._changed:
            since_s = now_s - self._began_s
            if since_s < _LONGEST_PERIOD_S:
                weight = _NEWEST_WEIGHT if self._period_s else 1.0
                self._period_s += weight * (since_s - self._period_s)
            self._began_s, self._working = now_s, True
            self._changed.notify_all()

    def end(self) -> None:
        """The frame's detections are out."""
        with self._changed:
            self._working = False
            self._changed.notify_all()

    def give_way(self) -> None:
        """Wait while it is the detector's turn; a ``Yield``."""
        if self.longest_wait_s <= 0:
            return
        start_s = time.monotonic()
        until_s = start_s + self.longest_wait_s
        with self._changed:
            while (left_s := until_s - time.monotonic()) > 0 and self._is_detectors_turn():
                self._changed.wait(left_s)
        self.waited_s += time.monotonic() - start_s

    def _is_detectors_turn(self) -> bool:
        if self._working or not self.lead_s or not self._period_s:
            return self._working
        due_s = self._began_s + self._period_s
        # A frame that is late by more than the lead is no longer waited for.
        return -self.lead_s < due_s - time.monotonic() < self.lead_s
