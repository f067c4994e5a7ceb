"""What a ring asks of the memory that holds one epoch's slots, and what a transport is.

A ``Transport`` makes such memory in the writer's process (``allocate``) and maps it in a reader's
(``open``) from an ``ExportedMemory``, which travels over the lease connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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

    def staging(self, slot: int, size_bytes: int) -> UInt8Array:
        """Return the uint8 ``(size_bytes,)`` of the host through which a slot is filled.

        The slot itself, or a buffer that ``commit`` uploads. For the writer alone, who must have
        been given the slot.
        """
        ...

    def commit(self, slot: int, size_bytes: int, read_done: Sequence[ReadDone]) -> None:
        """Make what was staged the slot's content, ordered after the readers' queued work."""
        ...

    def fill_on_device(
        self, slot: int, read_done: Sequence[ReadDone], enqueue: Callable[[int, int], None]
    ) -> None:
        """Have a slot in device memory filled by GPU work, ordered as ``commit`` does.

        ``enqueue(pointer, stream)`` queues that work. Raises ``FrameError`` on host memory.
        """
        ...

    def must_wait(self, slot: int, read_done: Sequence[ReadDone]) -> bool:
        """Tell whether writing a slot after these marks would block the CPU."""
        ...

    def host_view(self, slot: int, size_bytes: int) -> UInt8Array:
        """Return read-only uint8 ``(size_bytes,)``, or raise ``FrameError`` on device memory."""
        ...

    def download(self, slot: int, size_bytes: int) -> UInt8Array:
        """Return a copy of device memory on the host; waits for the frame to be complete.

        Host memory is not copied but viewed, as by ``host_view``.
        """
        ...

    @property
    def outlives_writer(self) -> bool:
        """Whether readers in other processes keep the memory when the writer lets go of it."""
        ...

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """``DLDeviceType`` and ordinal of the slots."""
        ...

    def device_pointer(self, slot: int) -> int:
        """Return a slot's address for the GPU, or raise ``FrameError`` on host memory."""
        ...

    def wait_written(self, slot: int, stream: int) -> None:
        """Let a stream wait, on the GPU, until the slot's frame is complete."""
        ...

    def record_read(self, slot: int, streams: Iterable[int]) -> ReadDone:
        """Mark the end of what these streams have queued on a slot."""
        ...

    def export_read_done(self, read_done: ReadDone) -> str:
        """Put a reader's mark into words for the writer's process."""
        ...

    def import_read_done(self, exported: str) -> ReadDone:
        """Turn those words into a mark that ``write`` understands."""
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

    @property
    def device_memory(self) -> bool:
        """Whether the slots are device memory, which work on the GPU may fill."""
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
