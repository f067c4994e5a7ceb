"""Slots in shared host memory that the GPU of each process reads in place.

For Jetson, whose GPU reads host memory anyway and has no legacy CUDA IPC, and where IPC fails. The
slots are shared memory registered with CUDA in every process. There is no upload: the CPU writes,
so a slot is free only when its readers' GPU work is done. Events do not cross processes here, so a
reader in another process lets its own CPU wait for its last kernel before it gives a lease back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from cuda.bindings import driver

from edge_perception.core.image import UInt8Array
from edge_perception.gpu import dlpack
from edge_perception.gpu.cuda import Device, Event, checked, get_device
from edge_perception.gpu.cuda_memory import events_of
from edge_perception.gpu.host_memory import HostMemory, SharedMemoryTransport
from edge_perception.gpu.ledger import ReadDone
from edge_perception.gpu.lost_gpu import giving_back
from edge_perception.gpu.memory import ExportedMemory


class MappedMemory:
    """Shared host slots that the GPU of each process reads in place; closes ``host`` itself."""

    outlives_writer = True

    def __init__(self, host: HostMemory, device: Device) -> None:
        self._host = host
        self._device = device
        with ExitStack() as owned:  # what was acquired before a later call fails is given back
            owned.callback(host.close)
            device.make_current()
            address, size = host.extent()
            checked(
                driver.cuMemHostRegister(address, size, driver.CU_MEMHOSTREGISTER_DEVICEMAP),
                "registering shared memory with CUDA",
            )
            owned.callback(_unregister, address, device)
            mapped = driver.cuMemHostGetDevicePointer(address, 0)
            self._base = int(checked(mapped, "mapping memory"))
            self._owned = owned.pop_all()

    @property
    def slot_bytes(self) -> int:
        return self._host.slot_bytes

    @property
    def dlpack_device(self) -> tuple[int, int]:
        return (dlpack.CUDA, self._device.ordinal)  # what a GPU reader may do with the pointer

    def staging(self, slot: int, size_bytes: int) -> UInt8Array:
        return self._host.staging(slot, size_bytes)

    def commit(self, slot: int, size_bytes: int, read_done: Sequence[ReadDone]) -> None:
        """Forget the readers' events, which ``must_wait`` found done; nothing is uploaded."""
        for event in events_of(read_done):
            event.close()

    def fill_on_device(
        self, slot: int, read_done: Sequence[ReadDone], enqueue: Callable[[int, int], None]
    ) -> None:
        # The GPU could write here, but CPU readers of the slot would have no event to wait for.
        self._host.fill_on_device(slot, read_done, enqueue)

    def must_wait(self, slot: int, read_done: Sequence[ReadDone]) -> bool:
        self._device.make_current()
        return not all(event.done() for event in events_of(read_done))

    def host_view(self, slot: int, size_bytes: int) -> UInt8Array:
        return self._host.host_view(slot, size_bytes)

    def download(self, slot: int, size_bytes: int) -> UInt8Array:
        return self._host.host_view(slot, size_bytes)

    def device_pointer(self, slot: int) -> int:
        return self._base + slot * self._host.stride

    def wait_written(self, slot: int, stream: int) -> None:
        """Nothing to wait for: the CPU wrote before it published."""

    def record_read(self, slot: int, streams: Iterable[int]) -> ReadDone:
        self._device.make_current()
        events = tuple(Event() for _ in streams)
        for event, stream in zip(events, streams, strict=True):
            event.record(stream)
        return events

    def export_read_done(self, read_done: ReadDone) -> str:
        """Wait on this reader's CPU, since events do not cross processes here."""
        for event in events_of([read_done]):
            event.synchronize()
            event.close()
        return ""

    def import_read_done(self, exported: str) -> ReadDone:
        return ()

    def export(self) -> ExportedMemory:
        return self._host.export()

    def close(self) -> None:
        self._owned.close()


def _unregister(address: int, device: Device) -> None:
    with giving_back("the registration of shared memory"):
        device.make_current()
        device.synchronize()
        checked(driver.cuMemHostUnregister(address), "unregistering shared memory")


class CudaMappedTransport:
    """Shared host memory that GPUs read in place; integrated GPUs, and where IPC fails."""

    name = "cuda_mapped"
    crosses_processes = True
    device_memory = False

    def __init__(self, ordinal: int = 0) -> None:
        self._ordinal = ordinal
        # CUDA registers only memory that it may write, so readers map it writable too.
        self._files = SharedMemoryTransport(readers_may_write=True)

    def allocate(self, slots: int, slot_bytes: int) -> MappedMemory:
        device = get_device(self._ordinal)
        return MappedMemory(self._files.allocate(slots, slot_bytes), device)

    def open(self, exported: ExportedMemory) -> MappedMemory:
        device = get_device(self._ordinal)
        return MappedMemory(self._files.open(exported), device)
