"""Track ids from frame to frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_perception.core.detections import Detections
from edge_perception.detection.tracker import Tracker

PERIOD_NS = 33_333_333
START_NS = 1_700_000_000_000_000_000


def boxes_at(*lefts: float, score: float = 0.9) -> Detections:
    boxes = np.array([[x, 10, x + 50, 60] for x in lefts], np.float32).reshape(-1, 4)
    count = len(lefts)
    return Detections(boxes, np.full(count, score, np.float32), np.zeros(count, np.int32))


def ids(detections: Detections) -> list[int]:
    return [] if detections.track_ids is None else detections.track_ids.tolist()


def test_objects_keep_their_ids_while_they_move_and_swap_order() -> None:
    tracker = Tracker()
    told = []
    for i in range(10):
        left, right = 10 + 3 * i, 300 - 3 * i
        swapped = i % 2 == 1
        frame = boxes_at(right, left) if swapped else boxes_at(left, right)
        first, second = ids(tracker.update(frame, START_NS + i * PERIOD_NS))
        told.append((second, first) if swapped else (first, second))
    assert told[0] == (-1, -1)
    assert len(set(told[2:])) == 1
    left_id, right_id = told[-1]
    assert left_id != right_id
    assert min(left_id, right_id) >= 0


def test_boxes_scores_and_classes_come_through_in_order() -> None:
    frame = boxes_at(10, 200, 400)
    tracked = Tracker().update(frame, START_NS)
    assert np.array_equal(tracked.boxes_xyxy, frame.boxes_xyxy)
    assert np.array_equal(tracked.scores, frame.scores)
    assert np.array_equal(tracked.class_ids, frame.class_ids)


def test_object_that_blinks_keeps_its_id() -> None:
    tracker = Tracker()
    told = []
    for i in range(20):
        frame = boxes_at() if 8 <= i < 11 else boxes_at(100)
        told.append(ids(tracker.update(frame, START_NS + i * PERIOD_NS)))
    assert told[7] == told[11] == told[19] != [-1]
    assert told[9] == []


def test_weak_detections_get_no_track() -> None:
    tracker = Tracker()
    for i in range(5):
        tracked = tracker.update(boxes_at(100, score=0.2), START_NS + i * PERIOD_NS)
    assert ids(tracked) == [-1]


@pytest.mark.parametrize("stamps", [[0] * 6, [START_NS - i * PERIOD_NS for i in range(6)]])
def test_stamps_that_do_not_advance_begin_anew_each_time(stamps: list[int]) -> None:
    tracker = Tracker()
    assert [ids(tracker.update(boxes_at(100), stamp)) for stamp in stamps[1:]] == [[-1]] * 5


def test_no_id_is_given_twice_though_a_bag_begins_anew() -> None:
    tracker = Tracker()
    seen: list[set[int]] = []
    for _ in range(3):
        told = [ids(tracker.update(boxes_at(10, 300), START_NS + i * PERIOD_NS)) for i in range(5)]
        seen.append(set(told[-1]))
    assert all(len(of_one_run) == 2 and min(of_one_run) >= 0 for of_one_run in seen)
    assert len(set.union(*seen)) == 6


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(-(2**40), 2**62), st.lists(st.floats(0, 600), max_size=5)),
        max_size=12,
    )
)
def test_whatever_the_stamps_every_detection_comes_back(
    frames: list[tuple[int, list[float]]],
) -> None:
    tracker = Tracker()
    for stamp_ns, lefts in frames:
        frame = boxes_at(*lefts)
        assert np.array_equal(tracker.update(frame, stamp_ns).boxes_xyxy, frame.boxes_xyxy)
