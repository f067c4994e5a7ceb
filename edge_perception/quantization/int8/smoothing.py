"""SmoothQuant for ONNX transformers: a layer norm's outliers folded into the linear layers behind.

A few channels of a ViT's layer norms are a hundred times as large as the rest, and one scale a
tensor rounds the rest away. Dividing the norm's gain and offset by s_j and multiplying the linear
layers' rows by it changes nothing in float and evens the channels out (Xiao et al., ICML 2023).
The algebra is that of ``quantization/smoothquant.py``, here in NumPy on a graph: the set-up that
runs detectors has no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from edge_perception.quantization.int8.collection import run_tensors
from edge_perception.quantization.int8.graph import Array, FloatGraph
from edge_perception.quantization.int8.placement import Layer, find_layers

_LEAST = 1e-5


@dataclass(frozen=True)
class FoldableNorm:
    """A layer norm whose output only linear layers read; ``vectors`` are its gain and offset."""

    output: str
    vectors: tuple[str, ...]
    layers: tuple[Layer, ...]


def find_foldable_norms(graph: FloatGraph) -> list[FoldableNorm]:
    """Return the layer norms, whole or as the arithmetic they were exported to, that can fold."""
    layers = {layer.name: layer for layer in find_layers(graph)}
    found = []
    for node in graph.nodes:
        vectors = _gain_and_offset(graph, node)
        readers = graph.readers[node.output[0]] if vectors else []
        linear = [layers.get(reader.name) for reader, index in readers if index == 0]
        folds = [layer for layer in linear if layer and _is_linear(graph, layer)]
        shared = any(len(graph.readers[name]) > 1 for name in vectors)
        inner = node.output[0] not in graph.outputs
        if folds and len(folds) == len(readers) and inner and not shared:
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
    constants = dict(graph.constants)
    for norm in norms:
        weights = [_rows_by_input(layer, constants) for layer in norm.layers]
        scales = smoothing_scales(weights, reach[norm.output], alpha)
        for name in norm.vectors:
            constants[name] = (constants[name] / scales).astype(np.float32)
        for layer in {layer.weight: layer for layer in norm.layers}.values():
            factor = scales[:, None] if layer.channel_axis == 1 else scales[None, :]
            constants[layer.weight] = (constants[layer.weight] * factor).astype(np.float32)
    return FloatGraph(_with_constants(graph, constants)), len(norms)


def smoothing_scales(weights: Sequence[Array], reach: Array, alpha: float) -> Array:
    """Return s ``(K,)`` = reach^alpha / max|W|^(1-alpha), of weights ``(K, N)``."""
    rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    inputs = np.maximum(reach, _LEAST) ** alpha
    return np.maximum(inputs / np.maximum(rows, _LEAST) ** (1 - alpha), _LEAST)


def _gain_and_offset(graph: FloatGraph, node: onnx.NodeProto) -> tuple[str, ...]:
    """The constants that scale and shift a norm's last axis, if ``node`` ends a layer norm."""
    if node.op_type == "LayerNormalization":
        names = tuple(name for name in node.input[1:] if name)
        return names if all(name in graph.constants for name in names) else ()
    if node.op_type != "Add":
        return ()
    offset = [name for name in node.input if name in graph.constants]
    products = [graph.producers.get(name) for name in node.input if name not in offset]
    if len(offset) != 1 or len(products) != 1 or products[0] is None:
        return ()
    product = products[0]
    gain = [name for name in product.input if name in graph.constants]
    alone = len(graph.readers[product.output[0]]) == 1
    vectors = (*gain, *offset)
    if product.op_type != "Mul" or len(gain) != 1 or not alone:
        return ()
    return vectors if all(graph.constants[name].ndim == 1 for name in vectors) else ()


def _is_linear(graph: FloatGraph, layer: Layer) -> bool:
    """Whether a layer sums over the norm's last axis, with weights of its own."""
    return layer.op_type in ("MatMul", "Gemm") and len(graph.readers[layer.weight]) == 1


def _rows_by_input(layer: Layer, constants: dict[str, Array]) -> Array:
    weight = constants[layer.weight]
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


def _with_constants(graph: FloatGraph, constants: dict[str, Array]) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for index, tensor in enumerate(model.graph.initializer):
        if constants[tensor.name] is not graph.constants[tensor.name]:
            changed = numpy_helper.from_array(constants[tensor.name], tensor.name)
            model.graph.initializer[index].CopyFrom(changed)
    return model
