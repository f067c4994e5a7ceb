"""FP16 in the graph itself, for runtimes that obey the graph's types.

Inputs and outputs keep their types, Q/DQ nodes their place. ONNX allows FP16 scales of Q/DQ nodes
from opset 19 on, so that a quantised graph is lifted to that first. By ``onnxruntime``'s converter,
which cuts constants that FP16 cannot hold to its range.

ONNX Runtime itself is no oracle for the quantised result: where its QuantizeLinear gets FP16 it
cuts instead of rounding (1.23.2, CPU), and the demo detector's outputs come out five times as far
from float as they are. Of float graphs it is one.
"""

from __future__ import annotations

import warnings

import onnx
from onnx import version_converter

from edge_perception.errors import EngineError

_FP16_SCALES_OPSET = 19
_QUANTIZE = ("QuantizeLinear", "DequantizeLinear")


def to_half(model: bytes) -> bytes:
    """Return a serialised ONNX model with FP16 wherever it had float32, but at inputs and outputs.

    Raises:
        EngineError: no ONNX model, or one that cannot be converted.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    try:
        parsed = onnx.load_from_string(model)
    except Exception as error:  # protobuf's own class, by whichever of its versions
        raise EngineError(f"cannot load the ONNX model: {error}") from error
    if not parsed.graph.output:
        raise EngineError("cannot load the ONNX model: it is empty")
    try:
        if is_quantized(parsed) and _opset(parsed) < _FP16_SCALES_OPSET:
            parsed = version_converter.convert_version(parsed, _FP16_SCALES_OPSET)
        with warnings.catch_warnings():  # of each constant too small for FP16
            warnings.simplefilter("ignore")
            converted = convert_float_to_float16(parsed, keep_io_types=True)
        OnnxModel(converted).topological_sort()  # it puts its casts of inputs last
    except Exception as error:  # the converters': all of their own
        raise EngineError(
            f"the ONNX model cannot be converted to FP16: {error}",
            mend="Build with precision float32, or export the model in FP16.",
        ) from error
    return bytes(converted.SerializeToString())


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a model has Q/DQ nodes."""
    return any(node.op_type in _QUANTIZE for node in model.graph.node)


def _opset(model: onnx.ModelProto) -> int:
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
