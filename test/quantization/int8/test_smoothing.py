"""Layer norms folded into linear layers: nothing changes but the channels' reach."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from small_graphs import GraphBuilder

from edge_perception.quantization.int8.collection import run_tensors
from edge_perception.quantization.int8.graph import FloatGraph
from edge_perception.quantization.int8.smoothing import (
    find_foldable_norms,
    smooth,
    smoothing_scales,
)

SHAPE = (1, 16, 8)
GAIN = np.array([1, 1, 1, 1, 1, 1, 1, 100], np.float32)  # an outlier, as ViTs have them


def frames() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=SHAPE).astype(np.float32) for _ in range(3)]


def whole_norm(builder: GraphBuilder) -> str:
    vectors = [builder.constant(value) for value in (GAIN, np.ones(8, np.float32))]
    return builder.add("LayerNormalization", "images", *vectors, axis=-1)


def norm_of_arithmetic(builder: GraphBuilder) -> str:
    centred = builder.add("Sub", "images", builder.add("ReduceMean", "images", axes=[-1]))
    squares = builder.add("Mul", centred, centred)
    spread = builder.add("Sqrt", builder.add("ReduceMean", squares, axes=[-1]))
    gained = builder.add("Mul", builder.add("Div", centred, spread), builder.constant(GAIN))
    return builder.add("Add", gained, builder.constant(np.ones(8, np.float32)))


def linear(builder: GraphBuilder, source: str, seed: int, op_type: str = "MatMul") -> str:
    weight = np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32)
    return builder.add(op_type, source, builder.constant(weight))


def attention_inputs(norm: Callable[[GraphBuilder], str]) -> tuple[FloatGraph, str]:
    builder = GraphBuilder(SHAPE)
    normed = norm(builder)
    query, key = (linear(builder, normed, seed) for seed in (1, 2))
    return builder.graph(builder.add("Add", query, key)), normed


def values_of(graph: FloatGraph, tensor: str) -> np.ndarray:
    return np.concatenate([each[tensor] for each in run_tensors(graph.model, [tensor], frames())])


@pytest.mark.parametrize("norm", [whole_norm, norm_of_arithmetic])
def test_smoothed_model_computes_the_same_with_even_channels(norm) -> None:
    graph, _ = attention_inputs(norm)
    (foldable,) = find_foldable_norms(graph)
    smoothed, folded = smooth(graph, frames(), alpha=0.5)
    assert folded == 1
    np.testing.assert_allclose(
        values_of(smoothed, "output"), values_of(graph, "output"), rtol=1e-3, atol=1e-3
    )
    before, after = (
        np.abs(values_of(each, foldable.output)).reshape(-1, 8).max(axis=0)
        for each in (graph, smoothed)
    )
    assert after.max() / after.min() < before.max() / before.min() / 4


def windows(builder: GraphBuilder, source: str, moved: tuple[int, ...]) -> str:
    """Pad 16 tokens to 18 and cut them into windows of 3, whose axes are then moved."""
    padded = builder.add("Pad", source, builder.constant(np.array([0, 1, 0, 0, 1, 0])))
    cut = builder.add("Reshape", padded, builder.constant(np.array([6, 3, 8])))
    return builder.add("Transpose", cut, perm=moved)


def test_norm_is_folded_through_windows() -> None:
    builder = GraphBuilder(SHAPE)
    graph = builder.graph(linear(builder, windows(builder, whole_norm(builder), (1, 0, 2)), 1))
    smoothed, folded = smooth(graph, frames(), alpha=0.5)
    assert folded == 1
    np.testing.assert_allclose(
        values_of(smoothed, "output"), values_of(graph, "output"), rtol=1e-3, atol=1e-3
    )


def test_norm_whose_channels_are_moved_is_not_folded() -> None:
    builder = GraphBuilder(SHAPE)
    moved = windows(builder, whole_norm(builder), (0, 2, 1))
    weight = builder.constant(np.ones((3, 8), np.float32))
    assert not find_foldable_norms(builder.graph(builder.add("MatMul", moved, weight)))


def test_norms_that_share_their_gain_in_the_file_are_folded_apart() -> None:
    builder = GraphBuilder(SHAPE)
    gain, offset = (builder.constant(value) for value in (GAIN, np.ones(8, np.float32)))
    weight = builder.constant(np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32))
    tensor = "images"
    for _ in range(2):
        normed = builder.add("LayerNormalization", tensor, gain, offset, axis=-1)
        tensor = builder.add("MatMul", normed, weight)
    graph = builder.graph(tensor)
    smoothed, folded = smooth(graph, frames(), alpha=0.5)
    assert folded == 2
    np.testing.assert_allclose(
        values_of(smoothed, "output"), values_of(graph, "output"), rtol=1e-3, atol=1e-3
    )


def test_norm_that_something_else_reads_is_not_folded() -> None:
    builder = GraphBuilder(SHAPE)
    normed = whole_norm(builder)
    graph = builder.graph(builder.add("Add", normed, linear(builder, normed, 1)))
    assert find_foldable_norms(graph) == []
    assert smooth(graph, frames(), alpha=0.5) == (graph, 0)


def test_scales_are_those_of_the_paper() -> None:
    weights = [np.array([[1.0, -4.0], [0.25, 0.25]]), np.array([[2.0, 0.0], [-1.0, 0.5]])]
    reach = np.array([16.0, 9.0])
    # max|W| over all that share the input: 4 and 1; s = sqrt(reach) / sqrt(max|W|).
    np.testing.assert_allclose(smoothing_scales(weights, reach, 0.5), [2.0, 3.0])


def test_dead_channel_has_a_scale_that_can_be_divided_by() -> None:
    scales = smoothing_scales([np.zeros((2, 2))], np.array([0.0, 1.0]), 0.5)
    assert np.isfinite(1 / scales).all()
    assert (scales > 0).all()
