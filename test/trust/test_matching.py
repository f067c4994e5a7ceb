"""Which detection is which: known cases, and what must hold for any two models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_detections import Row, detections, random_detections

from edge_perception.trust.matching import FATES, KEPT, compare_frame

BOX: Row = (10, 10, 60, 60, 0.9, 0)


@pytest.mark.parametrize(
    ("int8", "fate", "iou", "reason"),
    [
        ([BOX], "kept", 1.0, "the very same"),
        ([(10, 10, 60, 60, 0.4, 0)], "kept", 1.0, "a lower score, but above the threshold"),
        ([(10, 10, 60, 50, 0.9, 0)], "kept", 0.8, "moved a little"),
        ([(10, 10, 60, 60, 0.2, 0)], "below_threshold", 0.0, "its score fell"),
        ([(10, 10, 60, 60, 0.9, 1)], "other_class", 0.0, "called by another name"),
        ([(40, 40, 90, 90, 0.9, 0)], "absent", 0.0, "something else, elsewhere"),
        ([], "absent", 0.0, "nothing found at all"),
        ([(10, 10, 60, 60, 0.2, 0), (10, 10, 60, 60, 0.9, 1)], "below_threshold", 0.0, "both"),
    ],
)
def test_fate_of_a_detection(int8: list[Row], fate: str, iou: float, reason: str) -> None:
    compared = compare_frame(detections(BOX), detections(*int8), 0.3)
    side = compared.float_side
    assert [FATES[code] for code in side.fate] == [fate], reason
    assert side.iou.tolist() == pytest.approx([iou])


def test_best_overlap_is_paired_first() -> None:
    near, nearer = (10, 10, 60, 50, 0.9, 0), (10, 10, 60, 58, 0.5, 0)
    compared = compare_frame(detections(BOX), detections(near, nearer), 0.3)
    assert compared.float_side.partner.tolist() == [1]
    assert compared.int8_side.partner.tolist() == [-1, 0]


def test_one_detection_is_partner_of_one_alone() -> None:
    compared = compare_frame(detections(BOX, BOX), detections(BOX), 0.3)
    assert sorted(compared.float_side.fate.tolist()) == [KEPT, FATES.index("absent")]


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_partners_are_mutual_alike_and_overlap(first: int, second: int) -> None:
    compared = compare_frame(random_detections(first), random_detections(second), 0.3)
    left, right = compared.float_side, compared.int8_side
    for index in np.flatnonzero(left.partner >= 0):
        partner = left.partner[index]
        assert right.partner[partner] == index
        assert left.detections.class_ids[index] == right.detections.class_ids[partner]
        assert left.iou[index] == right.iou[partner] >= 0.5
    for side in (left, right):
        assert ((side.partner >= 0) == (side.fate == KEPT)).all()
        assert ((side.partner >= 0) == (side.iou > 0)).all()


@given(st.integers(0, 2**32 - 1))
def test_model_agrees_with_itself(seed: int) -> None:
    found = random_detections(seed)
    compared = compare_frame(found, found, 0.3)
    assert len(compared.float_side) == int((found.scores >= 0.3).sum())
    assert (compared.float_side.fate == KEPT).all()
    assert (compared.float_side.iou == 1).all()
