"""Everything known of a model after calibration, from which any mixture of layers can be built."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import onnx

from edge_perception.errors import QuantizationError
from edge_perception.quantization.int8.calibrators import Histogram, merged, scale_of
from edge_perception.quantization.int8.correction import corrected_biases
from edge_perception.quantization.int8.graph import Array, FloatGraph
from edge_perception.quantization.int8.macs import count_macs, int8_mac_share
from edge_perception.quantization.int8.placement import MOVING_OPS, Layer, Placement, place
from edge_perception.quantization.int8.qdq import write_qdq


@dataclass(frozen=True)
class Calibrated:
    """A float graph with the histograms of its tensors and its corrected biases."""

    graph: FloatGraph
    layers: tuple[Layer, ...]
    macs: Mapping[str, int]
    histograms: Mapping[str, Histogram]
    calibrator: str
    biases: Mapping[str, Array]

    def placement(self, float_layers: Collection[str]) -> Placement:
        """Where Q/DQ pairs go if ``float_layers`` stay float."""
        return place(self.graph, [each for each in self.layers if each.name not in float_layers])

    def scales(self, placement: Placement) -> dict[str, float]:
        """The scale of each group of a placement."""
        return {
            group: scale_of(merged([self.histograms[name] for name in tensors]), self.calibrator)
            for group, tensors in placement.members().items()
        }

    def build(self, float_layers: Collection[str], *, compact: bool = False) -> onnx.ModelProto:
        """The Q/DQ model in which all layers but ``float_layers`` compute in INT8."""
        placement = self.placement(float_layers)
        quantised = {layer.output for layer in placement.layers}
        biases = {
            node.input[2]: self.biases[node.input[2]]
            for node in (self.graph.producers[name] for name in quantised)
            if len(node.input) > 2 and node.input[2] in self.biases
        }
        scales = self.scales(placement)
        return write_qdq(self.graph, placement, scales, replaced=biases, compact=compact)

    def share(self, float_layers: Collection[str]) -> float:
        """The share of multiply-accumulates in INT8, 0..1."""
        int8 = {layer.name for layer in self.layers} - set(float_layers)
        return int8_mac_share(self.macs, int8)

    def with_biases(self, tensors: Iterable[Array]) -> Calibrated:
        """The same with the biases corrected for all layers' errors on input ``tensors``."""
        placement = self.placement(())
        biases = corrected_biases(self.graph, placement, self.scales(placement), tensors)
        return replace(self, biases=biases)


def calibrated(
    graph: FloatGraph,
    layers: tuple[Layer, ...],
    histograms: Mapping[str, Histogram],
    calibrator: str,
) -> Calibrated:
    """Return a calibrated model whose biases are still its own."""
    return Calibrated(graph, layers, count_macs(graph), histograms, calibrator, {})


def edge_layers(graph: FloatGraph, layers: Sequence[Layer]) -> list[str]:
    """Return the layers where the network meets the world: those that predict, then those that see.

    Predicting layers have no other layer behind them; their outputs are scores and boxes. Seeing
    layers read the picture itself, whose 256 values symmetric INT8 halves.
    """
    names = {layer.name for layer in layers}
    leads_on: dict[str, bool] = {}
    for node in reversed(graph.nodes):
        readers = [reader.name for name in node.output for reader, _ in graph.readers[name]]
        leads_on[node.name] = any(name in names or leads_on[name] for name in readers)
    predicting = [layer.name for layer in layers if not leads_on[layer.name]]
    seeing = [layer.name for layer in layers if _origin(graph, layer.input) in graph.inputs]
    return list(dict.fromkeys([*predicting, *seeing]))


def matching_layers(layers: Sequence[Layer], patterns: Sequence[str]) -> list[str]:
    """Return the layers whose names match shell patterns.

    Raises:
        QuantizationError: a pattern matches none.
    """
    found = []
    for pattern in patterns:
        matches = [layer.name for layer in layers if fnmatchcase(layer.name, pattern)]
        if not matches:
            raise QuantizationError(
                "no layer has such a name",
                expected=f"a pattern for one of {', '.join(each.name for each in layers[:8])}, ...",
                got=pattern,
            )
        found += matches
    return list(dict.fromkeys(found))


def _origin(graph: FloatGraph, tensor: str) -> str:
    """The tensor whose values ``tensor`` has: moved, joined, or scaled and shifted by constants."""
    producer = graph.producers.get(tensor)
    while producer is not None and _passes_on(graph, producer):
        tensor = producer.input[0]
        producer = graph.producers.get(tensor)
    return tensor


def _passes_on(graph: FloatGraph, node: onnx.NodeProto) -> bool:
    if node.op_type in ("Mul", "Sub"):  # normalisation; a SiLU's product has no constant
        return all(name in graph.constants for name in node.input[1:])
    return node.op_type in (*MOVING_OPS, "Concat", "Cast")
