"""The frame ring: a frame is written once, everybody reads it, nobody waits.

The idea. A fixed number of slots. The writer takes the oldest slot that nobody reads; if all are
read, the new frame is dropped and counted. A reader leases the newest frame and holds it as long
as it needs; what is leased is never overwritten.

Between processes, the usual design puts the bookkeeping into shared memory beside the pixels and
guards it with atomics or a robust mutex. Python has neither, on Arm (Jetson) plain stores are not
even ordered, and a reader killed between two stores leaves a state that nobody can judge. So only
pixels are shared here. The bookkeeping (``ledger``) is ordinary objects of the writer's process,
and a reader asks for its leases over a Unix socket (``lease_server``): the kernel orders the
messages after the memory accesses they speak of, hands the memory file over, and reports the
death of a reader, however it died. A reader can lose only its own lease.

Why ``write`` never waits on a reader. The lock below guards a few dictionary operations of this
process's own threads and is never held during a copy, a system call that can block, or a
reader's turn. Releases do not take it at all: they go through a queue that the next operation
settles, which also makes them safe in a finaliser that the garbage collector runs at any point,
the lock's holder included.

What was left out: several writers a ring, and reading an older frame than the newest. The price:
a reader in another process pays a round trip to a thread of the writer's process for each frame
(tens of microseconds when the writer is idle, up to the interpreter's switch interval when it is
busy in Python), where a lock-free table would cost one.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat, UInt8Array, check_size
from edge_perception.errors import CudaError, FrameError
from edge_perception.gpu.descriptor import FrameDescriptor
from edge_perception.gpu.host_memory import InProcessTransport
from edge_perception.gpu.lease import FrameLease
from edge_perception.gpu.lease_server import LeaseServer
from edge_perception.gpu.ledger import Grant, ReadDone, SlotLedger
from edge_perception.gpu.lost_gpu import giving_back
from edge_perception.gpu.memory import FrameMemory, Transport
from edge_perception.gpu.ring_spec import RingCounters, RingSpec

_LOG = logging.getLogger(__name__)
_MIN_USABLE_SLOTS = 2
_MAX_RETIRED_EPOCHS = 4

# Fills a slot of a memory after its readers' marks, and tells what the frame is.
_Put = Callable[[FrameMemory, int, Sequence[ReadDone]], FrameInfo]


@dataclass
class _Counts:
    written: int = 0
    dropped_all_slots_leased: int = 0
    remade_larger: int = 0
    remade_quarantined: int = 0
    granted: int = 0
    quarantined: int = 0
    freed_by_death: int = 0
    stale_releases: int = 0
    subscriber_errors: int = 0


@dataclass(frozen=True)
class _Epoch:
    ledger: SlotLedger
    memory: FrameMemory


@dataclass(frozen=True)
class _Release:
    grant: Grant
    read_done: ReadDone | None = None
    by_death: bool = False


class FrameRing:
    """The writer's side, and the place where threads of its process read.

    One thread calls ``write``; any thread may call the rest. A context manager.
    """

    def __init__(self, spec: RingSpec, transport: Transport) -> None:
        self.spec = spec
        self.transport = transport
        self.ring_id = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._counts = _Counts()
        self._releases: queue.SimpleQueue[_Release] = queue.SimpleQueue()
        self._subscribers: list[Callable[[int], None]] = []
        self._last_sequence = 0
        self._closed = False
        self._failure: CudaError | None = None
        self._retired: list[_Epoch] = []
        self._current = self._allocate(1, spec.slot_bytes or 1)
        self._server: LeaseServer | None = None
        if transport.crosses_processes:
            self._server = LeaseServer(self.ring_id, transport.name, _Desk(self))
            self._subscribers.append(lambda _sequence: self._notify_readers())

    @classmethod
    def create(cls, spec: RingSpec, transport: Transport | None = None) -> FrameRing:
        """Allocate a ring; in-process host memory unless a transport is given.

        Raises:
            FrameError: not enough memory; the error names the sizes.
        """
        return cls(spec, transport or InProcessTransport())

    @property
    def counters(self) -> RingCounters:
        """A snapshot; takes the lock for microseconds."""
        with self._lock:
            self._settle()
            grants = [g for epoch in (*self._retired, self._current) for g in epoch.ledger.grants]
            now_ns = time.monotonic_ns()
            return RingCounters(
                **vars(self._counts),
                refused=self._server.refused if self._server else 0,
                epoch=self._current.ledger.epoch,
                leases_held=len(grants),
                usable_slots=self._current.ledger.usable_slots,
                readers=self._server.readers if self._server else 0,
                oldest_lease_age_ns=max((now_ns - g.granted_ns for g in grants), default=0),
            )

    @property
    def failure(self) -> CudaError | None:
        """The sticky error that ended this ring, if one did."""
        return self._failure

    @property
    def overdue(self) -> list[Grant]:
        """Leases in quarantine, for the report: who, which slot, since when."""
        with self._lock:
            self._settle()
            epochs = (*self._retired, self._current)
            return [g for epoch in epochs for g in epoch.ledger.grants if g.quarantined]

    def descriptor(self, sequence: int) -> bytes:
        """Return what other processes attach with, the ``data`` of ``~/frames``."""
        epoch = self._current.ledger.epoch
        return FrameDescriptor.here(self.ring_id, epoch, sequence).pack()

    def subscribe(self, callback: Callable[[int], None]) -> None:
        """Call ``callback(sequence)`` after each write, on the writer's thread.

        It must return at once. What it raises is logged and counted, never passed to the writer.
        """
        self._subscribers = [*self._subscribers, callback]

    def unsubscribe(self, callback: Callable[[int], None]) -> None:
        """Stop calling a callback; unknown ones are ignored."""
        self._subscribers = [kept for kept in self._subscribers if kept is not callback]

    def write(self, pixels: UInt8Array, info: FrameInfo) -> int | None:
        """Copy a frame in and publish it.

        Args:
            pixels: uint8 ``(n,)``, contiguous, as ``info.format`` describes (row padding
                included, the last row's optional). Free for reuse on return.
            info: ``sequence`` must be above that of every earlier write.

        Returns:
            The sequence, or None when every slot is read and the frame was dropped (counted).

        Raises:
            ImageError: the number of bytes does not fit the format.
            FrameError: the ring is closed, the sequence does not increase, or the frame is larger
                than ``max_slot_bytes`` or than the memory left.
            CudaError: the GPU failed. After a sticky error the ring hands nothing out any more.
        """
        check_size(pixels.size, info.format)
        self._check_sequence(info)

        def copy(memory: FrameMemory, slot: int, read_done: Sequence[ReadDone]) -> FrameInfo:
            np.copyto(memory.staging(slot, pixels.size), pixels)
            memory.commit(slot, pixels.size, read_done)
            return info

        return None if self._publish(info.format, copy) is None else info.sequence

    def write_by(
        self, image_format: ImageFormat, fill: Callable[[UInt8Array], FrameInfo]
    ) -> FrameInfo | None:
        """Let a decoder put a frame where it belongs, and publish it; saves the copy of ``write``.

        Args:
            image_format: of the frame to come.
            fill: is given uint8 ``(size_bytes,)`` to fill, old bytes in it, and returns the facts
                of the frame. What it raises passes on, and nothing is published. Not called when
                every slot is read.

        Returns:
            What ``fill`` told, or None when the frame was dropped (counted).

        Raises:
            FrameError, CudaError: as ``write``.
        """

        def put(memory: FrameMemory, slot: int, read_done: Sequence[ReadDone]) -> FrameInfo:
            info = fill(memory.staging(slot, image_format.size_bytes))
            self._check_sequence(info)
            memory.commit(slot, image_format.size_bytes, read_done)
            return info

        return self._publish(image_format, put)

    def write_on_device(
        self, image_format: ImageFormat, enqueue: Callable[[int, int], FrameInfo]
    ) -> FrameInfo | None:
        """Let work on the GPU put a frame into device memory, and publish it.

        Args:
            image_format: of the frame to come.
            enqueue: ``enqueue(pointer, stream)`` queues what fills the slot at ``pointer``, and
                returns the facts of the frame; else as ``fill`` of ``write_by``.

        Returns:
            What ``enqueue`` told, or None when the frame was dropped (counted).

        Raises:
            FrameError, CudaError: as ``write``; also where the slots are host memory.
        """

        def put(memory: FrameMemory, slot: int, read_done: Sequence[ReadDone]) -> FrameInfo:
            told: list[FrameInfo] = []

            def ask(pointer: int, stream: int) -> None:
                told.append(enqueue(pointer, stream))
                self._check_sequence(told[0])

            memory.fill_on_device(slot, read_done, ask)
            return told[0]

        return self._publish(image_format, put)

    def acquire_newest(self, after: int = 0) -> FrameLease | None:
        """Lease the newest frame whose sequence is above ``after``; None if there is none.

        Raises:
            FrameError: the ring is closed, or has lost its GPU.
        """
        granted = self._grant_newest(after, "in-process")
        if granted is None:
            return None
        grant, memory = granted
        return FrameLease(grant, memory, self._give_back)

    def close(self) -> None:
        """Hang up on readers and let go of the memory; idempotent.

        Memory on which threads of this process hold leases is kept until their release; device
        memory on which other processes do, until this process ends (logged).
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._retired.append(self._current)
        if self._server is not None:
            for grant in self._server.close():
                self._forget_distant(grant)
        with self._lock:
            self._settle()

    def __enter__(self) -> FrameRing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise FrameError(f"ring {self.spec.name!r} is closed")
        if self._failure is not None:
            raise FrameError(
                f"ring {self.spec.name!r} has lost its GPU: {self._failure}",
                mend="Restart the process that writes it.",
            )

    def _fail(self, error: CudaError) -> None:
        """Hand out no frame after a sticky error: none can be known to be whole."""
        if error.sticky:
            self._failure = error
            _LOG.error("ring %r: %s", self.spec.name, error)
            self._notify_readers()

    def _publish(self, image_format: ImageFormat, put: _Put) -> FrameInfo | None:
        """Take a slot, have it filled, and show it to readers; None when all slots are read."""
        self._check_open()
        self._check_room(image_format)
        try:
            epoch, slot = self._take_slot(image_format.size_bytes)
            if slot is None:
                return None
            info = self._fill(epoch, slot, put)
        except CudaError as error:
            self._fail(error)
            raise
        with self._lock:
            epoch.ledger.publish(slot, info)
            self._last_sequence = info.sequence
            self._counts.written += 1
        self._tell_subscribers(info.sequence)
        return info

    def _fill(self, epoch: _Epoch, slot: int, put: _Put) -> FrameInfo:
        """Fill a slot that was taken; one that could not be filled holds no frame afterwards."""
        read_done = epoch.ledger.take_read_done(slot)
        try:
            return put(epoch.memory, slot, read_done)
        except BaseException:
            with self._lock:
                epoch.ledger.abandon(slot, read_done)
            raise

    def _check_sequence(self, info: FrameInfo) -> None:
        if info.sequence <= self._last_sequence:
            raise FrameError(
                "frame sequence does not increase",
                expected=f"above {self._last_sequence}",
                got=info.sequence,
            )

    def _check_room(self, image_format: ImageFormat) -> None:
        if image_format.size_bytes > self.spec.max_slot_bytes:
            raise FrameError(
                f"frame is too large for ring {self.spec.name!r}",
                expected=f"at most {self.spec.max_slot_bytes} bytes",
                got=image_format.size_bytes,
                mend="Raise max_slot_bytes if the camera is really that large.",
            )

    def _take_slot(self, size_bytes: int) -> tuple[_Epoch, int | None]:
        """Choose where the next frame goes, in a new epoch if the current one will not do."""
        with self._lock:
            self._settle()
            self._quarantine_overdue()
            too_small = size_bytes > self._current.memory.slot_bytes
            too_few = self._current.ledger.usable_slots < _MIN_USABLE_SLOTS
            may_remake = len(self._retired) < _MAX_RETIRED_EPOCHS
        if (too_small or too_few) and may_remake:
            self._remake_or_stay(size_bytes, larger=too_small)
            too_small = False
        with self._lock:
            epoch = self._current
            slot = None if too_small else epoch.ledger.take_slot(epoch.memory.must_wait)
            if slot is None:
                self._counts.dropped_all_slots_leased += 1
            return epoch, slot

    def _remake_or_stay(self, size_bytes: int, *, larger: bool) -> None:
        """Begin an epoch whose slots hold a frame; without memory, stay with few slots.

        Raises ``FrameError`` where memory is lacking and the old slots are too small.
        """
        try:
            self._remake(max(size_bytes, self._current.memory.slot_bytes), larger=larger)
        except FrameError as error:
            if larger:
                raise
            _LOG.warning("The frame ring stays with few free slots: %s", error)

    def _remake(self, slot_bytes: int, *, larger: bool) -> None:
        """Begin a new epoch. The old memory stays until its last lease ends."""
        fresh = self._allocate(self._current.ledger.epoch + 1, slot_bytes)
        with self._lock:
            self._retired.append(self._current)
            self._current = fresh
            if larger:
                self._counts.remade_larger += self._counts.written > 0
            else:
                self._counts.remade_quarantined += 1
            self._settle()

    def _allocate(self, epoch: int, slot_bytes: int) -> _Epoch:
        memory = self.transport.allocate(self.spec.slots, slot_bytes)
        return _Epoch(SlotLedger(epoch, self.spec.slots), memory)

    def _quarantine_overdue(self) -> None:
        limit_ns = time.monotonic_ns() - int(self.spec.lease_overdue_s * 1e9)
        for grant in self._current.ledger.quarantine(limit_ns):
            self._counts.quarantined += 1
            _LOG.warning(
                "ring %r: %s has held frame %d for over %g s; its slot is set aside",
                self.spec.name,
                grant.reader,
                grant.info.sequence,
                self.spec.lease_overdue_s,
            )

    def _settle(self) -> None:
        """Book the queued releases and free retired memory that nobody reads. Lock held."""
        while True:
            try:
                release = self._releases.get_nowait()
            except queue.Empty:
                break
            self._book(release)
        for epoch in [epoch for epoch in self._retired if not epoch.ledger.grants]:
            self._retired.remove(epoch)
            with giving_back(f"memory of ring {self.spec.name!r}"):
                epoch.memory.close()

    def _forget_distant(self, grant: Grant) -> None:
        """Give up another process's lease after the hang-up, if its mapping is its own."""
        for epoch in self._retired:
            if epoch.ledger.epoch == grant.epoch and epoch.memory.outlives_writer:
                self._releases.put(_Release(grant))
                return
        _LOG.warning("ring %r: %s still reads; memory is kept", self.spec.name, grant.reader)

    def _book(self, release: _Release) -> None:
        for epoch in (self._current, *self._retired):
            if epoch.ledger.epoch == release.grant.epoch:
                try:
                    epoch.ledger.release(release.grant, release.read_done)
                except FrameError as error:
                    self._counts.stale_releases += 1
                    _LOG.warning("ring %r: %s", self.spec.name, error)
                else:
                    self._counts.freed_by_death += release.by_death
                return
        self._counts.stale_releases += 1

    def _grant_newest(self, after: int, reader: str) -> tuple[Grant, FrameMemory] | None:
        with self._lock:
            self._check_open()
            self._settle()
            grant = self._current.ledger.grant_newest(after, reader, time.monotonic_ns())
            self._counts.granted += grant is not None
            return (grant, self._current.memory) if grant is not None else None

    def _import_read_done(self, grant: Grant, exported: str) -> ReadDone | None:
        """Understand what a reader in another process queued on its slot."""
        for epoch in (self._current, *self._retired):
            if exported and epoch.ledger.epoch == grant.epoch:
                return epoch.memory.import_read_done(exported)
        return None

    def _give_back(
        self, grant: Grant, read_done: ReadDone | None, *, by_death: bool = False
    ) -> None:
        self._releases.put(_Release(grant, read_done, by_death))
        if self._closed and self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _tell_subscribers(self, sequence: int) -> None:
        for callback in self._subscribers:
            try:
                callback(sequence)
            except Exception:
                self._counts.subscriber_errors += 1
                _LOG.exception("ring %r: a subscriber failed", self.spec.name)

    def _notify_readers(self) -> None:
        if self._server is not None:
            self._server.notify()


class _Desk:
    """The ring as its lease server sees it."""

    def __init__(self, ring: FrameRing) -> None:
        self._ring = ring

    def grant_newest(self, after: int, reader: str) -> tuple[Grant, FrameMemory] | None:
        return self._ring._grant_newest(after, reader)

    def give_back(self, grant: Grant, read_done: str) -> None:
        self._ring._give_back(grant, self._ring._import_read_done(grant, read_done))

    def take_from_dead(self, grant: Grant) -> None:
        self._ring._give_back(grant, None, by_death=True)
