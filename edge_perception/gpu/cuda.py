"""The CUDA driver's devices, streams and events, as far as frames and kernels need them.

A thin layer on ``cuda-bindings``: every failed call becomes a ``CudaError`` that names the call's
meaning, and every object is closed by its owner, never by the garbage collector. All use the
primary context, which is the one torch, CuPy and TensorRT use, so that pointers, streams and
events pass between them as integers.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from typing import Any

from cuda.bindings import driver

from edge_perception.errors import CudaError

IPC_HANDLE_BYTES = 64
_STICKY = frozenset(
    {
        driver.CUresult.CUDA_ERROR_DEINITIALIZED,
        driver.CUresult.CUDA_ERROR_ECC_UNCORRECTABLE,
        driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,
        driver.CUresult.CUDA_ERROR_LAUNCH_TIMEOUT,
        driver.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED,
        driver.CUresult.CUDA_ERROR_ASSERT,
        driver.CUresult.CUDA_ERROR_HARDWARE_STACK_ERROR,
        driver.CUresult.CUDA_ERROR_ILLEGAL_INSTRUCTION,
        driver.CUresult.CUDA_ERROR_MISALIGNED_ADDRESS,
        driver.CUresult.CUDA_ERROR_INVALID_ADDRESS_SPACE,
        driver.CUresult.CUDA_ERROR_INVALID_PC,
        driver.CUresult.CUDA_ERROR_LAUNCH_FAILED,
    }
)
_current = threading.local()


def checked(result: tuple[Any, ...], doing: str) -> Any:
    """Return what a driver call returned beside its status, or raise ``CudaError``."""
    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        raise cuda_error(status, doing)
    return values[0] if len(values) == 1 else tuple(values)


def cuda_error(status: driver.CUresult, doing: str) -> CudaError:
    """Make the error for a failed call."""
    sticky = status in _STICKY
    error = CudaError(
        f"CUDA failed while {doing}",
        got=status.name,
        mend="The process must be restarted: its CUDA context is lost." if sticky else "",
    )
    error.sticky = sticky
    return error


class Device:
    """One GPU and its primary context, retained for the life of the process."""

    def __init__(self, ordinal: int) -> None:
        checked(driver.cuInit(0), "starting the driver")
        self.ordinal = ordinal
        self._handle = checked(driver.cuDeviceGet(ordinal), f"looking for GPU {ordinal}")
        self._context = checked(
            driver.cuDevicePrimaryCtxRetain(self._handle), "making the primary context"
        )

    @property
    def name(self) -> str:
        """Marketing name."""
        raw = checked(driver.cuDeviceGetName(128, self._handle), "asking the GPU's name")
        return bytes(raw).split(b"\0")[0].decode()

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor number, such as ``(8, 6)``."""
        attribute = driver.CUdevice_attribute
        major = self.attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        minor = self.attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        return major, minor

    @property
    def architecture(self) -> str:
        """Compile target, such as ``sm_90``."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}"

    def attribute(self, which: driver.CUdevice_attribute) -> int:
        """Return one of the device's attributes."""
        return int(checked(driver.cuDeviceGetAttribute(which, self._handle), f"asking {which}"))

    def make_current(self) -> None:
        """Bind the primary context to the calling thread; cheap when it is bound already.

        Whoever binds another context on one of our threads must bind this one back.
        """
        if getattr(_current, "ordinal", None) != self.ordinal:
            checked(driver.cuCtxSetCurrent(self._context), "binding the primary context")
            _current.ordinal = self.ordinal

    def memory_info(self) -> tuple[int, int]:
        """Return free and total device memory in bytes."""
        self.make_current()
        free, total = checked(driver.cuMemGetInfo(), "asking for free memory")
        return int(free), int(total)

    def synchronize(self) -> None:
        """Block until all work of the context is done."""
        self.make_current()
        checked(driver.cuCtxSynchronize(), "waiting for the GPU")


@cache
def get_device(ordinal: int = 0) -> Device:
    """Return a GPU; the same object each time. ``make_current`` binds it to a thread.

    Raises:
        CudaError: no driver, no such GPU.
    """
    try:
        return Device(ordinal)
    except RuntimeError as error:  # cuda-bindings when libcuda is missing
        raise CudaError(f"no CUDA driver: {error}") from error


