"""Percentiles that are told only where enough samples carry them."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.core.latency import LatencySummary, LatencyWindow, SpanRecorder


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, set()),
        (1, {"p50", "max"}),
        (9, {"p50", "max"}),
        (10, {"p50", "p90", "max"}),
        (99, {"p50", "p90", "max"}),
        (100, {"p50", "p90", "p99", "max"}),
        (9_999, {"p50", "p90", "p99", "max"}),
        (10_000, {"p50", "p90", "p99", "p99_9", "max"}),
    ],
)
def test_percentile_is_null_below_its_number_of_samples(count: int, told: set[str]) -> None:
    summary = asdict(LatencySummary.of_ns(range(count)))
    assert summary.pop("n") == count
    assert {name for name, value in summary.items() if value is not None} == told


@given(st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=300))
def test_told_percentiles_rise_and_end_at_the_largest(durations_ns: list[int]) -> None:
    summary = asdict(LatencySummary.of_ns(durations_ns))
    del summary["n"]
    told = [value for value in summary.values() if value is not None]
    assert told == sorted(told)
    assert told[-1] == pytest.approx(max(durations_ns) / 1e6)


def test_percentiles_are_in_milliseconds() -> None:
    summary = LatencySummary.of_ns([i * 1_000_000 for i in range(101)])
    assert (summary.p50, summary.p90, summary.p99, summary.max) == (50, 90, 99, 100)


def test_window_forgets_the_oldest() -> None:
    window = LatencyWindow(capacity=3)
    for duration_ns in (9_000_000, 1_000_000, 2_000_000, 3_000_000):
        window.add("infer", duration_ns)
    window.add("publish", 5_000_000)
    summaries = window.summaries()
    assert (summaries["infer"].n, summaries["infer"].max) == (3, 3)
    assert summaries["publish"].p50 == 5


def test_span_is_kept_when_its_body_raises() -> None:
    recorder = SpanRecorder()
    recorder.add("decode", 10, 25)
    with pytest.raises(ZeroDivisionError), recorder.stage("infer"):
        _ = 1 / np.int64(0).item()
    assert [span.stage for span in recorder.spans] == ["decode", "infer"]
    assert recorder.spans[0].duration_ns == 15
    assert recorder.spans[1].duration_ns >= 0
