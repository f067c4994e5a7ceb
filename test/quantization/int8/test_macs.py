"""Multiply-accumulates, counted by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import GraphBuilder

from edge_perception.quantization.int8.graph import FloatGraph
from edge_perception.quantization.int8.macs import count_macs, int8_mac_share, share_in_int8
from edge_perception.quantization.int8.placement import find_layers, place
from edge_perception.quantization.int8.qdq import write_qdq


def conv() -> tuple[GraphBuilder, str]:
    builder = GraphBuilder((1, 3, 8, 8))
    return builder, builder.conv("images", (3, 5), 3)


def depthwise() -> tuple[GraphBuilder, str]:
    builder = GraphBuilder((1, 4, 8, 8))
    return builder, builder.conv("images", (4, 4), 3, group=4)


def transposed() -> tuple[GraphBuilder, str]:
    builder = GraphBuilder((1, 3, 4, 4))
    weight = builder.constant(np.ones((3, 2, 2, 2), np.float32))
    return builder, builder.add("ConvTranspose", "images", weight, strides=[2, 2])


def gemm() -> tuple[GraphBuilder, str]:
    builder = GraphBuilder((2, 7))
    return builder, builder.add("Gemm", "images", builder.constant(np.ones((7, 3), np.float32)))


def attention() -> tuple[GraphBuilder, str]:
    builder = GraphBuilder((2, 16, 8))
    return builder, builder.add(
        "MatMul", "images", builder.add("Transpose", "images", perm=[0, 2, 1])
    )


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(conv, 5 * 8 * 8 * 3 * 3 * 3, id="every output meets all inputs in its window"),
        pytest.param(depthwise, 4 * 8 * 8 * 3 * 3, id="a depthwise one only its own channel"),
        pytest.param(transposed, 3 * 4 * 4 * 2 * 2 * 2, id="every input meets all its outputs"),
        pytest.param(gemm, 2 * 7 * 3, id="rows x inner x columns"),
        pytest.param(attention, 2 * 16 * 16 * 8, id="products of activations count too"),
    ],
)
def test_macs_of_one_operator(make, expected: int) -> None:
    builder, output = make()
    assert count_macs(builder.graph(output)) == {output: expected}


def test_share_is_that_of_all_arithmetic() -> None:
    assert int8_mac_share({"a": 75, "b": 20, "c": 5}, {"a", "c"}) == 0.8
    assert int8_mac_share({}, set()) == 0.0


@pytest.mark.parametrize("left_float", [0, 1, 2])
def test_share_read_from_a_written_model_is_the_planned_one(left_float: int) -> None:
    builder = GraphBuilder((1, 4, 8, 8))
    tensor = "images"
    for _ in range(3):
        tensor = builder.add("Relu", builder.conv(tensor, (4, 4), 3))
    graph = builder.graph(tensor)
    int8 = find_layers(graph)[left_float:]
    placement = place(graph, int8)
    model = write_qdq(graph, placement, dict.fromkeys(placement.members(), 0.1))
    planned = int8_mac_share(count_macs(graph), {layer.name for layer in int8})
    assert share_in_int8(model) == pytest.approx(planned) == pytest.approx((3 - left_float) / 3)


def test_float_model_has_nothing_in_int8() -> None:
    builder, output = conv()
    graph: FloatGraph = builder.graph(output)
    assert share_in_int8(onnx.ModelProto.FromString(graph.model.SerializeToString())) == 0.0