class Stream:
    """A queue of GPU work. ``handle`` passes to torch, CuPy and TensorRT as an integer."""

    def __init__(self, device: Device, *, high_priority: bool = False) -> None:
        device.make_current()
        least, greatest = checked(driver.cuCtxGetStreamPriorityRange(), "asking for priorities")
        self._stream = checked(
            driver.cuStreamCreateWithPriority(
                driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value,
                greatest if high_priority else least,
            ),
            "making a stream",
        )
        self.handle = int(self._stream)

    def synchronize(self) -> None:
        """Block until the work queued so far is done."""
        checked(driver.cuStreamSynchronize(self._stream), "waiting for a stream")

    def close(self) -> None:
        """Destroy the stream once its work is done; idempotent."""
        if self.handle:
            self.handle = 0
            checked(driver.cuStreamDestroy(self._stream), "destroying a stream")


class Event:
    """A mark in a stream's work.

    ``timed`` ones measure; ``shared`` ones can be exported to other processes (never both).
    """

    def __init__(self, *, timed: bool = False, shared: bool = False) -> None:
        flags = driver.CUevent_flags.CU_EVENT_DEFAULT.value
        if not timed:
            flags |= driver.CUevent_flags.CU_EVENT_DISABLE_TIMING.value
        if shared:
            flags |= driver.CUevent_flags.CU_EVENT_INTERPROCESS.value
        self._event = checked(driver.cuEventCreate(flags), "making an event")

    @classmethod
    def imported(cls, handle: bytes) -> Event:
        """Open another process's shared event."""
        opaque = driver.CUipcEventHandle()
        _fill_handle(opaque, handle)
        event = cls.__new__(cls)
        event._event = checked(driver.cuIpcOpenEventHandle(opaque), "opening a shared event")
        return event

    def export(self) -> bytes:
        """Return the handle that ``imported`` takes in another process."""
        return read_handle(checked(driver.cuIpcGetEventHandle(self._event), "exporting an event"))

    def record(self, stream: int) -> None:
        """Mark the end of the work queued on a stream so far."""
        checked(driver.cuEventRecord(self._event, stream), "recording an event")

    def hold_back(self, stream: int) -> None:
        """Let a stream wait, on the GPU, for what the event marks now."""
        checked(driver.cuStreamWaitEvent(stream, self._event, 0), "waiting on an event")

    def done(self) -> bool:
        """Tell, without blocking, whether the marked work is done."""
        (status,) = driver.cuEventQuery(self._event)
        if status == driver.CUresult.CUDA_ERROR_NOT_READY:
            return False
        checked((status,), "asking whether an event has come")
        return True

    def synchronize(self) -> None:
        """Block until the marked work is done."""
        checked(driver.cuEventSynchronize(self._event), "waiting for an event")

    def elapsed_ms(self, since: Event) -> float:
        """Return the time between two timed events that have both come."""
        return float(
            checked(driver.cuEventElapsedTime(since._event, self._event), "reading a time")
        )

    def close(self) -> None:
        """Destroy the event; work that already waits on it still does."""
        checked(driver.cuEventDestroy(self._event), "destroying an event")


def read_handle(handle: Any) -> bytes:
    """Return the 64 bytes of an IPC handle."""
    return ctypes.string_at(int(handle.getPtr()), IPC_HANDLE_BYTES)


def _fill_handle(handle: Any, raw: bytes) -> None:
    if len(raw) != IPC_HANDLE_BYTES:
        raise CudaError("IPC handle has the wrong length", expected="64 bytes", got=len(raw))
    ctypes.memmove(int(handle.getPtr()), raw, IPC_HANDLE_BYTES)


def open_memory(handle: bytes) -> int:
    """Map another process's device allocation; returns its address here."""
    opaque = driver.CUipcMemHandle()
    _fill_handle(opaque, handle)
    lazily = driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS.value
    return int(checked(driver.cuIpcOpenMemHandle(opaque, lazily), "opening shared device memory"))
