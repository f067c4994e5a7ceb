"""Pictures for people."""

from __future__ import annotations

import numpy as np

from edge_perception.core.detections import Detections
from edge_perception.detection.drawing import draw_detections


def one(box: list[float], class_id: int) -> Detections:
    return Detections(
        np.array([box], np.float32), np.ones(1, np.float32), np.array([class_id], np.int32)
    )


def test_box_is_drawn_on_a_copy_in_a_colour_of_its_class() -> None:
    picture = np.zeros((100, 120, 3), np.uint8)
    first = draw_detections(picture, one([20.4, 30, 80, 90], 0), ["mug", "box"])
    second = draw_detections(picture, one([20.4, 30, 80, 90], 1), ["mug", "box"])
    assert not picture.any()
    assert first[60, 20].any()
    assert not first[60, 50].any()
    assert first[60, 20].tolist() != second[60, 20].tolist()


def test_box_at_the_edge_is_drawn_without_a_fault() -> None:
    picture = np.zeros((10, 10, 3), np.uint8)
    assert draw_detections(picture, one([0, 0, 10, 10], 0), ["mug"]).shape == (10, 10, 3)
