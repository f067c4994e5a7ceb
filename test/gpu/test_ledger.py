"""The ring's bookkeeping under every order of calls that hypothesis can think of."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat
from edge_perception.errors import FrameError
from edge_perception.gpu.ledger import Grant, SlotLedger

FORMAT = ImageFormat.packed("mono8", 1, 1)


def info(sequence: int) -> FrameInfo:
    return FrameInfo(sequence, 0, "camera", FORMAT, 0, 0, 0)


def never(slot: int, marks: object) -> bool:
    return False


class LedgerMachine(RuleBasedStateMachine):
    """A model that knows which sequence lies in which slot and who reads it."""

    grants = Bundle("grants")

    @initialize(slots=st.integers(2, 6))
    def start(self, slots: int) -> None:
        self.ledger = SlotLedger(epoch=1, slots=slots)
        self.content: dict[int, int] = {}
        self.held: dict[int, Grant] = {}
        self.sequence = 0
        self.clock = 0

    @rule()
    def write(self) -> None:
        read = {grant.slot for grant in self.held.values()}
        slot = self.ledger.take_slot(never)
        if slot is None:
            assert len(read) == len(self.ledger._slots)
            return
        assert slot not in read
        others = {at: seq for at, seq in self.content.items() if at not in read}
        if len(self.content) == len(self.ledger._slots):
            assert self.content[slot] == min(others.values())
        self.sequence += 1
        self.ledger.publish(slot, info(self.sequence))
        self.content[slot] = self.sequence

    @rule()
    def fail_a_write(self) -> None:
        slot = self.ledger.take_slot(never)
        if slot is not None:
            self.ledger.abandon(slot)
            self.content.pop(slot, None)

    @rule(target=grants, after=st.integers(0, 30))
    def acquire(self, after: int) -> Grant | None:
        self.clock += 1
        grant = self.ledger.grant_newest(after, "test", self.clock)
        newest = max(self.content.values(), default=0)
        if newest <= after:
            assert grant is None
            return None
        assert grant is not None
        assert grant.info.sequence == newest
        self.held[grant.serial] = grant
        return grant

    @rule(grant=consumes(grants))
    def release(self, grant: Grant | None) -> None:
        if grant is not None:
            self.ledger.release(grant)
            del self.held[grant.serial]
            with pytest.raises(FrameError, match="not in force"):
                self.ledger.release(grant)

    @rule(age=st.integers(0, 5))
    def quarantine(self, age: int) -> None:
        overdue = self.ledger.quarantine(self.clock - age)
        assert all(grant.granted_ns < self.clock - age for grant in overdue)

    @invariant()
    def what_is_read_is_never_overwritten(self) -> None:
        for grant in getattr(self, "held", {}).values():
            assert self.content[grant.slot] == grant.info.sequence
            assert self.ledger._slots[grant.slot].generation == grant.generation

    @invariant()
    def usable_slots_are_those_without_quarantine(self) -> None:
        if hasattr(self, "ledger"):
            held = {grant.slot for grant in self.ledger.grants if grant.quarantined}
            assert self.ledger.usable_slots == len(self.ledger._slots) - len(held)


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


def test_slot_whose_readers_are_still_at_work_counts_as_read() -> None:
    ledger = SlotLedger(epoch=1, slots=2)
    for sequence in (1, 2):
        slot = ledger.take_slot(never)
        assert slot is not None
        ledger.publish(slot, info(sequence))
    grant = ledger.grant_newest(0, "test", 0)
    assert grant is not None
    ledger.release(grant, read_done="kernel running")

    def busy(slot: int, marks: object) -> bool:
        return bool(marks)

    assert ledger.take_slot(busy) == 1 - grant.slot
    assert ledger.take_slot(busy) is None
    assert ledger.take_read_done(grant.slot) == ["kernel running"]
    assert ledger.take_slot(busy) == grant.slot


def test_release_under_a_wrong_generation_is_refused() -> None:
    ledger = SlotLedger(epoch=1, slots=2)
    slot = ledger.take_slot(never)
    assert slot is not None
    ledger.publish(slot, info(1))
    grant = ledger.grant_newest(0, "test", 0)
    assert grant is not None
    forged = Grant(grant.serial, 1, grant.slot, grant.generation + 1, grant.info, "test", 0)
    with pytest.raises(FrameError, match="not in force"):
        ledger.release(forged)
    assert ledger.grants == (grant,)
