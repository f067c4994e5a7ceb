"""SmoothQuant for ONNX transformers: a layer norm's outliers folded into the linear layers behind.

A few channels of a ViT's layer norms are a hundred times as large as the rest, and one scale a
tensor rounds the rest away. Dividing the norm's gain and offset by s_j and multiplying the linear
layers' rows by it changes nothing in float and evens the channels out (Xiao et al., ICML 2023).
The algebra is that of ``quantization/smoothquant.py``, here in NumPy on a graph: the set-up that
runs detectors has no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from edge_perception.quantization.int8.collection import run_tensors
from edge_perception.quantization.int8.graph import Array, FloatGraph, drop_unread_constants
from edge_perception.quantization.int8.placement import Layer, Reader, find_layers

_LEAST = 1e-5
_CONSTANT = onnx.helper.make_attribute("mode", "constant")  # Pad's default


@dataclass(frozen=True)
class FoldableNorm:
    """A layer norm whose output only linear layers read, at once or cut into windows.

    ``vectors`` are where its gain and offset are read: a node's name and which of its inputs.
    """

    output: str
    vectors: tuple[Reader, ...]
    layers: tuple[Layer, ...]


def find_foldable_norms(graph: FloatGraph) -> list[FoldableNorm]:
    """Return the layer norms, whole or as the arithmetic they were exported to, that can fold."""
    layers = {layer.name: layer for layer in find_layers(graph)}
    found = []
    for node in graph.nodes:
        vectors = _gain_and_offset(graph, node)
        readers = list(_readers_by_channel(graph, node.output[0])) if vectors else []
        linear = [layers.get(reader.name) for reader, index in readers if index == 0]
        folds = [layer for layer in linear if layer and layer.op_type in ("MatMul", "Gemm")]
        inner = node.output[0] not in graph.outputs
        if folds and len(folds) == len(readers) and inner:
            found.append(FoldableNorm(node.output[0], vectors, tuple(folds)))
    return found


def smooth(graph: FloatGraph, frames: Iterable[Array], alpha: float) -> tuple[FloatGraph, int]:
    """Return the graph with every foldable norm folded, and how many there were.

    The result computes what ``graph`` does. ``alpha`` (0..1) is the share of the difficulty that
    moves from activations into weights; the paper's is 0.5.
    """
    norms = find_foldable_norms(graph)
    if not norms:
        return graph, 0
    reach = _channel_maxima(graph, [norm.output for norm in norms], frames)
    nodes = {node.name: node for node in graph.nodes}
    changed: dict[Reader, Array] = {}
    for norm in norms:
        weights = [_rows_by_input(graph, layer) for layer in norm.layers]
        scales = smoothing_scales(weights, reach[norm.output], alpha)
        for name, index in norm.vectors:
            changed[name, index] = graph.constants[nodes[name].input[index]] / scales
        for layer in norm.layers:
            factor = scales[:, None] if layer.channel_axis == 1 else scales[None, :]
            changed[layer.name, 1] = graph.constants[layer.weight] * factor
    return FloatGraph(_with_constants(graph, changed)), len(norms)


def smoothing_scales(weights: Sequence[Array], reach: Array, alpha: float) -> Array:
    """Return s ``(K,)`` = reach^alpha / max|W|^(1-alpha), of weights ``(K, N)``."""
    rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    inputs = np.maximum(reach, _LEAST) ** alpha
    return np.maximum(inputs / np.maximum(rows, _LEAST) ** (1 - alpha), _LEAST)


def _gain_and_offset(graph: FloatGraph, node: onnx.NodeProto) -> tuple[Reader, ...]:
    """Where constants scale and shift a norm's last axis, if ``node`` ends a layer norm."""
    if node.op_type == "LayerNormalization":
        readers = [(node.name, index) for index, name in enumerate(node.input) if index and name]
        constant = all(name in graph.constants for name in node.input[1:] if name)
        return tuple(readers) if constant else ()
    offset = _vector(graph, node, "Add")
    if offset is None:
        return ()
    product = graph.producers.get(node.input[1 - offset[1]])
    gain = None if product is None else _vector(graph, product, "Mul")
    if product is None or gain is None or len(graph.readers[product.output[0]]) > 1:
        return ()
    return (gain, offset)


def _readers_by_channel(graph: FloatGraph, tensor: str) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Yield what reads a tensor, seen through nodes that leave its last axis as it is.

    Attention in windows (Swin, ViTDet) pads, cuts and moves tokens between norm and layer.
    """
    for reader, index in graph.readers[tensor]:
        if index == 0 and _keeps_channels(graph, reader):
            yield from _readers_by_channel(graph, reader.output[0])
        else:
            yield reader, index


def _keeps_channels(graph: FloatGraph, node: onnx.NodeProto) -> bool:
    """Whether a node only moves a tensor's last axis as a whole, or adds zeros beside it."""
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    if not before or not after or before[-1] != after[-1] or node.output[0] in graph.outputs:
        return False
    attributes = {entry.name: entry for entry in node.attribute}
    if node.op_type == "Transpose":
        return "perm" in attributes and attributes["perm"].ints[-1] == len(before) - 1
    if node.op_type == "Pad":
        zeros = len(node.input) < 3 or not node.input[2] or not graph.constants[node.input[2]].any()
        return zeros and attributes.get("mode", _CONSTANT).s == b"constant"
    return node.op_type == "Reshape"


def _vector(graph: FloatGraph, node: onnx.NodeProto, op_type: str) -> Reader | None:
    """Where a node of two inputs reads its one constant, if that is a vector."""
    if node.op_type != op_type:
        return None
    found = [index for index, name in enumerate(node.input) if name in graph.constants]
    if len(found) != 1 or graph.constants[node.input[found[0]]].ndim != 1:
        return None
    return node.name, found[0]


def _rows_by_input(graph: FloatGraph, layer: Layer) -> Array:
    weight = graph.constants[layer.weight]
    return weight if layer.channel_axis == 1 else weight.T


def _channel_maxima(
    graph: FloatGraph, tensors: Sequence[str], frames: Iterable[Array]
) -> dict[str, Array]:
    maxima: dict[str, Array] = {}
    for values in run_tensors(graph.model, tensors, frames):
        for name in tensors:
            tokens = np.abs(values[name]).reshape(-1, values[name].shape[-1])
            maxima[name] = np.maximum(maxima.get(name, 0.0), tokens.max(axis=0))
    return maxima


def _with_constants(graph: FloatGraph, changed: Mapping[Reader, Array]) -> onnx.ModelProto:
    """Give each reader a constant of its own: exporters store equal ones once."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = {node.name: node for node in model.graph.node}
    for (name, index), values in changed.items():
        own = f"{name}:smoothed{index}"
        nodes[name].input[index] = own
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), own))
    drop_unread_constants(model.graph)
    return model
