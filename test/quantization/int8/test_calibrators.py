"""Histograms that grow exactly, and thresholds against hand results and onnxruntime's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector

from edge_perception.errors import QuantizationError
from edge_perception.quantization.int8.calibrators import (
    BINS,
    CALIBRATORS,
    LEVELS,
    Histogram,
    entropy_threshold,
    merged,
    minmax_threshold,
    mse_threshold,
    percentile_threshold,
    scale_of,
)

values = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40)


def histogram_of(*arrays: np.ndarray) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.add(np.asarray(array, np.float32))
    return histogram


def squared_error(samples: np.ndarray, threshold: float) -> float:
    scale = threshold / LEVELS
    images = np.clip(np.rint(samples / scale), -LEVELS, LEVELS) * scale
    return float(((samples - images) ** 2).mean())


@given(values, values)
def test_growing_range_loses_no_count(first: list[float], second: list[float]) -> None:
    stepwise = histogram_of(first, second)
    at_once = histogram_of([*first, *second])
    assert stepwise.exponent == at_once.exponent
    assert stepwise.largest == at_once.largest
    np.testing.assert_array_equal(stepwise.counts, at_once.counts)


@given(values, values)
def test_merged_histograms_are_those_of_all_values(first: list[float], second: list[float]) -> None:
    joined = merged([histogram_of(first), histogram_of(second)])
    np.testing.assert_array_equal(joined.counts, histogram_of([*first, *second]).counts)
    assert joined.largest == histogram_of([*first, *second]).largest


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_value_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(QuantizationError, match="activation is not finite"):
        histogram_of([1.0, bad])


def test_minmax_is_the_largest_magnitude() -> None:
    assert minmax_threshold(histogram_of([0.5, -3.25], [1.0])) == 3.25


def test_percentile_of_a_ramp_is_its_place_in_it() -> None:
    ramp = np.linspace(0, 1, 10001)
    threshold = percentile_threshold(histogram_of(ramp), 99.0)
    assert threshold == pytest.approx(0.99, abs=1.5 / BINS)


def test_percentile_is_onnxruntimes_up_to_the_bins() -> None:
    samples = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    theirs = HistogramCollector("percentile", True, BINS, 128, 99.9, "same")
    theirs.collect({"tensor": [samples]})
    low, high = theirs.compute_collection_result()["tensor"][:2]
    ours = percentile_threshold(histogram_of(samples), 99.9)
    assert low == pytest.approx(-high)
    assert ours == pytest.approx(float(high), abs=0.02)


def test_mse_keeps_all_of_a_ramp() -> None:
    assert mse_threshold(histogram_of(np.linspace(0, 1, 10001))) == pytest.approx(1, rel=0.03)


def test_mse_clips_an_outlier_that_would_cost_all_others_their_precision() -> None:
    samples = np.append(np.random.default_rng(0).uniform(-1, 1, 1_000_000), 8.0)
    assert mse_threshold(histogram_of(samples)) < 2.5


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda random: random.normal(size=20_000), id="normal"),
        pytest.param(lambda random: random.laplace(size=20_000), id="heavy tails"),
        pytest.param(lambda random: np.maximum(random.normal(size=20_000), 0), id="after a ReLU"),
    ],
)
def test_mse_is_about_as_good_as_the_best_threshold_on_the_values(draw) -> None:
    samples = draw(np.random.default_rng(1))
    best = min(squared_error(samples, t) for t in np.linspace(0.2, np.abs(samples).max(), 400))
    assert squared_error(samples, mse_threshold(histogram_of(samples))) <= 1.02 * best


def test_entropy_keeps_nearly_all_of_a_uniform_distribution() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 200_000)
    assert entropy_threshold(histogram_of(samples)) > 0.9


def test_entropy_clips_a_far_outlier_of_a_normal_distribution() -> None:
    samples = np.append(np.random.default_rng(0).normal(size=200_000), 100.0)
    assert 2 < entropy_threshold(histogram_of(samples)) < 30


def test_entropy_is_not_decided_by_the_zeros_of_a_relu() -> None:
    samples = np.random.default_rng(0).normal(size=100_000)
    with_zeros = histogram_of(samples, np.zeros(10_000_000))
    assert entropy_threshold(with_zeros) > 0.5 * entropy_threshold(histogram_of(samples))


@pytest.mark.parametrize("name", CALIBRATORS)
@given(values)
def test_scale_is_positive_and_never_past_the_largest_value(name: str, some: list[float]) -> None:
    scale = scale_of(histogram_of(some), name)
    largest = max(float(np.abs(np.float32(some)).max()), 1e-3)
    assert 0 < scale <= largest / LEVELS * (1 + 1e-5)
