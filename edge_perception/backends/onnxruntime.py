"""ONNX Runtime on the CPU: the embedded default, and the oracle for every other backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edge_perception.backends.base import Tensor
from edge_perception.core.manifest import TensorSpec
from edge_perception.errors import EngineError

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


class OnnxRuntimeBackend:
    """A model with static shapes on the CPU execution provider.

    Threads do not spin while idle: a spinning pool takes the cores that the camera, the executor
    and DDS need, which costs more at the 99th percentile than waking up does.
    """

    name = "onnxruntime"
    on_cpu = True

    def __init__(self, model: Path, threads: int = 0) -> None:
        """Load ``model``; ``threads`` 0 means one a physical core.

        Raises:
            EngineError: not a readable ONNX model, or one with dynamic shapes.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session: Any | None = onnxruntime.InferenceSession(
                model.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises its own classes straight from Exception
            raise EngineError(
                f"ONNX Runtime cannot load {str(model)!r}: {error}",
                mend="Check that the file is a complete ONNX model of an opset it knows.",
            ) from error
        self.inputs = _tensor_specs(self._session.get_inputs())
        self.outputs = _tensor_specs(self._session.get_outputs())

    def infer(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run the model once; see ``Backend``."""
        if self._session is None:
            raise EngineError("the model was closed", mend="Configure the node again.")
        feed = {spec.name: tensor for spec, tensor in zip(self.inputs, tensors, strict=True)}
        try:
            results: Sequence[Tensor] = self._session.run(None, feed)
        except Exception as error:  # its classes again come straight from Exception
            raise EngineError(f"ONNX Runtime failed: {error}") from error
        return results

    def warm_up(self) -> None:
        """Run once on zeros, so that the first frame does not pay for lazy allocation."""
        self.infer([np.zeros(spec.shape, spec.dtype) for spec in self.inputs])

    def close(self) -> None:
        """Release the model."""
        self._session = None


def _tensor_specs(arguments: Sequence[Any]) -> tuple[TensorSpec, ...]:
    for argument in arguments:
        if not all(isinstance(side, int) and side > 0 for side in argument.shape):
            raise EngineError(
                f"tensor {argument.name!r} has a dynamic shape",
                expected="fixed sides",
                got=argument.shape,
                mend="Export with static shapes.",
            )
        if argument.type not in _DTYPES:
            raise EngineError(
                f"tensor {argument.name!r} has a dtype that detectors do not use",
                expected=f"one of {', '.join(_DTYPES)}",
                got=argument.type,
            )
    return tuple(TensorSpec(a.name, tuple(a.shape), _DTYPES[a.type]) for a in arguments)
