"""Fitting images into network inputs, and boxes there and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.core.letterbox import Letterbox

sizes = st.tuples(st.integers(1, 4096), st.integers(1, 4096))
targets = st.tuples(st.integers(32, 1280), st.integers(32, 1280))
aligns = st.sampled_from(["center", "top_left"])
any_aligns = st.sampled_from(["center", "top_left", "stretch"])


@given(sizes, targets, aligns)
def test_image_fills_one_side_and_stays_inside(
    source: tuple[int, int], target: tuple[int, int], align: str
) -> None:
    box = Letterbox.fit(source, target, align)
    assert box.resized_height == target[0] or box.resized_width == target[1]
    assert 0 <= box.pad_top <= target[0] - box.resized_height
    assert 0 <= box.pad_left <= target[1] - box.resized_width


@given(sizes, targets)
def test_stretched_image_fills_both_sides(source: tuple[int, int], target: tuple[int, int]) -> None:
    box = Letterbox.fit(source, target, "stretch")
    assert (box.resized_height, box.resized_width) == target
    assert (box.pad_top, box.pad_left) == (0, 0)


@given(sizes, targets)
def test_centred_padding_differs_by_one_pixel_at_most(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    box = Letterbox.fit(source, target, "center")
    assert target[0] - box.resized_height - 2 * box.pad_top in (0, 1)
    assert target[1] - box.resized_width - 2 * box.pad_left in (0, 1)


@given(sizes, targets, any_aligns, st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_box_comes_back_to_where_it_was(
    source: tuple[int, int], target: tuple[int, int], align: str, places: list[float]
) -> None:
    height, width = source
    x1, x2 = sorted(places[:2])
    y1, y2 = sorted(places[2:])
    boxes = np.array([[x1 * width, y1 * height, x2 * width, y2 * height]], np.float32)
    box = Letterbox.fit(source, target, align)
    back = box.to_source(box.to_network(boxes))
    # float32 holds a position inside the padded input to about 1e-4 px of the network's.
    tolerance = 1e-3 * max(1 / box.scale_x, 1 / box.scale_y, 1)
    assert np.abs(back - boxes).max() <= tolerance


@given(sizes, targets, any_aligns, st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))
def test_boxes_are_cut_to_the_image(
    source: tuple[int, int], target: tuple[int, int], align: str, corners: list[float]
) -> None:
    inside = Letterbox.fit(source, target, align).to_source(np.array([corners], np.float32))
    assert (inside >= 0).all()
    assert (inside[:, [0, 2]] <= source[1]).all()
    assert (inside[:, [1, 3]] <= source[0]).all()


@pytest.mark.parametrize(
    ("align", "pads"), [("center", (28, 0)), ("top_left", (0, 0))], ids=["yolov8", "yolox"]
)
def test_vga_fits_a_square_input(align: str, pads: tuple[int, int]) -> None:
    box = Letterbox.fit((360, 480), (224, 224), align)
    assert (box.resized_height, box.resized_width) == (168, 224)
    assert (box.pad_top, box.pad_left) == pads


def test_sub_pixel_centres_survive() -> None:
    box = Letterbox.fit((480, 640), (416, 416), "center")
    centre = np.array([[100.25, 200.75, 101.75, 203.5]], np.float32)
    assert np.allclose(box.to_source(box.to_network(centre)), centre, atol=1e-3)
