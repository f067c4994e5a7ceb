"""Channels of a convolution's input made alike, so that one scale fits them all.

Depthwise networks (YOLOX-Nano, MobileNets) leave tensors in which one channel reaches a hundred
times as far as another, and a SiLU one whose values lie on one side of zero. Symmetric INT8 has one
scale a tensor: small channels are rounded away, and half the range stays empty. Cross-layer
equalisation (Nagel et al., ICCV 2019) folds a factor a channel into the layer before, which a ReLU
allows and a SiLU does not. So it stands in the graph here: a convolution reads
``(x - middle) * factor`` in place of ``x``, and its weights and bias take that back. In float the
network computes what it did.

* A depthwise convolution has a weight scale for each channel: the factor costs nothing there.
* A dense one shares the difficulty between its input and its weights, as SmoothQuant does.
* A middle is taken off only where nothing is padded: zeros of the padding would move as well.

The price is a multiplication and a subtraction for each tensor, in float before it is quantised,
and concats that no longer pass INT8 on. So this is for models that lose too much without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge_perception.quantization.int8.collection import run_tensors
from edge_perception.quantization.int8.graph import (
    Array,
    FloatGraph,
    drop_unread_constants,
    insert_nodes,
)
from edge_perception.quantization.int8.placement import find_layers
from edge_perception.quantization.int8.smoothing import smoothing_scales

_ALPHA = 0.5  # of SmoothQuant, as its paper has it
_LEAST_REACH = 2.0**-10  # of a channel, as a share of the tensor's; a dead one may wake up


@dataclass(frozen=True)
class _Family:
    """Convolutions of one kind that read one tensor, and how their reading is evened out.

    ``factor`` and ``middle`` are float ``(C,)``.
    """

    tensor: str
    depthwise: bool
    convs: tuple[onnx.NodeProto, ...]
    factor: Array
    middle: Array

    @property
    def output(self) -> str:
        """What the names of new tensors begin with."""
        return f"{self.tensor}:even_{'depthwise' if self.depthwise else 'dense'}"

    def steps(self) -> list[tuple[str, Array]]:
        """The operators that even the tensor out, each with its second input."""
        steps = [("Mul", self.factor)]
        return [*steps, ("Sub", self.middle * self.factor)] if self.middle.any() else steps


def equalise(graph: FloatGraph, frames: Iterable[Array]) -> tuple[FloatGraph, int]:
    """Return the graph with its convolutions' inputs evened out, and how many inputs those are.

    The result computes what ``graph`` does. Factors and middles come from the reach of each channel
    on ``frames``. Convolutions in groups of several channels are left alone.
    """
    readers = _readers(graph)
    if not readers:
        return graph, 0
    ranges = _channel_ranges(graph, sorted({tensor for tensor, _ in readers}), frames)
    families = [
        _family(graph, tensor, depthwise, convs, *ranges[tensor])
        for (tensor, depthwise), convs in readers.items()
    ]
    return FloatGraph(_rewritten(graph, families)), len(families)


def _readers(graph: FloatGraph) -> dict[tuple[str, bool], list[onnx.NodeProto]]:
    """Convolutions by the tensor they read and whether they are depthwise."""
    found: dict[tuple[str, bool], list[onnx.NodeProto]] = {}
    for layer in find_layers(graph):
        node = graph.producers[layer.output]
        groups = _integers(node, "group", [1])[0]
        bias = node.input[2] if len(node.input) > 2 else ""
        known = not bias or bias in graph.constants
        if layer.op_type == "Conv" and known and groups in (1, graph.shape(layer.input)[1]):
            found.setdefault((layer.input, groups > 1), []).append(node)
    return found


def _channel_ranges(
    graph: FloatGraph, tensors: Sequence[str], frames: Iterable[Array]
) -> dict[str, tuple[Array, Array]]:
    """The least and the largest value of each channel, ``(C,)`` each."""
    ranges: dict[str, tuple[Array, Array]] = {}
    for values in run_tensors(graph.model, tensors, frames):
        for name in tensors:
            rows = np.moveaxis(values[name], 1, 0).reshape(values[name].shape[1], -1)
            least, most = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = np.minimum(least, rows.min(1)), np.maximum(most, rows.max(1))
    return ranges


def _family(
    graph: FloatGraph,
    tensor: str,
    depthwise: bool,
    convs: Sequence[onnx.NodeProto],
    least: Array,
    most: Array,
) -> _Family:
    reach = np.maximum(np.abs(least), np.abs(most)).astype(np.float64)
    reach = np.maximum(reach, max(float(reach.max()) * _LEAST_REACH, 1e-6))
    padded = any(any(_integers(node, "pads", [0])) or _pads_itself(node) for node in convs)
    middle = np.zeros_like(reach) if padded else (least + most).astype(np.float64) / 2
    if depthwise:
        factor = 1 / reach
    else:
        weights = [graph.constants[node.input[1]] for node in convs]
        rows = [np.abs(each).reshape(*each.shape[:2], -1).max(axis=2).T for each in weights]
        factor = 1 / smoothing_scales(rows, reach, _ALPHA)
    return _Family(tensor, depthwise, tuple(convs), factor, middle)


def _rewritten(graph: FloatGraph, families: Sequence[_Family]) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = {node.name: node for node in model.graph.node}
    after: dict[str, list[onnx.NodeProto]] = {}
    constants: dict[str, Array] = {}
    for family in families:
        sides = (1, -1, *[1] * (len(graph.shape(family.tensor)) - 2))
        read = family.tensor
        for op_type, values in family.steps():
            output = f"{family.output}:{op_type.lower()}"
            constants[f"{output}:constant"] = values.reshape(sides)
            node = helper.make_node(op_type, [read, f"{output}:constant"], [output], name=output)
            after.setdefault(family.tensor, []).append(node)
            read = output
        for conv in family.convs:
            own = [f"{conv.name}:even{index}" for index in (1, 2)]
            constants |= zip(own, _refitted(graph, conv, family), strict=True)
            nodes[conv.name].input[:] = [read, *own]
    model.graph.initializer.extend(
        numpy_helper.from_array(values.astype(np.float32), name)
        for name, values in constants.items()
    )
    first = [node for name in graph.inputs for node in after.pop(name, [])]
    insert_nodes(model.graph, first, after)
    drop_unread_constants(model.graph)
    return onnx.shape_inference.infer_shapes(model)


def _refitted(graph: FloatGraph, conv: onnx.NodeProto, family: _Family) -> tuple[Array, Array]:
    """Weight and bias of a convolution that reads what is evened out."""
    weight = graph.constants[conv.input[1]].astype(np.float64)
    bias = graph.constants[conv.input[2]] if len(conv.input) > 2 and conv.input[2] else 0.0
    middles, factors = (_of_filters(v, weight, family) for v in (family.middle, family.factor))
    sums = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
    kernel = (1,) * (weight.ndim - 2)
    return weight / factors.reshape(*factors.shape, *kernel), bias + (sums * middles).sum(axis=1)


def _of_filters(values: Array, weight: Array, family: _Family) -> Array:
    """Values of input channels as the filters meet them, broadcastable to ``weight.shape[:2]``."""
    if family.depthwise:
        return np.repeat(values, len(weight) // len(values))[:, None]
    return values[None, :]


def _integers(node: onnx.NodeProto, name: str, default: Sequence[int]) -> Sequence[int]:
    """An attribute's integers, one or several."""
    attributes: Mapping[str, onnx.AttributeProto] = {entry.name: entry for entry in node.attribute}
    if name not in attributes:
        return default
    return list(attributes[name].ints) or [attributes[name].i]


def _pads_itself(node: onnx.NodeProto) -> bool:
    """Whether a convolution chooses its padding by ``auto_pad``."""
    modes = [entry.s for entry in node.attribute if entry.name == "auto_pad"]
    return modes not in ([], [b"NOTSET"], [b"VALID"])
