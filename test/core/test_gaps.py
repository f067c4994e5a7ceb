"""Losses estimated from holes in the rhythm of the stamps."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.core.gaps import GapEstimator

PERIOD_NS = 33_333_333
START_NS = 1_700_000_000_000_000_000


def estimate(stamps: list[int]) -> int:
    gaps = GapEstimator()
    return sum(gaps.add(stamp_ns) for stamp_ns in stamps)


def steady(count: int, period_ns: int = PERIOD_NS, start_ns: int = START_NS) -> list[int]:
    return [start_ns + i * period_ns for i in range(count)]


@given(st.sets(st.integers(10, 80), max_size=12))
def test_every_frame_taken_out_is_counted(missing: set[int]) -> None:
    stamps = [stamp for i, stamp in enumerate(steady(90)) if i not in missing]
    assert estimate(stamps) == len(missing)


@pytest.mark.parametrize("seed", range(5))
def test_jitter_of_a_quarter_period_is_no_loss(seed: int) -> None:
    noise = random.Random(seed)
    assert estimate([s + noise.randint(0, PERIOD_NS // 4) for s in steady(300)]) == 0


def test_changed_rate_is_no_loss_for_long() -> None:
    slow = steady(200, 3 * PERIOD_NS, START_NS + 100 * PERIOD_NS)
    # Until the median follows, half a window of intervals looks like holes of two frames.
    assert estimate(steady(100) + slow) <= 16 * 2


@pytest.mark.parametrize(
    ("stamps", "reason"),
    [
        ([], "no stamps"),
        ([0] * 50, "zero stamps"),
        ([START_NS] * 50, "one stamp again and again"),
        (steady(20)[::-1], "stamps run backward"),
        (steady(20) + steady(20), "a bag begins anew"),
        (steady(20) + steady(20, start_ns=START_NS + 3_600_000_000_000), "a pause of an hour"),
        ([START_NS, START_NS + 10 * PERIOD_NS], "too few to know a rhythm"),
        ([-5, -1, 3, *steady(10)], "stamps before 1970"),
    ],
)
def test_what_has_no_rhythm_counts_nothing(stamps: list[int], reason: str) -> None:
    assert estimate(stamps) == 0, reason


def test_losses_after_a_zero_stamp_are_still_found() -> None:
    later = steady(20, start_ns=START_NS + 40 * PERIOD_NS)
    assert estimate([*steady(20), 0, *later[:5], *later[7:]]) == 2


@given(st.lists(st.integers(-(2**40), 2**62), max_size=60))
def test_no_stamps_make_it_fail_or_count_backward(stamps: list[int]) -> None:
    assert estimate(stamps) >= 0
