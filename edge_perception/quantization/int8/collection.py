"""Running the float model on the calibration frames and keeping what its tensors did."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import onnx
import onnxruntime
from onnx import helper

from edge_perception.quantization.int8.calibrators import Histogram
from edge_perception.quantization.int8.graph import Array, FloatGraph


def open_session(model: onnx.ModelProto, threads: int = 0) -> Any:
    """Return an ONNX Runtime session on the CPU; ``threads`` 0 means one a physical core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def with_outputs(model: onnx.ModelProto, tensors: Collection[str]) -> onnx.ModelProto:
    """Return a copy of a model that also gives the named inner tensors out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    already = {value.name for value in copy.graph.output}
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in tensors
        if name not in already
    )
    return copy


def run_tensors(
    model: onnx.ModelProto, tensors: Sequence[str], frames: Iterable[Array]
) -> Iterator[dict[str, Array]]:
    """Yield the named tensors' values on each frame; an input tensor is the frame itself."""
    inputs = [value.name for value in model.graph.input]
    inner = [name for name in tensors if name not in inputs]
    session = open_session(with_outputs(model, inner))
    for frame in frames:
        values = session.run(inner, {inputs[0]: frame}) if inner else []
        yield dict(zip(inner, values, strict=True)) | {inputs[0]: frame}


def collect_histograms(
    graph: FloatGraph,
    tensors: Sequence[str],
    frames: Iterable[Array],
) -> dict[str, Histogram]:
    """Return each tensor's histogram over all frames; memory is that of one frame."""
    histograms = {name: Histogram() for name in tensors}
    for values in run_tensors(graph.model, tensors, frames):
        for name, histogram in histograms.items():
            histogram.add(values[name])
    return histograms
