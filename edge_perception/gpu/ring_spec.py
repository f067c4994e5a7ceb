"""Size and rules of a frame ring, and what became of its frames."""

from __future__ import annotations

from dataclasses import dataclass

from edge_perception.errors import FrameError


@dataclass(frozen=True)
class RingSpec:
    """Size and rules of a ring.

    ``slots`` must exceed ``max_leases``, the most frames held at one time, by two: one to write
    and one to publish. More leases than that are granted, and then cost dropped frames.
    ``slot_bytes`` is the stream's image size, 0 to learn it from the first frame;
    ``max_slot_bytes`` bounds what a hostile stream can make the ring allocate. A lease older than
    ``lease_overdue_s`` is quarantined.

    Raises:
        FrameError: too few slots, or a size out of range.
    """

    name: str
    slots: int = 4
    slot_bytes: int = 0
    max_leases: int = 2
    max_slot_bytes: int = 128 << 20
    lease_overdue_s: float = 5.0

    def __post_init__(self) -> None:
        if self.max_leases < 1 or self.slots < self.max_leases + 2:
            raise FrameError(
                f"ring {self.name!r} has too few slots",
                expected=f"at least {self.max_leases + 2} for {self.max_leases} leases",
                got=self.slots,
            )
        if not 0 <= self.slot_bytes <= self.max_slot_bytes:
            raise FrameError(
                f"slot_bytes of ring {self.name!r}",
                expected=f"0 to {self.max_slot_bytes}",
                got=self.slot_bytes,
            )
        if self.lease_overdue_s <= 0:
            raise FrameError("lease_overdue_s", expected="above 0", got=self.lease_overdue_s)


@dataclass(frozen=True)
class RingCounters:
    """What happened to a ring's frames so far, and how it stands now.

    Counts: frames ``written`` and ``dropped_all_slots_leased``; rings ``remade_larger`` and
    ``remade_quarantined``; leases ``granted``, ``quarantined``, ``freed_by_death``, and
    ``stale_releases``; readers ``refused``; ``subscriber_errors``. State: ``epoch``,
    ``leases_held``, ``usable_slots``, ``readers`` (other processes), ``oldest_lease_age_ns``.
    """

    written: int = 0
    dropped_all_slots_leased: int = 0
    remade_larger: int = 0
    remade_quarantined: int = 0
    granted: int = 0
    quarantined: int = 0
    freed_by_death: int = 0
    stale_releases: int = 0
    refused: int = 0
    subscriber_errors: int = 0
    epoch: int = 0
    leases_held: int = 0
    usable_slots: int = 0
    readers: int = 0
    oldest_lease_age_ns: int = 0

    @property
    def remade(self) -> int:
        """New epochs, whatever the reason."""
        return self.remade_larger + self.remade_quarantined
