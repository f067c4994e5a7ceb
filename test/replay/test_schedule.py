"""Schedule properties: monotone, exact, open loop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.errors import ConfigError
from edge_perception.replay.schedule import (
    MAX_RATE,
    MIN_RATE,
    EvenTimes,
    PlaySchedule,
    RecordedTimes,
    TimeMap,
    pass_length_ns,
    stamp_offset_ns,
)

EPOCH_NS = 1_700_000_000_000_000_000
HOUR_NS = 3_600_000_000_000
OFFSETS = st.lists(st.integers(0, HOUR_NS), min_size=2, max_size=50, unique=True).map(sorted)
RATES = st.floats(MIN_RATE, MAX_RATE)


@given(offsets=OFFSETS, rate=RATES)
def test_recorded_order_is_kept_at_any_rate(offsets: list[int], rate: float) -> None:
    times = RecordedTimes(EPOCH_NS, rate)
    played = [times.played_ns(EPOCH_NS + offset) for offset in offsets]
    assert played == sorted(played)


@given(offset=st.integers(-HOUR_NS, 24 * HOUR_NS))
def test_rate_one_is_exact_to_the_nanosecond(offset: int) -> None:
    assert RecordedTimes(EPOCH_NS).played_ns(EPOCH_NS + offset) == offset


@given(offset=st.integers(0, HOUR_NS), rate=RATES)
def test_rate_divides_distances(offset: int, rate: float) -> None:
    played_ns = RecordedTimes(EPOCH_NS, rate).played_ns(EPOCH_NS + offset)
    assert played_ns == pytest.approx(offset / rate, rel=1e-12, abs=1)


@given(offsets=OFFSETS, fps=st.floats(0.1, 1000))
def test_fixed_rate_plays_each_image_at_its_multiple(offsets: list[int], fps: float) -> None:
    times = [EPOCH_NS + offset for offset in offsets]
    even = EvenTimes(times, fps)
    assert [even.played_ns(time) for time in times] == [
        round(index * 1e9 / fps) for index in range(len(times))
    ]


@given(offsets=OFFSETS, fps=st.floats(0.1, 1000), between=st.integers(-HOUR_NS, 2 * HOUR_NS))
def test_fixed_rate_keeps_the_order_of_what_lies_between(
    offsets: list[int], fps: float, between: int
) -> None:
    even = EvenTimes([EPOCH_NS + offset for offset in offsets], fps)
    moment = EPOCH_NS + between
    assert even.played_ns(moment - 1) <= even.played_ns(moment) <= even.played_ns(moment + 1)


@given(offset=st.integers(0, HOUR_NS), rate=st.floats(0.1, 10))
def test_clock_tells_the_recorded_moment_that_is_due(offset: int, rate: float) -> None:
    schedule = PlaySchedule(RecordedTimes(EPOCH_NS, rate), 500, 0)
    told_ns = schedule.recorded_ns(schedule.due_ns(EPOCH_NS + offset))
    assert told_ns == pytest.approx(EPOCH_NS + offset, abs=10)


@given(offset=st.integers(0, HOUR_NS))
def test_clock_inverts_a_fixed_rate_too(offset: int) -> None:
    even = EvenTimes([EPOCH_NS, EPOCH_NS + 10**8, EPOCH_NS + 3 * 10**8], fps=10)
    assert even.recorded_ns(even.played_ns(EPOCH_NS + offset)) == pytest.approx(
        EPOCH_NS + offset, abs=5
    )


@given(stamp=st.integers(0, HOUR_NS), rate=RATES, wall=st.integers(0, 2 * EPOCH_NS))
def test_shifted_stamp_is_the_wall_time_at_which_it_is_due(
    stamp: int, rate: float, wall: int
) -> None:
    schedule = PlaySchedule(RecordedTimes(EPOCH_NS, rate), 12345, wall)
    due_after_ns = schedule.due_ns(EPOCH_NS + stamp) - schedule.start_monotonic_ns
    assert schedule.shifted_stamp_ns(EPOCH_NS + stamp) == wall + due_after_ns


def test_shifted_stamp_never_becomes_negative() -> None:
    schedule = PlaySchedule(RecordedTimes(EPOCH_NS), 0, 10)
    assert schedule.shifted_stamp_ns(0) == 0


def test_next_pass_moves_both_clocks() -> None:
    first = PlaySchedule(RecordedTimes(EPOCH_NS), 1000, 2000, stamp_offset_ns=7)
    second = first.next_pass(500)
    assert second.due_ns(EPOCH_NS) == 1500
    assert second.shifted_stamp_ns(EPOCH_NS) == 2507


@pytest.mark.parametrize(
    ("delay_ns", "expected_ns", "reason"),
    [
        (0, 0, "logged at its own stamp"),
        (20_000_000, 0, "a driver's latency is kept"),
        (-1, -1, "a stamp from the future is another clock's"),
        (10**9, 10**9, "a second is no driver's latency"),
        (EPOCH_NS, EPOCH_NS, "stamps that were never set"),
    ],
)
def test_stamp_offset(delay_ns: int, expected_ns: int, reason: str) -> None:
    assert stamp_offset_ns(EPOCH_NS, EPOCH_NS - delay_ns) == expected_ns, reason


@pytest.mark.parametrize(
    ("played_ns", "length_ns", "reason"),
    [
        ([0, 100, 200], 300, "one interval after the last"),
        ([50, 150], 250, "what came before the first image is played again too"),
        ([0], 33_333_333, "a single image"),
        ([], 33_333_333, "no image at all"),
    ],
)
def test_looped_pass_length(played_ns: list[int], length_ns: int, reason: str) -> None:
    assert pass_length_ns(played_ns) == length_ns, reason


@pytest.mark.parametrize("rate", [0.0, -1.0, 101.0, float("nan")])
def test_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate out of range"):
        RecordedTimes(0, rate)


@pytest.mark.parametrize(
    ("times", "fps", "reason"),
    [
        ([1, 1], 10.0, "two images or more"),
        ([], 10.0, "two images or more"),
        ([1, 2], 0.0, "must be positive"),
        ([1, 2], float("nan"), "must be positive"),
    ],
)
def test_fixed_rate_that_cannot_be_is_refused(times: list[int], fps: float, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        EvenTimes(times, fps)


def test_time_maps_share_one_protocol() -> None:
    maps: list[TimeMap] = [RecordedTimes(0), EvenTimes([0, 10**9], 1.0)]
    assert [time_map.played_ns(10**9) for time_map in maps] == [10**9, 10**9]
