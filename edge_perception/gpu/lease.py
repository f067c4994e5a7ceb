"""A reader's hold on one frame."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import PACKED_BYTES_PER_PIXEL, ImageFormat, UInt8Array, view_image
from edge_perception.errors import FrameError
from edge_perception.gpu import dlpack
from edge_perception.gpu.ledger import Grant, ReadDone
from edge_perception.gpu.lost_gpu import giving_back
from edge_perception.gpu.memory import FrameMemory


class FrameLease:
    """Read access to one frame; while it is held, the slot is not overwritten.

    A context manager. ``release`` is idempotent; afterwards every access raises ``FrameError``.
    It never waits for a GPU, except on ``cuda_mapped`` between processes. Arrays and pointers
    taken from the lease must not be used after its release; GPU work already queued on a stream
    given to ``on_device`` is waited for by the writer's stream.
    """

    def __init__(
        self,
        grant: Grant,
        memory: FrameMemory,
        give_back: Callable[[Grant, ReadDone | None], None],
    ) -> None:
        self._grant = grant
        self._memory: FrameMemory | None = memory
        self._give_back = give_back
        self._streams: set[int] = set()
        self._capsules = 0

    @property
    def info(self) -> FrameInfo:
        """Stamp, frame_id, format and times of the frame; stays readable after the release."""
        return self._grant.info

    @property
    def sequence(self) -> int:
        """The frame's sequence number."""
        return self._grant.info.sequence

    @property
    def pixels(self) -> UInt8Array:
        """The frame's bytes on the host, read-only uint8 ``(size_bytes,)``; no copy.

        Raises:
            FrameError: released, or the frame lives in device memory only.
        """
        return self._held().host_view(self._grant.slot, self.info.format.size_bytes)

    @property
    def on_gpu(self) -> bool:
        """Whether ``on_device`` works: the frame lies where its GPU can read it."""
        return self._held().dlpack_device[0] == dlpack.CUDA

    def to_host(self) -> UInt8Array:
        """The frame's bytes on the host, uint8 ``(size_bytes,)``, wherever it lies.

        ``pixels`` where those are host memory; a copy of device memory otherwise, which waits for
        the frame to be complete.

        Raises:
            FrameError: released.
            CudaError: the ring's GPU has failed.
        """
        return self._held().download(self._grant.slot, self.info.format.size_bytes)

    @property
    def image(self) -> UInt8Array:
        """The frame as ``core.image.view_image`` shapes it, read-only; no copy."""
        return view_image(self.pixels, self.info.format)

    def on_device(self, stream: int) -> DeviceImage:
        """View the frame for GPU work on ``stream`` (a handle), which waits for the upload.

        Nothing is waited for on the CPU. The stream must live until the lease's release, which
        marks the end of the work on it.

        Raises:
            FrameError: released, or the frame lives in host memory only.
            CudaError: the ring's GPU has failed.
        """
        memory = self._held()
        pointer = memory.device_pointer(self._grant.slot)
        memory.wait_written(self._grant.slot, stream)
        self._streams.add(stream)
        return DeviceImage(pointer, self.info.format, stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        """``DLDeviceType`` and ordinal of the frame's memory."""
        return self._held().dlpack_device

    def __dlpack__(self, *, stream: int | None = None, **_: object) -> object:
        """Hand the lease over to a consumer: the end of its last tensor is the lease's release.

        ``release`` and the end of a ``with`` block do nothing from then on. The tensor is uint8,
        shaped as ``image``, and must only be read. ``stream`` is the consumer's, by DLPack's
        convention (None and 1: the legacy default stream; -1: no wait).
        """
        memory = self._held()
        kind, ordinal = memory.dlpack_device
        mapped: UInt8Array | None = None  # an array keeps its mapping in place
        if kind == dlpack.CPU:
            mapped = self.pixels
            pointer = mapped.ctypes.data
        else:
            pointer = self.on_device(0 if stream in (None, 1, -1) else int(stream or 0)).pointer
        shape, strides = image_geometry(self.info.format)
        self._capsules += 1

        def end() -> None:
            nonlocal mapped
            mapped = None
            self._capsules -= 1
            self.release()

        return dlpack.make_capsule(pointer, shape, strides, (kind, ordinal), end)

    def release(self) -> None:
        """End the hold, unless a DLPack tensor has taken it over. Later calls do nothing."""
        if self._capsules:
            return
        memory, self._memory = self._memory, None
        if memory is None:
            return
        self._give_back(self._grant, self._mark_end(memory))

    def _mark_end(self, memory: FrameMemory) -> ReadDone | None:
        """Mark the end of the work on the frame; None if there was none, or its GPU is lost."""
        mark: ReadDone | None = None
        if self._streams:
            with giving_back(f"the mark behind frame {self.sequence}"):
                mark = memory.record_read(self._grant.slot, self._streams)
        return mark

    def __enter__(self) -> FrameLease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _held(self) -> FrameMemory:
        if self._memory is None:
            raise FrameError(
                f"frame {self.sequence} was already released",
                mend="Keep the lease until the last use of its pixels.",
            )
        return self._memory


class DeviceImage:
    """A frame's address on the GPU, valid on one stream while its lease is held."""

    def __init__(self, pointer: int, image_format: ImageFormat, stream: int) -> None:
        self.pointer = pointer
        self.format = image_format
        self._stream = stream

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """To be read only; uint8, shaped as ``core.image.view_image`` shapes host frames."""
        shape, strides = image_geometry(self.format)
        return {
            "version": 3,
            "typestr": "|u1",
            "shape": shape,
            "strides": strides,
            "data": (self.pointer, False),  # torch refuses arrays that say they are read-only
            "stream": self._stream or 1,  # 0 is not allowed there; 1 is the legacy default
        }


def image_geometry(image_format: ImageFormat) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return shape and strides in bytes of a frame, as ``view_image`` shapes it."""
    channels = PACKED_BYTES_PER_PIXEL.get(image_format.encoding, 1)
    if channels == 1:
        return (image_format.rows, image_format.width), (image_format.step, 1)
    shape = (image_format.rows, image_format.width, channels)
    return shape, (image_format.step, channels, 1)
