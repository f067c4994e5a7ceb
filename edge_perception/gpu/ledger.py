"""Who reads which slot: the state machine of one epoch of a frame ring.

Pure bookkeeping without memory, threads or clocks, so that its rules can be tested by
exhaustive sequences of calls. ``FrameRing`` calls it under its lock.

A slot is *free*, *being written* or *published*. A published slot can carry any number of leases.
The writer takes the oldest slot that carries none; only the lease's own release, or the death of
its holder, takes a lease away. A lease held too long is *quarantined*: its slot is counted out of
the ring but stays untouched, because its reader may still be reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from edge_perception.core.frame import FrameInfo
from edge_perception.errors import FrameError

ReadDone = object
"""What a transport returns to mark the end of a reader's work; opaque here."""


@dataclass(frozen=True)
class Grant:
    """The right to read one slot while its generation lasts.

    ``reader`` names the holder for reports ("in-process", "pid 4711"); ``granted_ns`` is
    ``time.monotonic_ns``.
    """

    serial: int
    epoch: int
    slot: int
    generation: int
    info: FrameInfo
    reader: str
    granted_ns: int
    quarantined: bool = False


@dataclass
class _Slot:
    generation: int = 0
    info: FrameInfo | None = None
    being_written: bool = False
    leases: set[int] = field(default_factory=set)
    read_done: list[ReadDone] = field(default_factory=list)

    @property
    def sequence(self) -> int:
        return self.info.sequence if self.info is not None else 0


class SlotLedger:
    """The slots of one epoch and the leases on them. Not thread-safe."""

    def __init__(self, epoch: int, slots: int) -> None:
        self.epoch = epoch
        self._slots = [_Slot() for _ in range(slots)]
        self._grants: dict[int, Grant] = {}
        self._next_serial = 1

    @property
    def grants(self) -> Sequence[Grant]:
        """All leases in force, oldest first."""
        return tuple(self._grants.values())

    @property
    def usable_slots(self) -> int:
        """Slots that no quarantined lease holds."""
        held = {grant.slot for grant in self._grants.values() if grant.quarantined}
        return len(self._slots) - len(held)

    def take_slot(self, in_use: Callable[[int, Sequence[ReadDone]], bool]) -> int | None:
        """Mark the oldest slot that nobody reads as being written and return it.

        ``in_use`` tells, for a slot and the marks that released readers left there, whether the
        writer would have to wait; such a slot counts as read. Returns None when every slot is read.
        """
        candidates = [
            index
            for index, slot in enumerate(self._slots)
            if not slot.leases and not slot.being_written and not in_use(index, slot.read_done)
        ]
        if not candidates:
            return None
        oldest = min(candidates, key=lambda index: self._slots[index].sequence)
        slot = self._slots[oldest]
        slot.generation += 1
        slot.info = None
        slot.being_written = True
        return oldest

    def take_read_done(self, slot: int) -> list[ReadDone]:
        """Return and forget the marks the next write of ``slot`` must come after."""
        marks, self._slots[slot].read_done = self._slots[slot].read_done, []
        return marks

    def publish(self, slot: int, info: FrameInfo) -> None:
        """Make the slot's new content readable."""
        self._slots[slot].info = info
        self._slots[slot].being_written = False

    def abandon(self, slot: int, read_done: Sequence[ReadDone] = ()) -> None:
        """Give a slot back whose write failed; it holds no frame.

        ``read_done`` are the marks that the failed write took; the next must come after them too.
        """
        self._slots[slot].being_written = False
        self._slots[slot].read_done.extend(read_done)

    def grant_newest(self, after: int, reader: str, now_ns: int) -> Grant | None:
        """Lease the newest published frame whose sequence is above ``after``, if there is one."""
        newest = max(range(len(self._slots)), key=lambda index: self._slots[index].sequence)
        slot = self._slots[newest]
        if slot.info is None or slot.info.sequence <= after:
            return None
        grant = Grant(
            serial=self._next_serial,
            epoch=self.epoch,
            slot=newest,
            generation=slot.generation,
            info=slot.info,
            reader=reader,
            granted_ns=now_ns,
        )
        self._next_serial += 1
        self._grants[grant.serial] = grant
        slot.leases.add(grant.serial)
        return grant

    def release(self, grant: Grant, read_done: ReadDone | None = None) -> None:
        """End a lease. ``read_done`` marks the end of work still queued on a device.

        Raises:
            FrameError: the lease is not in force, or its generation has passed.
        """
        slot = self._slots[grant.slot]
        known = self._grants.get(grant.serial)
        if known != replace(grant, quarantined=known is not None and known.quarantined) or (
            slot.generation != grant.generation
        ):
            raise FrameError(
                "release of a lease that is not in force",
                expected="a lease of this epoch, released once",
                got=(grant.epoch, grant.slot, grant.generation, grant.serial),
            )
        del self._grants[grant.serial]
        slot.leases.discard(grant.serial)
        if read_done is not None:
            slot.read_done.append(read_done)

    def quarantine(self, granted_before_ns: int) -> list[Grant]:
        """Count leases out that were granted before a time; returns the newly quarantined."""
        overdue = [
            replace(grant, quarantined=True)
            for grant in self._grants.values()
            if grant.granted_ns < granted_before_ns and not grant.quarantined
        ]
        self._grants.update((grant.serial, grant) for grant in overdue)
        return overdue
