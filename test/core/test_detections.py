"""Detections are sound once constructed."""

from __future__ import annotations

import numpy as np
import pytest

from edge_perception.core.detections import Detections


def make(**changes: object) -> Detections:
    values = {
        "boxes_xyxy": np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32),
        "scores": np.array([0.5, 1.0], np.float32),
        "class_ids": np.array([0, 1], np.int32),
        **changes,
    }
    return Detections(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"boxes_xyxy": np.zeros((1, 4), np.float32)}, "boxes_xyxy: expected shape"),
        ({"boxes_xyxy": np.zeros((2, 5), np.float32)}, "boxes_xyxy: expected shape"),
        ({"class_ids": np.zeros(3, np.int32)}, "class_ids: expected shape"),
        ({"track_ids": np.zeros(1, np.int32)}, "track_ids: expected shape"),
        ({"boxes_xyxy": np.array([[0, 0, np.nan, 1]] * 2, np.float32)}, "finite"),
        ({"boxes_xyxy": np.array([[0, 0, np.inf, 1]] * 2, np.float32)}, "finite"),
        ({"scores": np.array([np.nan, 0.5], np.float32)}, "finite"),
        ({"boxes_xyxy": np.array([[3, 2, 1, 4]] * 2, np.float32)}, "x1 <= x2"),
        ({"scores": np.array([0.5, 1.5], np.float32)}, "0..1"),
        ({"scores": np.array([-0.1, 0.5], np.float32)}, "0..1"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(**changes)


def test_selection_keeps_the_given_order_and_the_tracks() -> None:
    chosen = make(track_ids=np.array([7, -1], np.int32)).select(np.array([1, 0]))
    assert chosen.scores.tolist() == [1.0, 0.5]
    assert chosen.class_ids.tolist() == [1, 0]
    assert chosen.track_ids is not None
    assert chosen.track_ids.tolist() == [-1, 7]


def test_selection_takes_a_mask() -> None:
    chosen = make().select(np.array([False, True]))
    assert chosen.boxes_xyxy.tolist() == [[5, 6, 7, 8]]
    assert chosen.track_ids is None


def test_empty_has_no_objects() -> None:
    assert len(Detections.empty()) == 0
