"""Slots in host memory: private to the process, or shared through an anonymous memory file.

The shared kind is a ``memfd``: POSIX shared memory without a name. It travels over a socket, is
freed by the kernel with its last user, and so cannot be left behind in ``/dev/shm`` by a process
that was killed. It is sealed against resizing (a reader cannot make the writer fault) and against
new writable mappings (a reader cannot change a frame).
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import numpy as np

from edge_perception.core.image import UInt8Array
from edge_perception.errors import FrameError
from edge_perception.gpu import dlpack
from edge_perception.gpu.ledger import ReadDone
from edge_perception.gpu.memory import ExportedMemory

_F_SEAL_FUTURE_WRITE = 0x0010  # linux/fcntl.h; the fcntl module names it only from Python 3.13
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class HostMemory:
    """Slots side by side in one mapping, each starting on a page."""

    outlives_writer = True
    dlpack_device = (dlpack.CPU, 0)

    def __init__(self, mapping: mmap.mmap, slots: int, slot_bytes: int, memory_file: int) -> None:
        self._mapping: mmap.mmap | None = mapping
        self._slots = slots
        self._slot_bytes = slot_bytes
        self.stride = page_aligned(slot_bytes)
        self._file = memory_file

    @property
    def slot_bytes(self) -> int:
        return self._slot_bytes

    def staging(self, slot: int, size_bytes: int) -> UInt8Array:
        return self._view(slot, size_bytes)

    def commit(self, slot: int, size_bytes: int, read_done: Sequence[ReadDone]) -> None:
        """Nothing to do: what is staged lies in the slot."""

    def fill_on_device(
        self, slot: int, read_done: Sequence[ReadDone], enqueue: Callable[[int, int], None]
    ) -> None:
        raise FrameError("the frame ring lies in host memory", mend="Fill it from the host.")

    def must_wait(self, slot: int, read_done: Sequence[ReadDone]) -> bool:
        return False

    def host_view(self, slot: int, size_bytes: int) -> UInt8Array:
        view = self._view(slot, size_bytes)
        view.flags.writeable = False
        return view

    def download(self, slot: int, size_bytes: int) -> UInt8Array:
        return self.host_view(slot, size_bytes)

    def device_pointer(self, slot: int) -> int:
        raise FrameError("the frame lives in host memory only", mend="Use lease.pixels.")

    def wait_written(self, slot: int, stream: int) -> None:
        """Nothing to wait for: the CPU wrote before it published."""

    def record_read(self, slot: int, streams: Iterable[int]) -> ReadDone:
        return ()

    def export_read_done(self, read_done: ReadDone) -> str:
        return ""

    def import_read_done(self, exported: str) -> ReadDone:
        return ()

    def extent(self) -> tuple[int, int]:
        """Return address and size in bytes of the whole mapping."""
        if self._mapping is None:
            raise FrameError("the frame memory is closed")
        whole = np.frombuffer(self._mapping, np.uint8)
        return whole.ctypes.data, whole.size

    def export(self) -> ExportedMemory:
        if self._file < 0:
            raise FrameError(
                "the ring's memory is private to its process",
                mend="Create the ring with the shared_memory transport.",
            )
        return ExportedMemory(self._slots, self._slot_bytes, {}, (self._file,))

    def close(self) -> None:
        mapping, self._mapping = self._mapping, None
        if mapping is None:
            return
        if self._file >= 0:
            os.close(self._file)
        with suppress(BufferError):  # an array still views it; the mapping ends with that array
            mapping.close()

    def _view(self, slot: int, size_bytes: int) -> UInt8Array:
        if self._mapping is None:
            raise FrameError("the frame memory is closed")
        if not (0 <= slot < self._slots and 0 <= size_bytes <= self._slot_bytes):
            raise FrameError(
                "access outside the ring's slots",
                expected=f"slot below {self._slots}, at most {self._slot_bytes} bytes",
                got=(slot, size_bytes),
            )
        return np.frombuffer(self._mapping, np.uint8, size_bytes, slot * self.stride)


class InProcessTransport:
    """Slots in the process's own memory; readers are its threads."""

    name = "in_process"
    crosses_processes = False
    device_memory = False

    def allocate(self, slots: int, slot_bytes: int) -> HostMemory:
        size = slots * page_aligned(slot_bytes)
        return HostMemory(_map(-1, size, slots, slot_bytes), slots, slot_bytes, -1)

    def open(self, exported: ExportedMemory) -> HostMemory:
        raise FrameError(
            "the ring's memory is private to its process",
            mend="Create the ring with the shared_memory transport.",
        )


class SharedMemoryTransport:
    """Slots in a sealed memory file; readers are any processes of the same user.

    ``readers_may_write`` leaves the seal against new writable mappings out.
    """

    name = "shared_memory"
    crosses_processes = True
    device_memory = False

    def __init__(self, *, readers_may_write: bool = False) -> None:
        self._protection = mmap.PROT_READ | (mmap.PROT_WRITE if readers_may_write else 0)
        self._seals = _SEALS | (0 if readers_may_write else _F_SEAL_FUTURE_WRITE)

    def allocate(self, slots: int, slot_bytes: int) -> HostMemory:
        size = slots * page_aligned(slot_bytes)
        memory_file = os.memfd_create("edge_perception_frames", os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memory_file, size)
            mapping = _map(memory_file, size, slots, slot_bytes)
            fcntl.fcntl(memory_file, fcntl.F_ADD_SEALS, self._seals)
        except BaseException:
            os.close(memory_file)
            raise
        return HostMemory(mapping, slots, slot_bytes, memory_file)

    def open(self, exported: ExportedMemory) -> HostMemory:
        (received,) = exported.file_descriptors
        size = exported.slots * page_aligned(exported.slot_bytes)
        if os.fstat(received).st_size != size:
            raise FrameError(
                "the shared frame memory has the wrong size",
                expected=f"{size} bytes",
                got=os.fstat(received).st_size,
            )
        mapping = mmap.mmap(received, size, mmap.MAP_SHARED, self._protection)
        return HostMemory(mapping, exported.slots, exported.slot_bytes, os.dup(received))


def page_aligned(size_bytes: int) -> int:
    """Round up to whole pages, so that every slot starts on one."""
    return -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _map(memory_file: int, size: int, slots: int, slot_bytes: int) -> mmap.mmap:
    """Map memory with its pages present, so that the first lap of writes does not fault."""
    kind = mmap.MAP_SHARED if memory_file >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        return mmap.mmap(memory_file, size, kind | mmap.MAP_POPULATE)
    except OSError as error:
        raise FrameError(
            f"not enough host memory for {slots} slots of {slot_bytes} bytes",
            expected=f"{size} bytes",
            got=str(error),
            mend="Use fewer slots or a smaller image.",
        ) from error
