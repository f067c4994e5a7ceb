"""Channels of a convolution's input made alike: nothing changes in float, much in INT8."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import GraphBuilder

from edge_perception.quantization.int8.candidate import Calibrated, calibrated
from edge_perception.quantization.int8.collection import collect_histograms, run_tensors
from edge_perception.quantization.int8.equalisation import equalise
from edge_perception.quantization.int8.graph import FloatGraph
from edge_perception.quantization.int8.placement import find_layers, place

SHAPE = (1, 4, 8, 8)
REACH = np.array([100, 10, 1, 0.1], np.float32).reshape(4, 1, 1, 1)


def frames(count: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=SHAPE).astype(np.float32) for _ in range(count)]


def uneven(builder: GraphBuilder) -> str:
    """A SiLU whose channels reach 100, 10, 1 and 0.1 times as far."""
    weight = np.eye(4, dtype=np.float32)[:, :, None, None] * REACH
    return builder.silu(builder.add("Conv", "images", builder.constant(weight)))


def outputs(graph: FloatGraph) -> np.ndarray:
    return np.concatenate([v["output"] for v in run_tensors(graph.model, ["output"], frames())])


def in_int8(graph: FloatGraph) -> Calibrated:
    layers = find_layers(graph)
    groups = place(graph, layers).groups
    histograms = collect_histograms(graph, list(groups), frames())
    return calibrated(graph, layers, histograms, "minmax")


def relative_error(graph: FloatGraph, truth: np.ndarray) -> np.ndarray:
    """Of each output channel."""
    found = outputs(FloatGraph(in_int8(graph).build(())))
    length = np.sqrt((truth**2).mean(axis=(0, 2, 3)))
    return np.asarray(np.sqrt(((found - truth) ** 2).mean(axis=(0, 2, 3))) / length)


@pytest.mark.parametrize(
    ("kernel", "group", "biased", "inputs"),
    [
        pytest.param(3, 4, True, 2, id="depthwise: padded, so only a factor"),
        pytest.param(1, 1, True, 2, id="pointwise: a factor and a middle"),
        pytest.param(3, 1, True, 2, id="dense and padded"),
        pytest.param(1, 1, False, 2, id="no bias of its own: gets one"),
        pytest.param(1, 2, True, 1, id="in two groups: left alone, like no other"),
    ],
)
def test_equalised_model_computes_the_same(
    kernel: int, group: int, biased: bool, inputs: int
) -> None:
    builder = GraphBuilder(SHAPE)
    conv = builder.conv(uneven(builder), (4, 4), kernel, group)
    if not biased:
        del builder.nodes[-1].input[2]
    graph = builder.graph(builder.add("Relu", conv))
    equal, count = equalise(graph, frames())
    assert count == inputs
    np.testing.assert_allclose(outputs(equal), outputs(graph), rtol=1e-3, atol=1e-3)


def test_depthwise_convolution_keeps_its_small_channels() -> None:
    builder = GraphBuilder(SHAPE)
    graph = builder.graph(builder.conv(uneven(builder), (4, 4), 3, group=4))
    truth = outputs(graph)
    before, after = (
        relative_error(graph, truth),
        relative_error(equalise(graph, frames())[0], truth),
    )
    assert before[3] > 0.1, "one scale for all rounds the smallest channel away"
    assert after[3] < before[3] / 3
    assert after.max() < 0.1


def test_values_on_one_side_of_zero_use_the_whole_range() -> None:
    builder = GraphBuilder(SHAPE)
    graph = builder.graph(builder.conv(builder.silu("images"), (4, 4)))
    equal, _ = equalise(graph, frames())
    (read,) = {
        node.input[0] for node in equal.nodes if node.op_type == "Conv" and node.name == "conv2"
    }
    values = np.concatenate([v[read] for v in run_tensors(equal.model, [read], frames())])
    assert -values.min() == pytest.approx(values.max(), rel=0.01)


def test_tensor_that_two_kinds_read_is_evened_out_for_each() -> None:
    builder = GraphBuilder(SHAPE)
    source = uneven(builder)
    one = builder.conv(source, (4, 4), 3, group=4)
    graph = builder.graph(builder.add("Add", one, builder.conv(source, (4, 4))))
    equal, count = equalise(graph, frames())
    assert count == 3  # the picture, too
    np.testing.assert_allclose(outputs(equal), outputs(graph), rtol=1e-3, atol=1e-3)


def test_dead_channel_gets_no_endless_factor() -> None:
    builder = GraphBuilder(SHAPE)
    weight = np.eye(4, dtype=np.float32)[:, :, None, None] * np.array(
        [1, 1, 1, 0], np.float32
    ).reshape(4, 1, 1, 1)
    source = builder.add("Relu", builder.add("Conv", "images", builder.constant(weight)))
    equal, _ = equalise(builder.graph(builder.conv(source, (4, 4), 3, group=4)), frames())
    factors = [v for name, v in equal.constants.items() if name.endswith("depthwise:mul:constant")]
    assert factors[0].max() / factors[0].min() <= 1100


def test_model_without_convolutions_stays_as_it_is() -> None:
    builder = GraphBuilder((1, 4))
    weight = builder.constant(np.eye(4, dtype=np.float32))
    graph = builder.graph(builder.add("MatMul", "images", weight))
    assert equalise(graph, []) == (graph, 0)


@settings(max_examples=20)
@given(st.integers(0, 99), st.booleans(), st.integers(1, 2))
def test_any_pair_of_convolutions_is_quantised_no_worse(
    seed: int, depthwise: bool, copies: int
) -> None:
    builder = GraphBuilder(SHAPE, seed)
    source = uneven(builder)
    channels = (4, 4 * copies)
    graph = builder.graph(builder.conv(source, channels, 3, group=4 if depthwise else 1))
    truth = outputs(graph)
    equal, _ = equalise(graph, frames())
    np.testing.assert_allclose(outputs(equal), truth, rtol=1e-3, atol=1e-3)
    before, after = relative_error(graph, truth), relative_error(equal, truth)
    assert after.mean() <= before.mean() + 0.01
