"""What is written for a Q/DQ pair."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from small_graphs import GraphBuilder

from edge_perception.quantization.int8.graph import FloatGraph
from edge_perception.quantization.int8.placement import find_layers, place
from edge_perception.quantization.int8.qdq import weight_scales, write_qdq

SHAPE = (1, 4, 8, 8)


def two_convolutions() -> FloatGraph:
    builder = GraphBuilder(SHAPE)
    return builder.graph(builder.conv(builder.add("Relu", builder.conv("images", (4, 4))), (4, 2)))


def write(graph: FloatGraph, **options: object) -> onnx.ModelProto:
    placement = place(graph, find_layers(graph))
    return write_qdq(graph, placement, dict.fromkeys(placement.members(), 0.05), **options)


def run(model: onnx.ModelProto) -> np.ndarray:
    images = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": images})[0]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        pytest.param(0, [1.0, 2.0], id="rows, as convolutions have them"),
        pytest.param(1, [2.0, 1 / 127, 1.0], id="columns, as MatMul has them"),
    ],
)
def test_weight_scale_of_a_channel_is_its_largest_magnitude_over_127(
    axis: int, expected: list[float]
) -> None:
    weight = np.array([[-127.0, 0.5, 3.0], [254.0, 1.0, -127.0]], np.float32)
    np.testing.assert_allclose(weight_scales(weight, axis), expected, rtol=1e-6)


def test_channel_of_zeros_has_a_scale_above_zero() -> None:
    assert (weight_scales(np.zeros((2, 3), np.float32), 0) > 0).all()


def test_every_pair_is_symmetric_int8_and_weights_have_a_scale_a_channel() -> None:
    model = write(two_convolutions())
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 2 * (2 + 2)  # two activations, two weights
    for node in pairs:
        scale, zero_point = (constants[name] for name in node.input[1:])
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert scale.shape == zero_point.shape
    weights = [node for node in pairs if any(entry.name == "axis" for entry in node.attribute)]
    assert sorted(constants[node.input[1]].size for node in weights) == [2, 2, 4, 4]


def test_float_graph_is_not_changed() -> None:
    graph = two_convolutions()
    before = graph.model.SerializeToString(deterministic=True)
    write(graph, replaced={"constant1": np.ones(4, np.float32)})
    assert graph.model.SerializeToString(deterministic=True) == before


def test_compact_weights_compute_the_same_from_fewer_bytes() -> None:
    graph = two_convolutions()
    wide, compact = write(graph), write(graph, compact=True)
    np.testing.assert_array_equal(run(wide), run(compact))
    dtypes = {t.name: t.data_type for t in compact.graph.initializer}
    assert dtypes["constant0:dq0:q"] == onnx.TensorProto.INT8
    assert "constant0" not in dtypes


def test_replaced_bias_is_the_one_written() -> None:
    graph = two_convolutions()
    bias = next(node for node in reversed(graph.nodes) if node.op_type == "Conv").input[2]
    shifted = graph.constants[bias] + np.float32(3)
    np.testing.assert_allclose(
        run(write(graph, replaced={bias: shifted})), run(write(graph)) + 3, atol=1e-5
    )


def test_weights_that_two_layers_share_are_quantised_once() -> None:
    builder = GraphBuilder(SHAPE)
    weight = builder.constant(np.ones((4, 4, 1, 1), np.float32))
    last = builder.add("Conv", builder.add("Conv", "images", weight), weight)
    model = write(builder.graph(last))
    assert len([n for n in model.graph.node if n.input[0] == weight]) == 1
