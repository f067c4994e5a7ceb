"""A reader's hold on one frame."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import UInt8Array, view_image
from edge_perception.errors import FrameError
from edge_perception.gpu.ledger import Grant, ReadDone
from edge_perception.gpu.memory import FrameMemory


class FrameLease:
    """Read access to one frame; while it is held, the slot is not overwritten.

    A context manager. ``release`` is idempotent and never blocks; afterwards every access raises
    ``FrameError``. Arrays taken from the lease must not be used after its release.
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
    def image(self) -> UInt8Array:
        """The frame as ``core.image.view_image`` shapes it, read-only; no copy."""
        return view_image(self.pixels, self.info.format)

    @property
    def released(self) -> bool:
        """Whether the hold has ended."""
        return self._memory is None

    def release(self) -> None:
        """End the hold. The second and later calls do nothing."""
        memory, self._memory = self._memory, None
        if memory is not None:
            self._give_back(self._grant, None)

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
