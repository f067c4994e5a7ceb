"""As much of the CUDA runtime as the benchmark needs, by ctypes: the TensorRT 8.5 bundle has none.

Python 3.9 and NumPy alone. Nothing is freed: the process ends with the measurement.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_NON_BLOCKING = 1
_THREAD_LOCAL = 1


class CudaRuntime:
    """One stream on GPU 0."""

    def __init__(self, library: str = "") -> None:
        """Load ``libcudart``: the one given, or the one that ``$CUDART`` names."""
        self._cuda = ctypes.CDLL(library or os.environ["CUDART"])
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), _NON_BLOCKING)
        self.stream = int(stream.value or 0)

    def allocate(self, size_bytes: int) -> int:
        """Return the address of device memory."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return int(address.value or 0)

    def upload(self, address: int, values: npt.NDArray[Any]) -> None:
        """Copy a contiguous array to the device; waits."""
        size = ctypes.c_size_t(values.nbytes)
        source = ctypes.c_void_p(values.ctypes.data)
        self._call("cudaMemcpy", ctypes.c_void_p(address), source, size, _HOST_TO_DEVICE)

    def download(self, values: npt.NDArray[Any], address: int) -> None:
        """Fill a contiguous array from the device; waits."""
        size = ctypes.c_size_t(values.nbytes)
        target = ctypes.c_void_p(values.ctypes.data)
        self._call("cudaMemcpy", target, ctypes.c_void_p(address), size, _DEVICE_TO_HOST)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Capture what ``enqueue`` queues on the stream; return what launches it there."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        stream = ctypes.c_void_p(self.stream)
        self._call("cudaStreamBeginCapture", stream, _THREAD_LOCAL)
        enqueue()
        self._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        # By this name the signature is the same in CUDA 11.4 to 13.
        flags = ctypes.c_ulonglong(0)
        self._call("cudaGraphInstantiateWithFlags", ctypes.byref(executable), graph, flags)
        return lambda: self._call("cudaGraphLaunch", executable, stream)

    def event_times_ms(self, enqueue: Callable[[], None], runs: int) -> npt.NDArray[np.float64]:
        """Run ``enqueue`` and return the time between the events around each run."""
        events = [(self._event(), self._event()) for _ in range(runs)]
        stream = ctypes.c_void_p(self.stream)
        for before, after in events:
            self._call("cudaEventRecord", before, stream)
            enqueue()
            self._call("cudaEventRecord", after, stream)
        self.synchronize()
        return np.array([self._elapsed_ms(*pair) for pair in events])

    def device(self) -> tuple[str, str]:
        """Return the name of GPU 0 and its compute capability."""
        properties = ctypes.create_string_buffer(
            8192
        )  # the name is its first field, in any version
        function = getattr(self._cuda, "cudaGetDeviceProperties_v2", None)
        name = "cudaGetDeviceProperties_v2" if function else "cudaGetDeviceProperties"
        self._call(name, properties, 0)
        major, minor = (self._attribute(which) for which in (75, 76))
        return properties.value.decode(), f"{major}.{minor}"

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), which, 0)
        return value.value

    def _event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(event))
        return event

    def _elapsed_ms(self, before: ctypes.c_void_p, after: ctypes.c_void_p) -> float:
        elapsed = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(elapsed), before, after)
        self._call("cudaEventDestroy", before)
        self._call("cudaEventDestroy", after)
        return elapsed.value

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with CUDA error {status}")
