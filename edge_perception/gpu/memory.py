"""What a ring asks of the memory that holds one epoch's slots, and what a transport is.

A ``Transport`` makes such memory in the writer's process (``allocate``) and maps it in a reader's
(``open``) from an ``ExportedMemory``, which travels over the lease connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edge_perception.core.image import UInt8Array
from edge_perception.gpu.ledger import ReadDone


@dataclass(frozen=True)
class ExportedMemory:
    """Everything another process needs to map one epoch's slots.

    ``facts`` is JSON-serialisable; ``file_descriptors`` stay the exporter's property.
    """

    slots: int
    slot_bytes: int
    facts: Mapping[str, str] = field(default_factory=dict)
    file_descriptors: tuple[int, ...] = ()


class FrameMemory(Protocol):
    """The slots of one epoch."""

    @property
    def slot_bytes(self) -> int:
        """Capacity of one slot."""
        ...

    def write(self, slot: int, pixels: UInt8Array, read_done: Sequence[ReadDone]) -> None:
        """Copy uint8 ``(n,)`` into a slot, ordered after the readers' queued work."""
        ...

    def must_wait(self, read_done: Sequence[ReadDone]) -> bool:
        """Tell whether writing after these marks would block the CPU."""
        ...

    def host_view(self, slot: int, size_bytes: int) -> UInt8Array:
        """Return read-only uint8 ``(size_bytes,)``, or raise ``FrameError`` on device memory."""
        ...

    def export(self) -> ExportedMemory:
        """Describe the memory to another process, or raise ``FrameError`` if it cannot cross."""
        ...

    def close(self) -> None:
        """Let go of the memory; idempotent. Views that still exist keep host memory mapped."""
        ...


class Transport(Protocol):
    """A way of keeping slots where their readers can reach them."""

    @property
    def name(self) -> str:
        """Published in diagnostics."""
        ...

    @property
    def crosses_processes(self) -> bool:
        """Whether another process can map the slots."""
        ...

    def allocate(self, slots: int, slot_bytes: int) -> FrameMemory:
        """Make one epoch's memory.

        Raises:
            FrameError: not enough memory; the error names the sizes.
        """
        ...

    def open(self, exported: ExportedMemory) -> FrameMemory:
        """Map another process's memory for reading."""
        ...
