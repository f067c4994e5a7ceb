"""TensorRT 8.5's runtime below Python 3.12: what ``backends.tensorrt.Engine`` asks of ``tensorrt``.

TensorRT 8.5 is the newest whose libraries a machine without JetPack gets from a registry, and its
Python stops at 3.10, where the GPU machine's CUDA packages begin. Its C++ library knows no Python:
tensorrt_runtime.cpp makes C functions of it, and this module classes of the names that
``tensorrt`` has. It runs plans; it builds none.

``TENSORRT_RUNTIME`` names the compiled shim, ``TENSORRT_LIBRARY`` ``libnvinfer.so.8``.
"""

from __future__ import annotations

import ctypes
import enum
import os
from typing import Any

_MAX_DIMS = 8
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p)
__version__ = "8.5.3.1"


class DataType(enum.Enum):
    """``nvinfer1::DataType``."""

    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5


class BuilderFlag(enum.Enum):
    """That these flags exist says that networks are weakly typed, as plans' keys tell."""

    FP16 = 0
    INT8 = 1


class TensorIOMode(enum.Enum):
    """``nvinfer1::TensorIOMode``."""

    INPUT = 1
    OUTPUT = 2


class ILogger:
    """Told what TensorRT says; ``log`` is overridden."""

    class Severity(enum.Enum):
        """``nvinfer1::ILogger::Severity``."""

        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def log(self, level: ILogger.Severity, message: str) -> None:
        """Take one message."""


class Runtime:
    """Deserialises plans."""

    def __init__(self, logger: ILogger) -> None:
        def log(level: int, message: bytes) -> None:
            logger.log(ILogger.Severity(level), message.decode(errors="replace"))

        self._log = _LOG(log)

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        """Return the engine of a plan, None if it is refused."""
        shim = _load()
        handle = shim.plan_open(plan, ctypes.c_size_t(len(plan)), self._log)
        return Engine(shim, handle, self._log) if handle else None


class Engine:
    """A deserialised plan with at most one context."""

    def __init__(self, shim: ctypes.CDLL, handle: int, log: Any) -> None:
        self._shim, self._handle = shim, ctypes.c_void_p(handle)
        self._log = log  # called as long as the plan is open

    @property
    def num_io_tensors(self) -> int:
        """How many inputs and outputs there are."""
        return int(self._shim.plan_tensors(self._handle))

    def get_tensor_name(self, index: int) -> str:
        """Return a tensor's name."""
        return str(self._shim.plan_tensor_name(self._handle, index).decode())

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        sides = (ctypes.c_int * _MAX_DIMS)()
        rank = self._shim.plan_tensor_shape(self._handle, name.encode(), sides)
        return tuple(sides[:rank])

    def get_tensor_dtype(self, name: str) -> DataType:
        """Return a tensor's dtype."""
        return DataType(self._shim.plan_tensor_type(self._handle, name.encode()))

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Tell whether a tensor is an input."""
        is_input = self._shim.plan_tensor_is_input(self._handle, name.encode())
        return TensorIOMode.INPUT if is_input else TensorIOMode.OUTPUT

    def create_execution_context(self) -> Context | None:
        """Return the context, None if there is no memory for it."""
        return Context(self) if self._shim.plan_make_context(self._handle) else None

    def set_tensor_address(self, name: str, address: int) -> bool:
        """See ``Context``."""
        return bool(self._shim.plan_bind(self._handle, name.encode(), ctypes.c_void_p(address)))

    def enqueue(self, stream: int) -> bool:
        """See ``Context``."""
        return bool(self._shim.plan_enqueue(self._handle, ctypes.c_void_p(stream)))

    def __del__(self) -> None:
        # As in TensorRT's own bindings: who lets go of an engine frees it.
        self._shim.plan_close(self._handle)


class Context:
    """Runs an engine, and keeps it open."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Bind device memory to a tensor."""
        return self._engine.set_tensor_address(name, address)

    def execute_async_v3(self, stream: int) -> bool:
        """Queue one inference on a stream."""
        return self._engine.enqueue(stream)


def _load() -> ctypes.CDLL:
    ctypes.CDLL(os.environ["TENSORRT_LIBRARY"], mode=ctypes.RTLD_GLOBAL)
    shim = ctypes.CDLL(os.environ["TENSORRT_RUNTIME"])
    shim.plan_open.restype = ctypes.c_void_p
    shim.plan_tensor_name.restype = ctypes.c_char_p
    return shim
