"""Multiply-accumulates of a graph, and the share of them that INT8 layers do."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from edge_perception.quantization.int8.graph import FloatGraph


def count_macs(graph: FloatGraph) -> dict[str, int]:
    """Return the multiply-accumulates of every node that has any, by its name.

    Convolutions and matrix products count, those of attention (no constant weights) too; bias,
    activations and the rest are not multiply-accumulates of note. One image, batch as exported.
    """
    counts = {node.name: _macs(graph, node) for node in graph.nodes}
    return {name: macs for name, macs in counts.items() if macs}


def share_in_int8(model: onnx.ModelProto) -> float:
    """Return the share, 0..1, of a Q/DQ model's multiply-accumulates that run in INT8.

    Of any quantiser's model: a node counts if both its factors come from a ``DequantizeLinear``.
    """
    graph = FloatGraph(onnx.shape_inference.infer_shapes(model))
    int8 = {
        node.name
        for node in graph.nodes
        if len(node.input) > 1 and all(_is_dequantised(graph, name) for name in node.input[:2])
    }
    return int8_mac_share(count_macs(graph), int8)


def int8_mac_share(macs: Mapping[str, int], int8_layers: set[str]) -> float:
    """Return the share, 0..1, of all multiply-accumulates that are done by ``int8_layers``."""
    total = sum(macs.values())
    return sum(macs.get(name, 0) for name in int8_layers) / total if total else 0.0


def _macs(graph: FloatGraph, node: onnx.NodeProto) -> int:
    if node.op_type in ("Conv", "ConvTranspose"):
        # Each output (Conv) or input (ConvTranspose) element meets one filter's weights.
        weight = graph.shape(node.input[1])
        elements = graph.shape(node.output[0] if node.op_type == "Conv" else node.input[0])
        return math.prod(elements) * math.prod(weight[1:])
    if node.op_type in ("MatMul", "Gemm"):
        inner = graph.shape(node.input[0])
        transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
        return math.prod(graph.shape(node.output[0])) * (inner[0 if transposed else -1])
    return 0


def _is_dequantised(graph: FloatGraph, tensor: str) -> bool:
    producer = graph.producers.get(tensor)
    return producer is not None and producer.op_type == "DequantizeLinear"
