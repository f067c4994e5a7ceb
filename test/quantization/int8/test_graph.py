"""Models made ready to be quantised, and those that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from small_graphs import GraphBuilder

from edge_perception.errors import QuantizationError
from edge_perception.quantization.int8.graph import load_float_graph, opset_of

SHAPE = (1, 3, 8, 8)


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def conv_model(opset: int = 17) -> onnx.ModelProto:
    builder = GraphBuilder(SHAPE)
    return builder.model(builder.conv("images", (3, 4), 3), opset)


def with_opset(opset: int) -> onnx.ModelProto:
    model = conv_model()
    model.opset_import[0].version = opset
    return model


def quantised() -> onnx.ModelProto:
    builder = GraphBuilder(SHAPE)
    scale, zero = builder.constant(np.array(1, np.float32)), builder.constant(np.array(0, np.int8))
    q = builder.add("QuantizeLinear", "images", scale, zero)
    return builder.model(builder.add("DequantizeLinear", q, scale, zero))


def dynamic() -> onnx.ModelProto:
    model = conv_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def unloadable() -> onnx.ModelProto:
    model = conv_model()
    model.graph.node[0].op_type = "Convolve"
    return model


def of_unknown_length() -> onnx.ModelProto:
    """As many rows as the picture has bright pixels, and a product of them."""
    builder = GraphBuilder((8, 8))
    rows = builder.add("Transpose", builder.add("NonZero", "images"), perm=[1, 0])
    numbers = builder.add("Cast", rows, to=TensorProto.FLOAT)
    product = builder.add("MatMul", numbers, builder.constant(np.ones((2, 3), np.float32)))
    return builder.model(builder.add("ReduceSum", product))


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        pytest.param(quantised, "quantised already.*Start from the float export", id="quantised"),
        pytest.param(dynamic, r"'images'.*dynamic shape.*\['batch', 3", id="dynamic batch"),
        pytest.param(lambda: with_opset(99), "unsupported opset.*got 99", id="too new"),
        pytest.param(lambda: with_opset(3), "unsupported opset.*got 3", id="too old"),
        pytest.param(of_unknown_length, "shapes around 'matmul3'.*cannot be inferred", id="length"),
        pytest.param(unloadable, "ONNX Runtime cannot load", id="unknown operator"),
    ],
)
def test_model_that_cannot_be_quantised_is_refused(model, problem: str, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=problem):
        load_float_graph(saved(tmp_path, model()))


def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no protobuf")
    with pytest.raises(QuantizationError, match=r"cannot be read.*expected an ONNX file"):
        load_float_graph(path)


def test_old_opset_is_converted_to_one_that_knows_channels(tmp_path: Path) -> None:
    graph = load_float_graph(saved(tmp_path, conv_model(opset=11)))
    assert opset_of(graph.model) == 13


def test_newer_opset_stays_as_it_was(tmp_path: Path) -> None:
    assert opset_of(load_float_graph(saved(tmp_path, conv_model(opset=17))).model) == 17


def test_constants_are_folded_nodes_named_and_shapes_known(tmp_path: Path) -> None:
    builder = GraphBuilder(SHAPE)
    conv = builder.conv("images", (3, 4), 3)
    shape = builder.add("Shape", conv)
    flat = builder.add("Reshape", conv, builder.add("Identity", shape))
    model = builder.model(builder.add("Relu", flat))
    for node in model.graph.node:
        node.name = ""
    graph = load_float_graph(saved(tmp_path, model))
    assert "Shape" not in {node.op_type for node in graph.nodes}
    assert all(node.name for node in graph.nodes)
    assert all(graph.shape(name) for node in graph.nodes for name in node.output)


def test_prepared_model_computes_what_the_original_does(tmp_path: Path) -> None:
    builder = GraphBuilder(SHAPE)
    total = builder.silu(builder.conv("images", (3, 4), 3))
    path = saved(tmp_path, builder.model(builder.add("MaxPool", total, kernel_shape=[2, 2])))
    images = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    models = path.read_bytes(), load_float_graph(path).model.SerializeToString()
    sessions = [onnxruntime.InferenceSession(m, providers=["CPUExecutionProvider"]) for m in models]
    first, second = (session.run(None, {"images": images})[0] for session in sessions)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_input_is_an_activation_and_a_weight_is_not(tmp_path: Path) -> None:
    graph = load_float_graph(saved(tmp_path, conv_model()))
    conv = next(node for node in graph.nodes if node.op_type == "Conv")
    assert [graph.is_activation(name) for name in (*conv.input, "")] == [True, False, False, False]


def test_input_of_another_type_than_float_is_folded_too(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["images"], ["output"], to=TensorProto.FLOAT, name="cast")]
    pixels = helper.make_tensor_value_info("images", TensorProto.UINT8, SHAPE)
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, SHAPE)
    graph = helper.make_graph(nodes, "bytes", [pixels], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert load_float_graph(saved(tmp_path, model)).inputs == ("images",)
