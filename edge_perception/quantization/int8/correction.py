"""Bias correction: what quantising a layer shifts on average, its bias takes back.

Rounding and clipping do not cancel out: they shift the mean of each output channel, and the shifts
add up through a network until scores fall below the threshold. As biases stay float, a shift that
is known costs nothing to undo (Nagel et al., "Data-Free Quantization through Weight Equalization
and Bias Correction", ICCV 2019, the empirical kind).

Each layer is corrected for its *own* error: beside the float layer runs a quantised twin, both fed
with float inputs, in one graph and one pass over the frames. Correcting for the whole error so far
would need a pass a layer; doing that for all layers at once counts every shift again in each layer
behind it, and diverges (tried on YOLOX-Nano).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from edge_perception.quantization.int8.collection import run_tensors
from edge_perception.quantization.int8.graph import Array, FloatGraph
from edge_perception.quantization.int8.placement import Layer, Placement
from edge_perception.quantization.int8.qdq import write_qdq

_TWIN = ":twin"


def corrected_biases(
    graph: FloatGraph,
    placement: Placement,
    scales: Mapping[str, float],
    frames: Iterable[Array],
) -> dict[str, Array]:
    """Return new values for the biases of the placement's convolutions, float32 by name.

    A layer without a bias, or whose bias another layer shares, is left alone.
    """
    layers = [layer for layer in placement.layers if _bias(graph, layer)]
    model = _with_twins(graph, placement, scales, layers)
    tensors = [name for layer in layers for name in (layer.output, layer.output + _TWIN)]
    shifts = {layer.name: np.zeros(1) for layer in layers}
    count = 0
    for values in run_tensors(model, tensors, frames):
        for layer in layers:
            error = values[layer.output + _TWIN] - values[layer.output]
            shifts[layer.name] = shifts[layer.name] + error.mean(axis=(0, 2, 3), dtype=np.float64)
        count += 1
    biases = {layer.name: _bias(graph, layer) for layer in layers}
    return {
        biases[layer.name]: _shifted(
            graph.constants[biases[layer.name]], shifts[layer.name] / max(count, 1)
        )
        for layer in layers
    }


def _shifted(bias: Array, shift: Array) -> Array:
    return np.asarray(bias - shift, np.float32)


def _bias(graph: FloatGraph, layer: Layer) -> str:
    """The name of a convolution's own bias; empty where there is none."""
    node = graph.producers[layer.output]
    if node.op_type != "Conv" or len(node.input) < 3 or len(graph.readers[node.input[2]]) > 1:
        return ""
    return node.input[2] if node.input[2] in graph.constants else ""


def _with_twins(
    graph: FloatGraph, placement: Placement, scales: Mapping[str, float], layers: Iterable[Layer]
) -> onnx.ModelProto:
    """The float graph with a quantised copy of each layer that reads the same float tensor."""
    quantised = write_qdq(graph, placement, scales)
    nodes = {node.name: node for node in quantised.graph.node}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    known = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(t for t in quantised.graph.initializer if t.name not in known)
    pairs = ("QuantizeLinear", "DequantizeLinear")
    model.graph.node.extend(n for n in quantised.graph.node if n.op_type in pairs)
    for layer in layers:
        twin = onnx.NodeProto()
        twin.CopyFrom(nodes[layer.name])
        twin.name += _TWIN
        twin.output[0] += _TWIN
        model.graph.node.append(twin)
    return model
