"""Ledger rows: what the listener saw, joined with what the detector told."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from edge_perception.core.latency import STAGES
from edge_perception.core.ledger import Key, LedgerJoiner, LedgerRow, make_row

STAMP_NS = 1_700_000_000_000_000_000
TOLD = {
    "sequence": 7,
    "receive_stamp_ns": STAMP_NS + 1_000_000,
    "receive_monotonic_ns": 123,
    "decode_ns": 2_000_000,
    "wait_ns": 500_000,
    "preprocess_ns": 1_500_000,
    "infer_ns": 20_000_000,
    "postprocess_ns": 3_000_000,
    "publish_ns": 400_000,
}


def row(arrival_ns: int = STAMP_NS + 30_000_000, told: object = TOLD) -> LedgerRow:
    return make_row(
        frame_id="cam",
        stamp_ns=STAMP_NS,
        arrival_ns=arrival_ns,
        detections=3,
        stage_values=told,  # type: ignore[arg-type]
        camera="left",
    )


durations = st.integers(0, 10**10)


@given(st.fixed_dictionaries({f"{stage}_ns": durations for stage in STAGES[1:-1]}), durations)
def test_stages_of_a_row_sum_to_end_to_end(told: dict[str, int], end_to_end_ns: int) -> None:
    values = {"sequence": 1, "receive_stamp_ns": STAMP_NS + 5, **told}
    joined = row(STAMP_NS + end_to_end_ns, values)
    assert set(joined.stages_ns) == set(STAGES)
    assert sum(joined.stages_ns.values()) == joined.end_to_end_ns == end_to_end_ns


def test_row_without_the_detectors_word_is_not_joined() -> None:
    alone = row(told=None)
    assert not alone.joined
    assert alone.end_to_end_ns == 30_000_000
    assert alone.trace_events() == []
    assert alone.to_json()["stages_ns"] == {}


def test_row_reads_back_from_json() -> None:
    read = json.loads(json.dumps(row().to_json()))
    assert read["camera"] == "left"
    assert read["sequence"] == 7
    assert read["joined"] is True
    assert read["n_detections"] == 3
    assert read["end_to_end_ns"] == 30_000_000
    assert read["stages_ns"]["receive"] == 1_000_000
    assert read["stages_ns"]["deliver"] == 1_600_000
    assert "track" not in read["stages_ns"]


def test_trace_lays_the_stages_end_to_end_from_the_stamp() -> None:
    events = row().trace_events()
    assert [event["name"] for event in events] == [s for s in STAGES if s != "track"]
    assert events[0]["ts"] == STAMP_NS / 1e3
    for before, after in itertools.pairwise(events):
        assert abs(before["ts"] + before["dur"] - after["ts"]) < 1  # float us of a stamp
    assert all(event["ph"] == "X" and event["args"] == {"sequence": 7} for event in events)


def test_source_whose_clock_is_ahead_gives_a_negative_age() -> None:
    assert row(STAMP_NS - 1).end_to_end_ns == -1


# Joining.

SECOND_NS = 1_000_000_000


def key(i: int) -> Key:
    return "cam", STAMP_NS + i


def values(i: int) -> dict[str, int]:
    return {"sequence": i, "receive_stamp_ns": STAMP_NS + i + 10, "infer_ns": 5}


events = st.lists(
    st.tuples(
        st.sampled_from(["arrival", "stages", "expire"]), st.integers(0, 6), st.integers(0, 3)
    ),
    max_size=60,
)


@given(events)
def test_every_half_becomes_part_of_one_row_or_is_counted(
    halves: list[tuple[str, int, int]],
) -> None:
    joiner, now_ns = LedgerJoiner(), STAMP_NS
    rows: list[LedgerRow] = []
    for kind, i, seconds in halves:
        now_ns += seconds * SECOND_NS
        if kind == "arrival":
            rows += joiner.add_arrival(key(i), now_ns, detections=i)
        elif kind == "stages":
            rows += joiner.add_stages(key(i), now_ns, "left", values(i))
        else:
            rows += joiner.expire(now_ns)
    rows += joiner.finish()

    kinds = [kind for kind, _, _ in halves]
    joined = [row for row in rows if row.joined]
    assert len(rows) == kinds.count("arrival")
    assert joiner.unjoined_detections == len(rows) - len(joined)
    assert joiner.unjoined_stages == kinds.count("stages") - len(joined)
    for joined_row in joined:
        assert joined_row.sequence == joined_row.detections == joined_row.stamp_ns - STAMP_NS


def test_half_waits_two_seconds_for_the_other() -> None:
    joiner = LedgerJoiner()
    assert joiner.add_arrival(key(1), STAMP_NS, 1) == []
    assert joiner.expire(STAMP_NS + 2 * SECOND_NS - 1) == []
    (given_up,) = joiner.expire(STAMP_NS + 2 * SECOND_NS)
    assert not given_up.joined
    assert joiner.add_stages(key(1), STAMP_NS + 2 * SECOND_NS, "left", values(1)) == []
    assert joiner.add_arrival(key(2), STAMP_NS + 5 * SECOND_NS, 1) == []
    assert (joiner.unjoined_detections, joiner.unjoined_stages) == (1, 1)


def test_flood_of_one_half_is_bounded_and_leaves_the_other_waiting() -> None:
    joiner = LedgerJoiner()
    joiner.add_arrival(key(0), STAMP_NS, 1)
    for i in range(1, 5001):
        joiner.add_stages(key(i), STAMP_NS, "left", values(i))
    assert 2000 < 5000 - joiner.unjoined_stages < 2100
    assert joiner.unjoined_detections == 0
    (joined,) = joiner.add_stages(key(0), STAMP_NS, "left", values(0))
    assert joined.joined
