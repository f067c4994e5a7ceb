"""Biases take back what quantisation shifts on average."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import GraphBuilder

from edge_perception.quantization.int8.collection import run_tensors
from edge_perception.quantization.int8.correction import corrected_biases
from edge_perception.quantization.int8.graph import FloatGraph
from edge_perception.quantization.int8.placement import Placement, find_layers, place
from edge_perception.quantization.int8.qdq import write_qdq

SHAPE = (1, 4, 8, 8)
# Half the input's values are clipped: a shift to correct.
SCALES = {"images": 0.5 / 127}


def frames() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.uniform(0, 1, SHAPE).astype(np.float32) for _ in range(3)]


def one_convolution() -> tuple[FloatGraph, Placement, str]:
    builder = GraphBuilder(SHAPE)
    conv = builder.conv("images", (4, 5), 3)
    graph = builder.graph(builder.add("Relu", conv))
    return graph, place(graph, find_layers(graph)), conv


def channel_means(model: onnx.ModelProto, tensor: str) -> np.ndarray:
    values = [each[tensor] for each in run_tensors(model, [tensor], frames())]
    return np.concatenate(values).mean(axis=(0, 2, 3))


def test_corrected_layer_has_the_float_layers_mean_in_every_channel() -> None:
    graph, placement, conv = one_convolution()
    wanted = channel_means(graph.model, conv)
    shifted = channel_means(write_qdq(graph, placement, SCALES), conv)
    biases = corrected_biases(graph, placement, SCALES, frames())
    corrected = channel_means(write_qdq(graph, placement, SCALES, replaced=biases), conv)
    assert np.abs(shifted - wanted).max() > 0.01
    np.testing.assert_allclose(corrected, wanted, atol=1e-5)


def test_layer_is_corrected_for_its_own_error_alone() -> None:
    builder = GraphBuilder(SHAPE)
    first = builder.conv("images", (4, 4))
    second = builder.conv(first, (4, 4))
    graph = builder.graph(builder.add("Relu", second))
    placement = place(graph, find_layers(graph))
    # Coarse before the first layer, exact (for all that matters) before the second.
    scales = SCALES | {first: 0.02}
    biases = corrected_biases(graph, placement, scales, frames())
    moved = {
        name: np.abs(biases[name] - graph.constants[name]).max()
        for name in (graph.producers[first].input[2], graph.producers[second].input[2])
    }
    first_moved, second_moved = moved.values()
    assert first_moved > 10 * second_moved


@pytest.mark.parametrize("bias", ["shared", "missing"])
def test_layer_without_a_bias_of_its_own_is_left_alone(bias: str) -> None:
    builder = GraphBuilder(SHAPE)
    weight = builder.constant(np.ones((4, 4, 1, 1), np.float32))
    biases = [builder.constant(np.ones(4, np.float32))] if bias == "shared" else []
    first = builder.add("Conv", "images", weight, *biases)
    graph = builder.graph(builder.add("Conv", first, weight, *biases))
    placement = place(graph, find_layers(graph))
    assert corrected_biases(graph, placement, SCALES | {first: 1.0}, frames()) == {}
