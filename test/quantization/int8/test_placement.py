"""Where Q/DQ pairs go: the patterns that TensorRT fuses, and properties of any graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import GraphBuilder

from edge_perception.quantization.int8.candidate import calibrated
from edge_perception.quantization.int8.collection import collect_histograms
from edge_perception.quantization.int8.graph import FloatGraph
from edge_perception.quantization.int8.placement import MOVING_OPS, Placement, find_layers, place
from edge_perception.quantization.int8.qdq import write_qdq

SHAPE = (1, 4, 8, 8)


def placed(builder: GraphBuilder, output: str) -> tuple[FloatGraph, Placement]:
    graph = builder.graph(output)
    return graph, place(graph, find_layers(graph))


def same_group(placement: Placement, *tensors: str) -> bool:
    return len({placement.groups[name] for name in tensors}) == 1


def test_only_what_layers_read_is_quantised() -> None:
    builder = GraphBuilder(SHAPE)
    relu = builder.add("Relu", builder.conv("images", (4, 4)))
    last = builder.add("Sigmoid", builder.conv(relu, (4, 4)))
    _, placement = placed(builder, last)
    assert set(placement.groups) == {"images", relu}


def test_silu_is_quantised_after_the_product_alone() -> None:
    builder = GraphBuilder(SHAPE)
    product = builder.silu(builder.conv("images", (4, 4)))
    _, placement = placed(builder, builder.conv(product, (4, 4)))
    assert set(placement.groups) == {"images", product}


def test_concat_has_one_scale_with_all_its_inputs_and_through_moving_ops() -> None:
    builder = GraphBuilder(SHAPE)
    first = builder.add("Relu", builder.conv("images", (4, 4)))
    second = builder.add("Relu", builder.conv("images", (4, 4)))
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
    pooled = builder.add("MaxPool", second, **pool)
    joined = builder.add("Concat", first, pooled, axis=1)
    _, placement = placed(builder, builder.conv(joined, (8, 4)))
    assert same_group(placement, first, second, pooled, joined)
    assert not same_group(placement, "images", joined)


def test_concats_that_share_an_input_share_one_scale() -> None:
    builder = GraphBuilder(SHAPE)
    one, two, three = (builder.add("Relu", builder.conv("images", (4, 4))) for _ in range(3))
    left, right = (builder.add("Concat", two, other, axis=1) for other in (one, three))
    last = builder.add("Add", builder.conv(left, (8, 4)), builder.conv(right, (8, 4)))
    _, placement = placed(builder, last)
    assert same_group(placement, one, two, three, left, right)


def test_branches_of_a_residual_sum_keep_scales_of_their_own() -> None:
    builder = GraphBuilder(SHAPE)
    skip = builder.add("Relu", builder.conv("images", (4, 4)))
    branch = builder.add("Relu", builder.conv(skip, (4, 4)))
    total = builder.add("Add", skip, branch)
    _, placement = placed(builder, builder.conv(total, (4, 4)))
    assert {(total, 0), (total, 1)} <= placement.readers
    assert len({placement.groups[name] for name in (skip, branch, total)}) == 3


def test_bare_convolution_before_a_residual_sum_is_left_for_its_kernel() -> None:
    builder = GraphBuilder(SHAPE)
    skip = builder.add("Relu", builder.conv("images", (4, 4)))
    bare = builder.conv(skip, (4, 4))
    relu = builder.add("Relu", builder.add("Add", bare, skip))
    _, placement = placed(builder, builder.conv(relu, (4, 4)))
    assert bare not in placement.groups
    assert skip in placement.groups


def test_sum_that_no_layer_reads_stays_float() -> None:
    builder = GraphBuilder(SHAPE)
    first, second = (builder.add("Relu", builder.conv("images", (4, 4))) for _ in range(2))
    _, placement = placed(builder, builder.add("Softmax", builder.add("Add", first, second)))
    assert set(placement.groups) == {"images"}


def test_convolution_that_decodes_a_softmax_is_no_layer() -> None:
    builder = GraphBuilder(SHAPE)
    bins = builder.add("Softmax", builder.conv("images", (4, 4)), axis=1)
    moved = builder.add("Transpose", bins, perm=[0, 1, 3, 2])
    graph = builder.graph(builder.conv(moved, (4, 1)))
    assert [layer.input for layer in find_layers(graph)] == ["images"]


def test_products_of_attention_are_no_layers_but_its_linear_ones_are() -> None:
    builder = GraphBuilder((1, 16, 8))
    weight = builder.constant(np.eye(8, dtype=np.float32))
    query = builder.add("MatMul", "images", weight)
    key = builder.add("MatMul", "images", builder.constant(2 * np.eye(8, dtype=np.float32)))
    product = builder.add("MatMul", query, builder.add("Transpose", key, perm=[0, 2, 1]))
    layers = find_layers(builder.graph(product))
    assert {(layer.name, layer.channel_axis) for layer in layers} == {(query, 1), (key, 1)}


def test_gemm_has_its_channels_where_its_weights_say() -> None:
    builder = GraphBuilder((2, 8))
    weight = builder.constant(np.ones((4, 8), np.float32))
    last = builder.add("Gemm", "images", weight, transB=1)
    assert [layer.channel_axis for layer in find_layers(builder.graph(last))] == [0]


def test_layer_left_float_reads_the_float_tensor() -> None:
    builder = GraphBuilder(SHAPE)
    relu = builder.add("Relu", builder.conv("images", (4, 4)))
    one, other = builder.conv(relu, (4, 4)), builder.conv(relu, (4, 4))
    graph = builder.graph(builder.add("Add", one, other))
    int8 = [layer for layer in find_layers(graph) if layer.name != other]
    model = write_qdq(graph, place(graph, int8), {"images": 0.1, relu: 0.1})
    inputs = {node.name: node.input[0] for node in model.graph.node}
    assert (inputs[one], inputs[other]) == (f"{relu}:dq", relu)


STEPS = ("conv", "depthwise", "relu", "silu", "add", "concat", "pool", "resize", "slice")


@st.composite
def networks(draw: st.DrawFn) -> FloatGraph:
    """A chain of common blocks, some of which look back at earlier tensors of the same shape."""
    builder = GraphBuilder(SHAPE, seed=draw(st.integers(0, 99)))
    tensors = [builder.add("Relu", builder.conv("images", (4, 4), 3))]
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8)):
        source = tensors[-1]
        other = tensors[draw(st.integers(0, len(tensors) - 1))]
        tensors.append(_block(builder, step, source, other))
    return builder.graph(builder.add("Sigmoid", builder.conv(tensors[-1], (4, 2))))


def _block(builder: GraphBuilder, step: str, source: str, other: str) -> str:
    match step:
        case "conv" | "depthwise":
            return builder.conv(source, (4, 4), 3, group=4 if step == "depthwise" else 1)
        case "relu":
            return builder.add("Relu", source)
        case "silu":
            return builder.silu(builder.conv(source, (4, 4)))
        case "add":
            return builder.add("Add", source, other)
        case "concat":
            return builder.conv(builder.add("Concat", source, other, axis=1), (8, 4))
        case "pool":
            pads = {"pads": [1, 1, 1, 1], "strides": [1, 1]}
            return builder.add("MaxPool", source, kernel_shape=[3, 3], **pads)
        case "resize":
            double = builder.constant(np.array([1, 1, 2, 2], np.float32))
            pooled = builder.add("MaxPool", source, kernel_shape=[2, 2], strides=[2, 2])
            return builder.add("Resize", pooled, "", double, mode="nearest")
        case _:
            numbers = [builder.constant(np.array([value])) for value in (0, 8, 2)]
            return builder.add("Slice", source, *numbers)


def written(graph: FloatGraph, placement: Placement, scale: float) -> onnx.ModelProto:
    return write_qdq(graph, placement, dict.fromkeys(placement.members(), scale))


@settings(max_examples=40)
@given(networks())
def test_any_network_keeps_the_rules_of_explicit_quantisation(graph: FloatGraph) -> None:
    layers = find_layers(graph)
    model = written(graph, place(graph, layers), 0.02)
    quantised = FloatGraph(model)
    kinds = {name: node.op_type for name, node in quantised.producers.items()}
    for layer in layers:
        node = quantised.producers[layer.output]
        assert [kinds.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2
        assert node.input[2] in quantised.constants, "a bias stays float"
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert kinds.get(node.input[0]) != "Sigmoid", "never inside a SiLU"
            assert kinds.get(node.input[0]) != "DequantizeLinear"


@settings(max_examples=40)
@given(networks())
def test_any_op_that_moves_int8_values_has_one_scale_before_and_behind(graph: FloatGraph) -> None:
    placement = place(graph, find_layers(graph))
    for node in graph.nodes:
        moves = node.op_type in (*MOVING_OPS, "Concat")
        sources = node.input if node.op_type == "Concat" else node.input[:1]
        if moves and node.output[0] in placement.groups:
            assert same_group(placement, node.output[0], *sources)


@settings(max_examples=25)
@given(networks())
def test_any_network_computes_nearly_what_float_does(graph: FloatGraph) -> None:
    images = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    layers = find_layers(graph)
    groups = place(graph, layers).groups
    histograms = collect_histograms(graph, list(groups), [images])
    model = calibrated(graph, layers, histograms, "minmax").build(())
    first, second = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"images": images}
        )[0]
        for m in (graph.model, model)
    )
    assert first.shape == second.shape
    assert np.abs(first - second).mean() < 0.1
