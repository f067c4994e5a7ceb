"""Mean average precision: known cases."""

from __future__ import annotations

import numpy as np
import pytest

from edge_perception.replay.accuracy import measure_accuracy
from edge_perception.replay.messages import LabelledBoxes

Rows = list[tuple[float, float, float, float, float, str]]
MUG: Rows = [(10, 10, 60, 60, 1.0, "mug")]


def boxes(rows: Rows) -> LabelledBoxes:
    return LabelledBoxes(
        stamp_ns=0,
        boxes_xyxy=np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row[4] for row in rows], np.float32),
        class_names=tuple(row[5] for row in rows),
    )


@pytest.mark.parametrize(
    ("truth", "found", "expected", "reason"),
    [
        (MUG, MUG, 1.0, "found exactly"),
        (MUG, [], 0.0, "not found"),
        (MUG, [(10, 10, 60, 60, 0.9, "box")], 0.0, "called by another name"),
        (MUG, [(100, 100, 150, 150, 0.9, "mug")], 0.0, "found elsewhere"),
        (MUG, [*MUG, (200, 200, 250, 250, 0.1, "mug")], 1.0, "a false one of lower score"),
        (MUG, [*MUG, (200, 200, 250, 250, 0.9, "cat")], 1.0, "a class that the truth lacks"),
        (MUG, [(10, 10, 60, 49.9, 1.0, "mug")], 0.6, "IoU 0.798: six of ten thresholds"),
        ([*MUG, (80, 80, 99, 99, 1.0, "pen")], MUG, 0.5, "one of two classes"),
    ],
)
def test_map_of_known_cases(truth: Rows, found: Rows, expected: float, reason: str) -> None:
    accuracy = measure_accuracy([(boxes(truth), boxes(found))])
    assert accuracy.map50_95 == pytest.approx(expected, abs=1e-3), reason


def test_sizes_without_a_true_box_are_unknown() -> None:
    accuracy = measure_accuracy([(boxes(MUG), boxes(MUG))])
    assert (accuracy.map_small, accuracy.map_medium, accuracy.map_large) == (None, 1.0, None)


def test_without_any_truth_nothing_is_claimed() -> None:
    accuracy = measure_accuracy([(boxes([]), boxes(MUG))])
    assert (accuracy.images, accuracy.truths, accuracy.map50_95) == (1, 0, None)
    assert measure_accuracy([]).map50_95 is None


def test_per_class_names_each_class_of_the_truth() -> None:
    truth = boxes([*MUG, (80, 80, 120, 120, 1.0, "pen")])
    assert measure_accuracy([(truth, boxes(MUG))]).per_class == {"mug": 1.0, "pen": 0.0}


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    measure_accuracy([(boxes(MUG), boxes(MUG))])
    assert capsys.readouterr().out == ""
