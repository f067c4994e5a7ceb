"""Box arithmetic against one box at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.core.boxes import box_areas, clip_boxes, cxcywh_to_xyxy, iou_matrix

whole = st.integers(0, 50)


@st.composite
def box_lists(draw: st.DrawFn) -> np.ndarray:
    corners = draw(st.lists(st.tuples(whole, whole, whole, whole), max_size=6))
    boxes = np.array(corners, np.float32).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def pixels_of(box: np.ndarray) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = box.astype(int)
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


@given(box_lists(), box_lists())
def test_iou_is_that_of_the_pixels_covered(first: np.ndarray, second: np.ndarray) -> None:
    ious = iou_matrix(first, second)
    assert ious.shape == (len(first), len(second))
    for i, a in enumerate(map(pixels_of, first)):
        for j, b in enumerate(map(pixels_of, second)):
            expected = len(a & b) / len(a | b) if a | b else 0.0
            assert np.isclose(ious[i, j], expected, atol=1e-6)


@given(box_lists())
def test_area_is_the_number_of_pixels_covered(boxes: np.ndarray) -> None:
    assert box_areas(boxes).tolist() == [len(pixels_of(box)) for box in boxes]


@given(box_lists())
def test_centre_and_size_give_the_corners_back(boxes: np.ndarray) -> None:
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    assert np.array_equal(cxcywh_to_xyxy(np.concatenate([centres, sizes], axis=1)), boxes)


@given(box_lists())
def test_clipped_box_covers_what_of_it_lay_inside(boxes: np.ndarray) -> None:
    inside = {(x, y) for x in range(40) for y in range(30)}
    for box, clipped in zip(boxes, clip_boxes(boxes, height=30, width=40), strict=True):
        assert pixels_of(clipped) == pixels_of(box) & inside
