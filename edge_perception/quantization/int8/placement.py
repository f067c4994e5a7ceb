"""Where Q/DQ pairs go: which layers compute in INT8, which tensors they read, which share a scale.

The idea: start from the layers, not from the tensors. Nearly all arithmetic is in convolutions and
matrix products with constant weights, and what TensorRT needs to run one in INT8 is a Q/DQ pair on
its input and one on its weights. So exactly the inputs of INT8 layers are quantised. That alone
gives the patterns that TensorRT fuses: a convolution's output is quantised after its ReLU, or
after the product of its SiLU and never between sigmoid and product, because that is what the next
layer reads; and what only the float tail reads (box decoding, the last sigmoid) stays float.

From there scales are carried backwards. Ops that only move or choose values (concat, slice, resize,
max pooling, ...) run in INT8 if their input and output have *one* scale, so all inputs and the
output of a concat form a group; a tensor in two groups joins them. Both branches of a residual sum
are quantised, except a convolution's bare output, which TensorRT sums up in the convolution's own
kernel. The sum's inputs keep scales of their own: every runtime rescales them in the addition, and
one shared scale would cost the finer branch its precision.

Left out: INT8 softmax, layer norm, GELU and the two products inside attention (no constant
weights): they are a small share of the arithmetic, and the first things to lose accuracy. The
price is a reformat at their borders.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx

from edge_perception.quantization.int8.graph import ARITHMETIC_OPS, FloatGraph

# Ops whose output has the values of their first input, moved, chosen or (resize) mixed.
MOVING_OPS = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Resize",
        "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample",
    }
)  # fmt: skip
_CLAMPS = frozenset({"Relu", "Clip"})
# What comes out of these are probabilities: a layer that reads them decodes (YOLOv8's DFL).
_DECODING_OPS = frozenset({"Softmax", "Sigmoid"})

Reader = tuple[str, int]  # a node's name and which of its inputs


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with constant weights.

    ``channel_axis`` is the weights' axis that the output's channels lie on.
    """

    name: str
    op_type: str
    input: str
    weight: str
    channel_axis: int
    output: str


@dataclass(frozen=True)
class Placement:
    """What is quantised.

    ``layers`` compute in INT8. ``groups`` maps each quantised tensor to the tensor that stands for
    its group: tensors of a group share a scale. ``readers`` see the quantised tensor; all others
    see the float one.
    """

    layers: tuple[Layer, ...]
    groups: Mapping[str, str]
    readers: frozenset[Reader]

    def members(self) -> dict[str, list[str]]:
        """Return the tensors of each group."""
        members: dict[str, list[str]] = {}
        for tensor, group in self.groups.items():
            members.setdefault(group, []).append(tensor)
        return members


def find_layers(graph: FloatGraph) -> tuple[Layer, ...]:
    """Return every layer that could compute in INT8, in the graph's order."""
    found = (_as_layer(graph, node) for node in graph.nodes)
    return tuple(layer for layer in found if layer is not None and not _decodes(graph, layer))


def place(graph: FloatGraph, layers: Collection[Layer]) -> Placement:
    """Decide where Q/DQ pairs go if exactly ``layers`` compute in INT8."""
    return _Placer(graph).run(tuple(layers))


def _as_layer(graph: FloatGraph, node: onnx.NodeProto) -> Layer | None:
    if node.op_type not in ARITHMETIC_OPS:
        return None
    data, weight = node.input[:2]
    if not graph.is_activation(data) or weight not in graph.constants:
        return None
    if node.op_type == "MatMul" and graph.constants[weight].ndim != 2:
        return None
    axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}.get(node.op_type)
    if axis is None:
        attributes = {entry.name: entry.i for entry in node.attribute}
        if attributes.get("transA"):
            return None
        axis = 0 if attributes.get("transB") else 1
    return Layer(node.name, node.op_type, data, weight, axis, node.output[0])


def _decodes(graph: FloatGraph, layer: Layer) -> bool:
    producer = graph.producers.get(layer.input)
    while producer is not None and producer.op_type in MOVING_OPS:
        producer = graph.producers.get(producer.input[0])
    return producer is not None and producer.op_type in _DECODING_OPS


class _Placer:
    """Carries quantisation backwards from the layers' inputs."""

    def __init__(self, graph: FloatGraph) -> None:
        self._graph = graph
        self._parents: dict[str, str] = {}
        self._readers: set[Reader] = set()

    def run(self, layers: tuple[Layer, ...]) -> Placement:
        for layer in layers:
            self._readers.add((layer.name, 0))
            self._quantise(layer.input)
        groups = {tensor: self._group(tensor) for tensor in sorted(self._parents)}
        return Placement(layers, groups, frozenset(self._readers))

    def _quantise(self, tensor: str) -> None:
        pending = [tensor]
        while pending:
            tensor = pending.pop()
            if tensor in self._parents:
                continue
            self._parents[tensor] = tensor
            producer = self._graph.producers.get(tensor)
            if producer is None:
                continue
            for index in self._sources(producer):
                source = producer.input[index]
                self._readers.add((producer.name, index))
                self._quantise(source)
                if producer.op_type != "Add":
                    self._join(source, tensor)
            pending += self._residuals(producer)

    def _sources(self, node: onnx.NodeProto) -> Iterator[int]:
        """The inputs of a node that are quantised because its output is."""
        if node.op_type == "Concat":
            for index, name in enumerate(node.input):
                if self._graph.is_activation(name):
                    yield index
        elif node.op_type in MOVING_OPS and self._graph.is_activation(node.input[0]):
            yield 0

    def _residuals(self, node: onnx.NodeProto) -> list[str]:
        """The branches of a residual sum that ends in ``node``, marked as read quantised."""
        if node.op_type in _CLAMPS:
            before = self._graph.producers.get(node.input[0])
            return [] if before is None else self._residuals(before)
        if node.op_type != "Add" or not all(map(self._graph.is_activation, node.input)):
            return []
        branches = []
        for index, name in enumerate(node.input):
            producer = self._graph.producers.get(name)
            fused = producer is not None and producer.op_type == "Conv"
            if not (fused and len(self._graph.readers[name]) == 1):
                self._readers.add((node.name, index))
                branches.append(name)
        return branches

    def _group(self, tensor: str) -> str:
        while self._parents[tensor] != tensor:
            tensor = self._parents[tensor]
        return tensor

    def _join(self, first: str, second: str) -> None:
        one, other = sorted((self._group(first), self._group(second)))
        self._parents[other] = one
