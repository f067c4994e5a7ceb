"""Where a node's frames come from: a camera node in the same process, or handles on a topic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from edge_perception.errors import CudaError, FrameError, FrameWriterGone
from edge_perception.gpu.lease import FrameLease
from edge_perception.gpu.reader import FrameReader
from edge_perception.nodes.camera import CameraNode
from edge_perception.nodes.messages import from_frame_handle


class FrameStream(Protocol):
    """One camera's frames, newest first. Used by the thread of the node that reads it.

    ``refused`` counts the frame handles that named no ring, ``last_refusal`` says why.
    """

    @property
    def name(self) -> str:
        """What the stream is called in ledgers."""

    refused: int
    last_refusal: str

    @property
    def transport(self) -> str:
        """Name of the way the frames come, "" while there is none."""

    @property
    def skipped(self) -> int:
        """Frames that the camera made and this reader never saw."""

    def start(self, node: Node, wake: Callable[[], None], *, eager: bool) -> None:
        """Begin; ``wake`` is called, on any thread, whenever a new frame may be there.

        ``eager`` asks for every frame; otherwise one comes when ``want_next`` was called, the
        first without.
        """

    def want_next(self) -> None:
        """Say that the next frame will soon be taken; a hint that eager readers need not give."""

    def acquire_newest(self) -> FrameLease | None:
        """Lease the newest frame not yet seen, or return None. The caller releases it."""

    def stop(self) -> None:
        """End; leases that are still held stay valid."""


class _SkipCounter:
    """Counts the gaps in the sequence numbers that one reader sees."""

    def __init__(self) -> None:
        self.last = 0
        self.skipped = 0
        self._counting = False

    def see(self, lease: FrameLease | None) -> FrameLease | None:
        if lease is not None:
            # The first frame after a pause begins the count: those before were not this reader's.
            self.skipped += lease.sequence - self.last - 1 if self._counting else 0
            self.last = lease.sequence
            self._counting = True
        return lease

    def pause(self) -> None:
        self._counting = False


class LocalFrameStream:
    """Reads the ring of a camera node in the same process."""

    def __init__(self, camera: CameraNode) -> None:
        self.name = camera.get_name()
        self.refused = 0
        self.last_refusal = ""
        self._camera = camera
        self._seen = _SkipCounter()
        self._token = 0

    @property
    def transport(self) -> str:
        """The transport of the camera's ring."""
        ring = self._camera.ring
        return "" if ring is None else ring.transport.name

    @property
    def skipped(self) -> int:
        """Frames never seen."""
        return self._seen.skipped

    def start(self, _: Node, wake: Callable[[], None], *, eager: bool) -> None:
        """Have the camera's thread call ``wake`` after each write."""
        self._token = self._camera.demand.join(wake, eager=eager)

    def want_next(self) -> None:
        """Have the camera take the newest message now."""
        self._camera.demand.ask(self._token)

    def acquire_newest(self) -> FrameLease | None:
        """Lease the newest frame not yet seen; None also while the camera is not configured."""
        ring = self._camera.ring
        if ring is None:
            return None
        try:
            return self._seen.see(ring.acquire_newest(self._seen.last))
        except FrameError:  # closed between the look and the call
            return None

    def stop(self) -> None:
        """Ask to be woken no more."""
        self._camera.demand.leave(self._token)
        self._seen.pause()


class RemoteFrameStream:
    """Reads the ring of a camera node in another process, by the handles on its topic."""

    def __init__(self, topic: str) -> None:
        self.name = topic
        self.refused = 0
        self.last_refusal = ""
        self._seen = _SkipCounter()
        self._reader: FrameReader | None = None
        self._subscription: Any = None
        self._node: Node | None = None
        self._wake: Callable[[], None] = lambda: None

    @property
    def transport(self) -> str:
        """The transport of the ring attached to."""
        return "" if self._reader is None else self._reader.transport

    @property
    def skipped(self) -> int:
        """Frames never seen."""
        return self._seen.skipped

    def start(self, node: Node, wake: Callable[[], None], *, eager: bool) -> None:
        """Subscribe to the handles."""
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
        )
        self._node, self._wake = node, wake
        self._subscription = node.create_subscription(Image, self.name, self._on_handle, qos)

    def want_next(self) -> None:
        """Nothing: the other process writes every frame."""

    def acquire_newest(self) -> FrameLease | None:
        """Lease the newest frame not yet seen."""
        if self._reader is None:
            return None
        try:
            return self._seen.see(self._reader.acquire_newest(self._seen.last))
        except FrameWriterGone:
            self._detach()  # its successor's next handle attaches again
        except (FrameError, CudaError) as error:  # CUDA's: its memory cannot be opened here
            self._refuse(error)
            self._detach()
        return None

    def stop(self) -> None:
        """Unsubscribe and hang up."""
        if self._node is not None and self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
        self._detach()

    def _on_handle(self, message: Image) -> None:
        try:
            self._attach(from_frame_handle(message))
        except FrameError as error:
            self._refuse(error)
            return
        self._wake()

    def _refuse(self, error: FrameError | CudaError) -> None:
        self.refused += 1
        self.last_refusal = str(error)

    def _attach(self, descriptor: bytes) -> None:
        if self._reader is not None and self._reader.matches(descriptor):
            return
        self._detach()
        self._reader = FrameReader.attach(descriptor)

    def _detach(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._seen.last = 0  # another writer counts from 1 again
        self._seen.pause()
