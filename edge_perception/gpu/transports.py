"""Every transport by its name, and the choice among them by probing.

A silent fall-back is the main hazard: a graph that runs, but copies each frame three times. So the
choice comes with its reason, and both belong into diagnostics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_perception.errors import CudaError, FrameError
from edge_perception.gpu.host_memory import InProcessTransport, SharedMemoryTransport
from edge_perception.gpu.memory import Transport


@dataclass(frozen=True)
class TransportChoice:
    """A transport and the reason it was taken."""

    transport: Transport
    why: str


def transport_named(name: str) -> Transport:
    """Return a transport by name.

    Raises:
        FrameError: unknown name, or a CUDA transport where ``cuda-bindings`` is not installed.
    """
    if name not in _TRANSPORTS:
        raise FrameError(
            "unknown frame transport", expected=f"one of {', '.join(_TRANSPORTS)}", got=name
        )
    try:
        return _TRANSPORTS[name]()
    except ImportError as error:
        raise FrameError(
            f"transport {name!r} needs cuda-bindings",
            got=str(error),
            mend="Install the package's gpu extra: scripts/setup.sh --extra gpu.",
        ) from error


def choose_transport(*, across_processes: bool, gpu_readers: bool) -> TransportChoice:
    """Choose by where the readers are and what this machine can do.

    Args:
        across_processes: readers are other processes, else threads of this one.
        gpu_readers: readers want the frames on the GPU, where there is one. CPU readers need
            host memory: frames in device memory cannot be read without a copy back.
    """
    on_host = TransportChoice(
        transport_named("shared_memory" if across_processes else "in_process"), ""
    )
    if not gpu_readers:
        return TransportChoice(on_host.transport, "readers work on the CPU")
    why_not = _why_no_gpu()
    if why_not:
        return TransportChoice(on_host.transport, why_not)
    return _choose_on_gpu(across_processes, on_host.transport)


def _choose_on_gpu(across_processes: bool, fall_back: Transport) -> TransportChoice:
    from edge_perception.gpu.cuda_probe import is_integrated, why_not_allocated

    if not is_integrated():
        name = "cuda_ipc" if across_processes else "cuda_in_process"
        why_not = why_not_allocated(transport_named(name))
        if not why_not:
            return TransportChoice(transport_named(name), "discrete GPU; probe succeeded")
        reason = f"{name} failed: {why_not}"
    else:
        reason = "integrated GPU, which reads host memory and has no CUDA IPC"
    why_not = why_not_allocated(transport_named("cuda_mapped"))
    if not why_not:
        return TransportChoice(transport_named("cuda_mapped"), reason)
    return TransportChoice(fall_back, f"{reason}; cuda_mapped failed: {why_not}")


def _why_no_gpu() -> str:
    try:
        from edge_perception.gpu.cuda import get_device

        get_device()
    except ImportError:
        return "cuda-bindings is not installed"
    except CudaError as error:
        return f"no usable GPU: {error}"
    return ""


def _cuda_in_process() -> Transport:
    from edge_perception.gpu.cuda_memory import CudaInProcessTransport

    return CudaInProcessTransport()


def _cuda_ipc() -> Transport:
    from edge_perception.gpu.cuda_memory import CudaIpcTransport

    return CudaIpcTransport()


def _cuda_mapped() -> Transport:
    from edge_perception.gpu.mapped_memory import CudaMappedTransport

    return CudaMappedTransport()


_TRANSPORTS: dict[str, Callable[[], Transport]] = {
    "in_process": InProcessTransport,
    "shared_memory": SharedMemoryTransport,
    "cuda_in_process": _cuda_in_process,
    "cuda_ipc": _cuda_ipc,
    "cuda_mapped": _cuda_mapped,
}
TRANSPORT_NAMES = tuple(_TRANSPORTS)
