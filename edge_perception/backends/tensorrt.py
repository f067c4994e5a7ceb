"""Running a plan by TensorRT: device pointers in and out, on the caller's stream.

An ``Engine`` owns what TensorRT allocates (weights and scratch memory) and nothing else. Its input
and output tensors are the caller's device memory, bound by address once; streams come in as
integers. So it needs no CUDA library, and the same code runs below torch, below ``cuda-bindings``
and below the ``ctypes`` of the TensorRT 8.5 bundle.

Nothing here waits for the GPU. ``enqueue`` may be captured into a CUDA graph once it has run once:
the first call loads kernels, which a capture refuses.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from edge_perception.backends.build import make_logger, tensor_spec
from edge_perception.core.manifest import TensorSpec
from edge_perception.errors import EngineError

_OLDEST = (8, 5)


def import_tensorrt() -> Any:
    """Return the module ``tensorrt``.

    Raises:
        EngineError: it is not installed, or older than 8.5, whose tensors had no names.
    """
    trt = import_runtime("tensorrt")
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if version < _OLDEST:
        raise EngineError(
            "this TensorRT is too old", expected="8.5 to 11", got=trt.__version__,
            mend="On a Jetson, JetPack 6 brings TensorRT 10.",
        )  # fmt: skip
    return trt


def import_runtime(*names: str) -> Any:
    """Import the first of the modules that is installed.

    Raises:
        EngineError: none is, or its libraries cannot be loaded.
    """
    reasons = []
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(str(error))
    raise EngineError(
        f"{names[0]} cannot be imported: {'; '.join(reasons)}",
        mend="Install it (docs/engines.md says from where), or take the backend onnxruntime.",
    )


class Engine:
    """A deserialised plan with one execution context and fixed shapes; owned by one thread."""

    def __init__(self, trt: Any, plan: bytes) -> None:
        """Deserialise a plan on the current CUDA device; its bytes must have been checked.

        Raises:
            EngineError: TensorRT refuses the plan, or there is no memory for it.
        """
        self._trt = trt
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"TensorRT {trt.__version__} refuses the plan: {self._logger.errors()}",
                mend="Build the engine again on this machine: edge-perception build.",
            )
        self.inputs, self.outputs = self._tensors()
        self._unbound = {spec.name for spec in (*self.inputs, *self.outputs)}
        self._context = self._make_context()
        if self._context is None:
            raise EngineError(
                f"TensorRT cannot make an execution context: {self._logger.errors()}",
                mend="Most often the GPU's memory is full.",
            )

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Use device memory for tensors, by their names; it must outlive every ``enqueue``.

        Raises:
            EngineError: no such tensor, or TensorRT refuses the address.
        """
        known = {spec.name for spec in (*self.inputs, *self.outputs)}
        for name, address in addresses.items():
            if name not in known:
                raise EngineError("no such tensor", expected=f"one of {sorted(known)}", got=name)
            if not self._open_context().set_tensor_address(name, address):
                raise EngineError(
                    f"TensorRT refuses the address of {name!r}: {self._logger.errors()}"
                )
            self._unbound.discard(name)

    def enqueue(self, stream: int) -> None:
        """Queue one inference on a CUDA stream, given by its handle; does not wait.

        Raises:
            EngineError: a tensor has no memory, or TensorRT failed.
        """
        context = self._open_context()
        if self._unbound:
            raise EngineError("tensors without memory", got=sorted(self._unbound))
        if not context.execute_async_v3(stream):
            raise EngineError(f"TensorRT failed: {self._logger.errors()}")

    def can_be_captured(self, stream: int) -> bool:
        """Whether ``enqueue`` may be captured into a CUDA graph."""
        return True

    def close(self) -> None:
        """Free the engine; nothing that it queued may still run. May be called twice."""
        self._context = self._engine = self._runtime = None

    def _make_context(self) -> Any:
        return self._engine.create_execution_context()

    def _open_context(self) -> Any:
        if self._context is None:
            raise EngineError("the engine was closed", mend="Configure the node again.")
        return self._context

    def _tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        engine = self._engine
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            spec = tensor_spec(name, engine.get_tensor_shape(name), engine.get_tensor_dtype(name))
            is_input = engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(spec)
        return tuple(inputs), tuple(outputs)
