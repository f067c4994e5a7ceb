"""What changes during a training run, as functions of its progress from 0 to 1.

Progress follows the clock where the budget is in minutes, so that a run ends when it should on
any machine; it follows the steps where tests need to repeat it. Time spent on compiling and
evaluating is not counted.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WARM_UP = 0.03
_FINAL_RATE = 0.01
_CLOSING = 0.85


@dataclass(frozen=True)
class Phase:
    """The settings of one step: learning rate factor, augmentation and L1 weight."""

    rate: float
    mosaic: float
    strength: float
    distance_weight: float


def phase_at(progress: float, *, mosaic: float = 0.5) -> Phase:
    """Linear warm-up and cosine decay; the last 15% see plain frames, with the L1 term.

    Closing the mosaic lets the network, its normalisation statistics above all, settle on what
    frames really look like (YOLOX, section 2.1).
    """
    warm = min(1.0, progress / _WARM_UP)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    rate = warm * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)
    if progress < _CLOSING:
        return Phase(rate, mosaic, 1.0, 0.0)
    return Phase(rate, 0.0, 0.5, 1.0)


class Budget:
    """Progress through a number of minutes or, if given, of steps."""

    def __init__(
        self,
        minutes: float,
        steps: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = minutes * 60
        self._steps = steps
        self._clock = clock
        self._start = clock()

    @property
    def elapsed_s(self) -> float:
        """Counted seconds since the start."""
        return self._clock() - self._start

    def progress(self, step: int) -> float:
        """0 at the start, 1 when the budget is spent."""
        if self._steps is not None:
            return step / self._steps
        return self.elapsed_s / self._seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time spent inside."""
        before = self._clock()
        try:
            yield
        finally:
            self._start += self._clock() - before
