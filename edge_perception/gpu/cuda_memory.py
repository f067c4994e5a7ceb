"""Slots in device memory, shared between processes or not; discrete GPUs.

The writer fills the slot's pinned staging buffer, queues the
upload on the ring's stream behind the readers' read-done events, and records the slot's write-done
event; neither copy nor event blocks the CPU. A decoder on the GPU queues its work on that stream
instead, and nothing is staged. A staging buffer is free again when its upload is done, which a
slot's turn in the ring makes certain in practice; if not, the slot counts as in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing

import numpy as np
from cuda.bindings import driver

from edge_perception.core.image import UInt8Array
from edge_perception.errors import CudaError, FrameError
from edge_perception.gpu import dlpack
from edge_perception.gpu.cuda import (
    Device,
    Event,
    Stream,
    checked,
    get_device,
    open_memory,
    read_handle,
)
from edge_perception.gpu.ledger import ReadDone
from edge_perception.gpu.lost_gpu import giving_back
from edge_perception.gpu.memory import ExportedMemory
from edge_perception.gpu.pinned_memory import allocate_pinned, view_host

_ALIGNMENT = 512  # of device slots, so that every row's vector loads can be aligned


class DeviceMemory:
    """Slots in device memory, written through pinned staging buffers."""

    outlives_writer = False

    def __init__(self, device: Device, slots: int, slot_bytes: int, *, shared: bool) -> None:
        self._device = device
        self._slots = slots
        self._slot_bytes = slot_bytes
        self._stride = -(-slot_bytes // _ALIGNMENT) * _ALIGNMENT
        self._shared = shared
        device.make_current()
        with ExitStack() as owned:  # what was acquired before a later call fails is given back
            self._base, self._staging = _allocate(device, slots, slot_bytes, self._stride)
            owned.callback(_free, self._base, self._staging)
            self._stream = owned.enter_context(closing(Stream(device, high_priority=True)))
            self._write_done = [
                owned.enter_context(closing(Event(shared=shared))) for _ in range(slots)
            ]
            self._owned = owned.pop_all()
        self._spare: list[Event] = []
        self._imported: dict[str, Event] = {}
        self._closed = False

    @property
    def slot_bytes(self) -> int:
        return self._slot_bytes

    @property
    def dlpack_device(self) -> tuple[int, int]:
        return (dlpack.CUDA, self._device.ordinal)

    def staging(self, slot: int, size_bytes: int) -> UInt8Array:
        return view_host(self._staged(slot, size_bytes), size_bytes)

    def commit(self, slot: int, size_bytes: int, read_done: Sequence[ReadDone]) -> None:
        staged = self._staged(slot, size_bytes)

        def upload(target: int, stream: int) -> None:
            result = driver.cuMemcpyHtoDAsync(target, staged, size_bytes, stream)
            checked(result, "uploading a frame")

        self.fill_on_device(slot, read_done, upload)

    def fill_on_device(
        self, slot: int, read_done: Sequence[ReadDone], enqueue: Callable[[int, int], None]
    ) -> None:
        self._device.make_current()
        marks = set(events_of(read_done))
        for event in marks:
            event.hold_back(self._stream.handle)
        enqueue(self.device_pointer(slot), self._stream.handle)
        self._write_done[slot].record(self._stream.handle)
        self._recycle(marks)

    def must_wait(self, slot: int, read_done: Sequence[ReadDone]) -> bool:
        self._device.make_current()
        return not self._write_done[slot].done()

    def host_view(self, slot: int, size_bytes: int) -> UInt8Array:
        raise _on_device_only()

    def download(self, slot: int, size_bytes: int) -> UInt8Array:
        self._device.make_current()
        return _downloaded(self.device_pointer(slot), size_bytes, self._write_done[slot])

    def device_pointer(self, slot: int) -> int:
        return self._base + slot * self._stride

    def wait_written(self, slot: int, stream: int) -> None:
        self._device.make_current()
        self._write_done[slot].hold_back(stream)

    def record_read(self, slot: int, streams: Iterable[int]) -> ReadDone:
        self._device.make_current()
        events = []
        for stream in streams:
            try:
                event = self._spare.pop()
            except IndexError:
                event = Event()
            event.record(stream)
            events.append(event)
        return tuple(events)

    def export(self) -> ExportedMemory:
        if not self._shared:
            raise FrameError(
                "the ring's device memory is private to its process",
                mend="Create the ring with the cuda_ipc transport.",
            )
        self._device.make_current()
        handle = checked(driver.cuIpcGetMemHandle(self._base), "exporting device memory")
        events = "".join(event.export().hex() for event in self._write_done)
        facts = {
            "memory": read_handle(handle).hex(),
            "events": events,
            "device": str(self._device.ordinal),
        }
        return ExportedMemory(self._slots, self._slot_bytes, facts)

    def import_read_done(self, exported: str) -> ReadDone:
        """Open the read-done events that a reader in another process recorded."""
        self._device.make_current()
        handles = [exported[at : at + 128] for at in range(0, len(exported), 128)]
        for handle in handles:
            if handle not in self._imported:
                self._imported[handle] = Event.imported(bytes.fromhex(handle))
        return tuple(self._imported[handle] for handle in handles)

    def export_read_done(self, read_done: ReadDone) -> str:
        raise FrameError("the writer's own read-done events do not travel")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._device.make_current()
        self._stream.synchronize()
        for event in (*self._spare, *self._imported.values()):
            event.close()
        self._owned.close()

    def _recycle(self, waited: set[Event]) -> None:
        """Keep this process's events for later reads; close those of other processes."""
        for handle, event in tuple(self._imported.items()):
            if event in waited:
                del self._imported[handle]
                waited.discard(event)
                event.close()
        self._spare.extend(waited)

    def _staged(self, slot: int, size_bytes: int) -> int:
        """Return the address of a slot's staging buffer."""
        if self._closed or not (0 <= slot < self._slots and size_bytes <= self._slot_bytes):
            raise FrameError("access outside the ring's slots", got=(slot, size_bytes))
        return self._staging + slot * self._stride


