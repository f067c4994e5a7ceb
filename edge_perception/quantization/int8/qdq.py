"""Writing Q/DQ pairs into a graph.

Weights stay float in the file, each with a Q/DQ pair of its own, because TensorRT before 10 takes
them no other way; ``compact`` stores them as INT8 with the DQ alone (a quarter of the size;
TensorRT 10 and later, and ONNX Runtime). Biases stay float: TensorRT refuses Q/DQ on INT32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edge_perception.quantization.int8.calibrators import LEVELS
from edge_perception.quantization.int8.graph import Array, FloatGraph, insert_nodes
from edge_perception.quantization.int8.placement import Layer, Placement

Float32Array = npt.NDArray[np.float32]

_LEAST_WEIGHT_SCALE = 1e-8


@dataclass(frozen=True)
class Pair:
    """A tensor's Q/DQ nodes and their constants."""

    output: str
    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]


def weight_scales(weight: Array, channel_axis: int) -> Float32Array:
    """Return the scale of each output channel: its largest magnitude is 127."""
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    reach = np.abs(weight).max(axis=others)
    return np.maximum(reach / LEVELS, _LEAST_WEIGHT_SCALE).astype(np.float32)


def write_qdq(
    graph: FloatGraph,
    placement: Placement,
    scales: Mapping[str, float],
    *,
    replaced: Mapping[str, Array] | None = None,
    compact: bool = False,
) -> onnx.ModelProto:
    """Return a copy of the graph with Q/DQ pairs.

    Args:
        graph: the float graph; not changed.
        placement: what is quantised.
        scales: a scale for each *group* of the placement.
        replaced: constants to write in place of the graph's own (corrected biases, say).
        compact: store weights as INT8.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    constants = {**graph.constants, **(replaced or {})}
    nodes = {node.name: node for node in model.graph.node}
    after: dict[str, list[onnx.NodeProto]] = {}
    added: list[onnx.TensorProto] = []
    outputs: dict[str, str] = {}
    for tensor, group in placement.groups.items():
        pair = _activation_pair(tensor, np.float32(scales[group]))
        after[tensor] = pair.nodes
        added += pair.constants
        outputs[tensor] = pair.output
    for name, index in sorted(placement.readers):
        nodes[name].input[index] = outputs[nodes[name].input[index]]
    first: list[onnx.NodeProto] = [n for name in graph.inputs for n in after.pop(name, [])]
    written: set[str] = set()
    for layer in placement.layers:
        output = f"{layer.weight}:dq{layer.channel_axis}"
        nodes[layer.name].input[1] = output
        if output not in written:
            written.add(output)
            pair = _weight_pair(layer, constants[layer.weight], output, compact=compact)
            first += pair.nodes
            added += pair.constants
    insert_nodes(model.graph, first, after)
    _write_constants(model.graph, added, replaced or {})
    onnx.checker.check_model(model)
    return model


def _activation_pair(tensor: str, scale: np.float32) -> Pair:
    names = [f"{tensor}:scale", f"{tensor}:zero_point"]
    constants = [
        numpy_helper.from_array(np.asarray(scale, np.float32), names[0]),
        numpy_helper.from_array(np.asarray(0, np.int8), names[1]),
    ]
    quantised, output = f"{tensor}:q", f"{tensor}:dq"
    nodes = [
        helper.make_node("QuantizeLinear", [tensor, *names], [quantised], name=quantised),
        helper.make_node("DequantizeLinear", [quantised, *names], [output], name=output),
    ]
    return Pair(output, nodes, constants)


def _weight_pair(layer: Layer, weight: Array, output: str, *, compact: bool) -> Pair:
    scales = weight_scales(weight, layer.channel_axis)
    names = [f"{output}:scale", f"{output}:zero_point"]
    constants = [
        numpy_helper.from_array(scales, names[0]),
        numpy_helper.from_array(np.zeros(len(scales), np.int8), names[1]),
    ]
    source, quantised = layer.weight, f"{output}:q"
    nodes = []
    if compact:
        constants.append(numpy_helper.from_array(_to_int8(weight, scales, layer), quantised))
    else:
        nodes.append(
            helper.make_node(
                "QuantizeLinear",
                [source, *names],
                [quantised],
                name=quantised,
                axis=layer.channel_axis,
            )
        )
    nodes.append(
        helper.make_node(
            "DequantizeLinear", [quantised, *names], [output], name=output, axis=layer.channel_axis
        )
    )
    return Pair(output, nodes, constants)


def _to_int8(weight: Array, scales: Float32Array, layer: Layer) -> npt.NDArray[np.int8]:
    shape = [1] * weight.ndim
    shape[layer.channel_axis] = -1
    steps = np.rint(weight / scales.reshape(shape))
    return np.clip(steps, -LEVELS - 1, LEVELS).astype(np.int8)


def _write_constants(
    graph: onnx.GraphProto, added: list[onnx.TensorProto], replaced: Mapping[str, Array]
) -> None:
    """Add constants, exchange the replaced ones, and drop those nothing reads any more."""
    read = {name for node in graph.node for name in node.input}
    kept = [
        numpy_helper.from_array(replaced[tensor.name], tensor.name)
        if tensor.name in replaced
        else onnx.TensorProto.FromString(tensor.SerializeToString())
        for tensor in graph.initializer
        if tensor.name in read
    ]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *added])
