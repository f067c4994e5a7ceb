"""Every transport by its name, and the choice among them."""

from __future__ import annotations

from dataclasses import dataclass

from edge_perception.errors import FrameError
from edge_perception.gpu.host_memory import InProcessTransport, SharedMemoryTransport
from edge_perception.gpu.memory import Transport


@dataclass(frozen=True)
class TransportChoice:
    """A transport and the reason it was taken; both belong into diagnostics."""

    transport: Transport
    why: str


def transport_named(name: str) -> Transport:
    """Return a transport by name, or raise ``FrameError``."""
    transports: dict[str, Transport] = {
        kind.name: kind for kind in (InProcessTransport(), SharedMemoryTransport())
    }
    if name not in transports:
        raise FrameError(
            "unknown frame transport", expected=f"one of {', '.join(transports)}", got=name
        )
    return transports[name]


def choose_transport(*, across_processes: bool) -> TransportChoice:
    """Choose by what the readers need and this machine can do."""
    if across_processes:
        return TransportChoice(SharedMemoryTransport(), "readers are other processes; no CUDA")
    return TransportChoice(InProcessTransport(), "readers are threads of this process; no CUDA")
