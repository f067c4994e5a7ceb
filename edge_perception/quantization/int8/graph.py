"""A float ONNX graph made ready to be quantised, and questions about its tensors.

"Ready" means: constants folded, batch norms in their convolutions, every shape known, every node
named, and an opset whose ``DequantizeLinear`` knows channels (13). ONNX Runtime's and onnx's own
passes do that work; here are only the checks and their errors.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from edge_perception.errors import QuantizationError

Array = npt.NDArray[Any]

# DequantizeLinear has an axis since opset 13; 17 is the newest that TensorRT 8.5 reads.
LEAST_OPSET = 13
NEWEST_OPSET = 22
_CONVERTIBLE_FROM = 7
_QUANTISED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
)
# What multiplies and accumulates.
ARITHMETIC_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Joins MatMul and Add of three-dimensional inputs by way of two reshapes; TensorRT fuses them as
# they are.
_UNWANTED_PASSES = ["MatMulAddFusion"]


class FloatGraph:
    """A prepared model and an index of it. ``model`` must not be changed; copy it first."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.nodes: Sequence[onnx.NodeProto] = graph.node
        self.constants: Mapping[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self.inputs = tuple(value.name for value in graph.input if value.name not in self.constants)
        self.outputs = tuple(value.name for value in graph.output)
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name:
                    self.readers[name].append((node, index))
        values = (*graph.input, *graph.value_info, *graph.output)
        self._shapes = {value.name: _sides(value) for value in values}

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return a tensor's sides; empty where shape inference found none."""
        if tensor in self.constants:
            return tuple(self.constants[tensor].shape)
        return self._shapes.get(tensor, ())

    def is_activation(self, tensor: str) -> bool:
        """Whether a tensor depends on the input: it is neither a constant nor left out."""
        return bool(tensor) and tensor not in self.constants


def load_float_graph(path: Path) -> FloatGraph:
    """Read a model and make it ready.

    Raises:
        QuantizationError: unreadable, quantised already, of an opset that cannot be converted, or
            with dynamic shapes.
    """
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's and onnx's errors have no common base
        raise QuantizationError(
            f"model {str(path)!r} cannot be read: {error}", expected="an ONNX file"
        ) from error
    _refuse_quantised(model, path)
    _refuse_dynamic_shapes(model.graph.input, path)
    ready = prepare(_with_channel_opset(model, path))
    _refuse_dynamic_shapes(ready.graph.output, path)
    graph = FloatGraph(ready)
    _refuse_unknown_shapes(graph, path)
    return graph


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants, infer shapes and name every node; the opset stays."""
    folded = _fold(model)
    used = {node.domain for node in folded.graph.node}
    imports = [entry for entry in folded.opset_import if entry.domain in used]
    del folded.opset_import[:]
    folded.opset_import.extend(imports)
    for node in folded.graph.node:
        node.name = node.name or f"{node.op_type}:{node.output[0]}"
    return onnx.shape_inference.infer_shapes(folded, data_prop=True)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX' own operators that a model uses; 0 if it names none."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return int(max(versions, default=0))


def insert_nodes(
    graph: onnx.GraphProto,
    first: Sequence[onnx.NodeProto],
    after: Mapping[str, Sequence[onnx.NodeProto]],
) -> None:
    """Put ``first`` in front, and nodes right ``after`` the tensors they read: ONNX wants that."""
    ordered = list(first)
    for node in graph.node:
        ordered.append(node)
        for tensor in node.output:
            ordered += after.get(tensor, [])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def drop_unread_constants(graph: onnx.GraphProto) -> None:
    """Remove the constants that no node reads."""
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def _with_channel_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    opset = opset_of(model)
    if not _CONVERTIBLE_FROM <= opset <= NEWEST_OPSET:
        raise QuantizationError(
            f"model {str(path)!r} has an unsupported opset",
            expected=f"{_CONVERTIBLE_FROM} to {NEWEST_OPSET}",
            got=opset,
            mend="Export the model again with opset 17.",
        )
    if opset >= LEAST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, LEAST_OPSET)
    except Exception as error:  # the converter raises whatever its C++ throws
        raise QuantizationError(
            f"model {str(path)!r} cannot be converted from opset {opset}: {error}",
            expected=f"opset {LEAST_OPSET} or newer",
            got=opset,
            mend="Export the model again with opset 17.",
        ) from error


def _refuse_quantised(model: onnx.ModelProto, path: Path) -> None:
    found = sorted(
        {
            node.op_type
            for node in model.graph.node
            if node.op_type in _QUANTISED_OPS or node.op_type.startswith("QLinear")
        }
    )
    if found:
        raise QuantizationError(
            f"model {str(path)!r} is quantised already",
            expected="a float model",
            got=found,
            mend="Start from the float export.",
        )


def _refuse_dynamic_shapes(values: Iterable[onnx.ValueInfoProto], path: Path) -> None:
    for value in values:
        sides = [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
            raise QuantizationError(
                f"tensor {value.name!r} of {str(path)!r} has a dynamic shape",
                expected="fixed sides",
                got=sides,
                mend="Export with static shapes, batch 1.",
            )


def _refuse_unknown_shapes(graph: FloatGraph, path: Path) -> None:
    for node in graph.nodes:
        tensors = (*node.input[:2], node.output[0])
        if node.op_type in ARITHMETIC_OPS and not all(_is_known(graph.shape(t)) for t in tensors):
            raise QuantizationError(
                f"shapes around {node.name!r} of {str(path)!r} cannot be inferred",
                expected="shapes that follow from the input's",
                got={name: graph.shape(name) for name in tensors},
                mend="Export with static shapes, or simplify the model first.",
            )


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let ONNX Runtime fold what does not depend on the input; its basic passes keep the opset."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_UNWANTED_PASSES,
            )
        except Exception as error:  # onnxruntime raises its own classes straight from Exception
            raise QuantizationError(f"ONNX Runtime cannot load the model: {error}") from error
        return onnx.load(options.optimized_model_filepath)


def _is_known(shape: tuple[int, ...]) -> bool:
    return bool(shape) and all(shape)


def _sides(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(int(side.dim_value) for side in value.type.tensor_type.shape.dim)