class ImportedDeviceMemory:
    """Another process's device slots, mapped by CUDA IPC for reading."""

    outlives_writer = False

    def __init__(self, exported: ExportedMemory) -> None:
        self._device = get_device(int(exported.facts["device"]))
        self._device.make_current()
        self._slot_bytes = exported.slot_bytes
        self._stride = -(-exported.slot_bytes // _ALIGNMENT) * _ALIGNMENT
        self._base = open_memory(bytes.fromhex(exported.facts["memory"]))
        handles = bytes.fromhex(exported.facts["events"])
        self._write_done = [
            Event.imported(handles[slot * 64 : slot * 64 + 64]) for slot in range(exported.slots)
        ]
        # One event a slot and stream, recorded again at each release: the writer opens it once.
        self._read_done: dict[tuple[int, int], Event] = {}
        self._closed = False

    @property
    def slot_bytes(self) -> int:
        return self._slot_bytes

    @property
    def dlpack_device(self) -> tuple[int, int]:
        return (dlpack.CUDA, self._device.ordinal)

    def staging(self, slot: int, size_bytes: int) -> UInt8Array:
        raise _reader_writes()

    def commit(self, slot: int, size_bytes: int, read_done: Sequence[ReadDone]) -> None:
        raise _reader_writes()

    def fill_on_device(
        self, slot: int, read_done: Sequence[ReadDone], enqueue: Callable[[int, int], None]
    ) -> None:
        raise _reader_writes()

    def must_wait(self, slot: int, read_done: Sequence[ReadDone]) -> bool:
        return True

    def host_view(self, slot: int, size_bytes: int) -> UInt8Array:
        raise _on_device_only()

    def download(self, slot: int, size_bytes: int) -> UInt8Array:
        self._device.make_current()
        return _downloaded(self.device_pointer(slot), size_bytes, self._write_done[slot])

    def device_pointer(self, slot: int) -> int:
        return self._base + slot * self._stride

    def wait_written(self, slot: int, stream: int) -> None:
        self._device.make_current()
        self._write_done[slot].hold_back(stream)

    def record_read(self, slot: int, streams: Iterable[int]) -> ReadDone:
        self._device.make_current()
        events = []
        for stream in streams:
            if (slot, stream) not in self._read_done:
                self._read_done[slot, stream] = Event(shared=True)
            self._read_done[slot, stream].record(stream)
            events.append(self._read_done[slot, stream])
        return tuple(events)

    def export_read_done(self, read_done: ReadDone) -> str:
        return "".join(event.export().hex() for event in events_of([read_done]))

    def import_read_done(self, exported: str) -> ReadDone:
        raise FrameError("a reader gets no read-done events")

    def export(self) -> ExportedMemory:
        raise FrameError("a reader does not pass memory on")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with giving_back("the mapping of another process's memory"):
            self._device.make_current()
            self._device.synchronize()
            for event in (*self._write_done, *self._read_done.values()):
                event.close()
            checked(driver.cuIpcCloseMemHandle(self._base), "unmapping shared device memory")


class CudaInProcessTransport:
    """Device memory whose readers are threads of this process."""

    name = "cuda_in_process"
    crosses_processes = False
    device_memory = True

    def __init__(self, ordinal: int = 0) -> None:
        self._ordinal = ordinal

    def allocate(self, slots: int, slot_bytes: int) -> DeviceMemory:
        return DeviceMemory(get_device(self._ordinal), slots, slot_bytes, shared=False)

    def open(self, exported: ExportedMemory) -> ImportedDeviceMemory:
        raise FrameError(
            "the ring's device memory is private to its process",
            mend="Create the ring with the cuda_ipc transport.",
        )


class CudaIpcTransport:
    """Device memory shared by CUDA IPC; discrete GPUs."""

    name = "cuda_ipc"
    crosses_processes = True
    device_memory = True

    def __init__(self, ordinal: int = 0) -> None:
        self._ordinal = ordinal

    def allocate(self, slots: int, slot_bytes: int) -> DeviceMemory:
        return DeviceMemory(get_device(self._ordinal), slots, slot_bytes, shared=True)

    def open(self, exported: ExportedMemory) -> ImportedDeviceMemory:
        return ImportedDeviceMemory(exported)


def _allocate(device: Device, slots: int, slot_bytes: int, stride: int) -> tuple[int, int]:
    """Allocate device slots and their pinned staging buffers, or say how much was missing."""
    size = slots * stride
    try:
        base = int(checked(driver.cuMemAlloc(size), "allocating the ring"))
        try:
            return base, allocate_pinned(size)
        except CudaError:
            checked(driver.cuMemFree(base), "freeing the ring")
            raise
    except CudaError as error:
        if error.sticky:
            raise
        free, total = device.memory_info()
        raise FrameError(
            f"not enough memory for {slots} slots of {slot_bytes} bytes on {device.name}",
            expected=f"{size} bytes of device memory and as much pinned host memory",
            got=f"{free} of {total} device bytes free ({error})",
            mend="Use fewer slots or a smaller image, or free memory on the GPU.",
        ) from error


def _free(base: int, staging: int) -> None:
    checked(driver.cuMemFree(base), "freeing the ring")
    checked(driver.cuMemFreeHost(staging), "freeing the staging buffers")


def events_of(read_done: Iterable[ReadDone]) -> list[Event]:
    """Return all events of some marks; each is a tuple, an event for each stream that read."""
    return [event for mark in read_done for event in mark]  # type: ignore[attr-defined]


def _downloaded(address: int, size_bytes: int, written: Event) -> UInt8Array:
    """Copy a slot to the host once its frame is complete."""
    written.synchronize()
    pixels = np.empty(size_bytes, np.uint8)
    checked(driver.cuMemcpyDtoH(pixels.ctypes.data, address, size_bytes), "downloading a frame")
    return pixels


def _reader_writes() -> FrameError:
    return FrameError("a reader does not write")


def _on_device_only() -> FrameError:
    return FrameError(
        "the frame lives in device memory only",
        mend="Use lease.on_device(stream) or lease.to_host(), or a host transport.",
    )
