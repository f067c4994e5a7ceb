"""How fast the model is here and now, and what fits into a deadline.

Foretold from what was measured: for each resolution the time from a picture to the first token, and
the time a token takes after it. A deadline is kept by the slow cases, not by the average, so a high
quantile is followed: up by much when a time is above the estimate, down by little when it is below
(stochastic approximation of a quantile, Robbins and Monro 1951), in steps relative to the estimate,
so that it follows clocks, batteries and a busy detector. A whole answer of n tokens is foretold as
the sum of quantiles, which is on the safe side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_QUANTILE = 0.98
_STEP = 0.05


class RunningQuantile:
    """An estimate of one quantile of a stream of times; None before the first."""

    def __init__(self, quantile: float = _QUANTILE) -> None:
        self.value: float | None = None
        self._quantile = quantile

    def add(self, sample: float) -> None:
        """Learn from a sample above 0."""
        if self.value is None:
            self.value = sample
        elif sample > self.value:
            # At least the step, and a good part of the way to what is far above.
            step = _STEP * self._quantile * self.value
            self.value += max(step, 0.25 * (sample - self.value))
        else:
            step = _STEP * (1 - self._quantile) * self.value
            self.value = max(sample, self.value - step)


@dataclass(frozen=True)
class Plan:
    """What to do for one answer; ``max_tokens`` 0 where not even one token can come in time."""

    side_px: int
    max_tokens: int


class Pace:
    """Measured times of one model; times in milliseconds, from the start of work on a picture."""

    def __init__(self, sides_px: Sequence[int]) -> None:
        self._sides_px = tuple(sorted(sides_px))
        self._encode = {side: RunningQuantile() for side in self._sides_px}
        self._first = {side: RunningQuantile() for side in self._sides_px}
        self._token = RunningQuantile()

    def add_encoding(self, side_px: int, duration_ms: float) -> None:
        """Learn what encoding a picture took."""
        self._encode[side_px].add(duration_ms)

    def add_answer(self, side_px: int, first_ms: float, token_ms: float | None) -> None:
        """Learn what the first token of an encoded picture took, and each after it."""
        self._first[side_px].add(first_ms)
        if token_ms is not None:
            self._token.add(token_ms)

    @property
    def token_ms(self) -> float:
        """What a token takes; 0 while unknown."""
        return self._token.value or 0.0

    def first_token_ms(self, side_px: int, *, encoded: bool) -> float:
        """What the first token takes, encoding included unless that is done; 0 while unknown."""
        first = self._known(self._first, side_px)
        return first if encoded else first + self._known(self._encode, side_px)

    def plan(
        self,
        left_ms: float,
        max_tokens: int,
        *,
        sides_px: Sequence[int] = (),
        encoded_px: int | None = None,
    ) -> Plan:
        """Choose the largest resolution that leaves time for a useful answer, and its budget.

        ``left_ms`` is the time left; ``sides_px`` are the resolutions to choose from, all if none
        are given; ``encoded_px`` is one at which the picture has been encoded already. A quarter of
        the tokens asked for, or 8, whichever is less, is worth a resolution; below the smallest
        resolution only tokens are saved.
        """
        worth = min(max(1, max_tokens // 4), 8)
        plans = [
            Plan(side, self._budget(left_ms, side, max_tokens, encoded=side == encoded_px))
            for side in sorted(sides_px or self._sides_px, reverse=True)
        ]
        worthwhile = [plan for plan in plans if plan.max_tokens >= worth]
        return worthwhile[0] if worthwhile else max(plans, key=lambda plan: plan.max_tokens)

    def _budget(self, left_ms: float, side_px: int, most: int, *, encoded: bool) -> int:
        after_first_ms = left_ms - self.first_token_ms(side_px, encoded=encoded)
        if after_first_ms <= 0:
            return 0
        if not self.token_ms:
            return most
        return min(most, 1 + int(after_first_ms / self.token_ms))

    def _known(self, estimates: dict[int, RunningQuantile], side_px: int) -> float:
        """The estimate of a side, or one scaled by area from the nearest side that was measured."""
        measured = {side: e.value for side, e in estimates.items() if e.value is not None}
        if not measured:
            return 0.0
        near = min(measured, key=lambda side: abs(side - side_px))
        return measured[near] * (side_px / near) ** 2
