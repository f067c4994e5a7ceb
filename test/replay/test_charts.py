"""Charts: well-formed, complete, and with sensible axes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.replay.charts import changes, histogram, nice_ticks, timeline

LATENCIES = st.lists(st.floats(0.01, 1e5), min_size=1, max_size=40)


def count(svg: str, tag: str, kind: str) -> int:
    root = ElementTree.fromstring(svg)
    return sum(element.get("class") == kind for element in root.iter(tag))


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6))
def test_ticks_are_few_and_lie_inside(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    slack = 1e-6 * max(1.0, abs(low))
    assert 1 <= len(ticks) <= 8
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (0, 0.9, [0, 0.2, 0.4, 0.6, 0.8]), (5, 5, [5])],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == ticks


@given(values=LATENCIES)
def test_histogram_is_well_formed_and_marks_what_is_known(values: list[float]) -> None:
    svg = histogram(values, {"p50": values[0], "p99": None})
    assert count(svg, "line", "mark") == 1
    assert count(svg, "rect", "bar") >= 1


def test_histogram_tells_what_its_axis_leaves_out() -> None:
    assert "1 beyond" in histogram([10.0] * 999 + [5000.0], {"p50": 10.0})


@given(values=st.lists(st.none() | st.floats(-10, 1e5), min_size=1, max_size=40))
def test_timeline_shows_each_frame_once(values: list[float | None]) -> None:
    svg = timeline([index / 30 for index in range(len(values))], values, 100.0)
    if all(value is None for value in values):
        assert "No frames to draw" in svg
        return
    dropped = sum(value is None for value in values)
    assert count(svg, "line", "dropped") == dropped
    assert count(svg, "circle", "point") == len(values) - dropped


def test_long_timeline_is_thinned_out_and_says_so() -> None:
    svg = timeline([index / 30 for index in range(9000)], [10.0] * 9000, 100.0)
    assert count(svg, "circle", "point") == 3000
    assert "one of 3 frames is drawn" in svg


def test_deadline_is_drawn_only_where_it_fits() -> None:
    assert "deadline 100 ms" in timeline([0, 1], [50, 150], 100.0)
    assert "deadline" not in timeline([0, 1], [5, 15], 100.0)


def test_no_frames_are_told() -> None:
    assert "No frames to draw" in histogram([], {})


@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 1)), min_size=1, max_size=40))
def test_changes_show_each_pair_once(pairs: list[tuple[float, float]]) -> None:
    levels, differences = zip(*pairs, strict=True)
    svg = changes(levels, differences, title="drift", counted="pairs")
    assert count(svg, "circle", "point") == len(pairs)


def test_no_pairs_are_told() -> None:
    assert "No pairs to draw" in changes([], [], title="drift", counted="pairs")
