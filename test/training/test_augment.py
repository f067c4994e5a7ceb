from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings
from hypothesis import strategies as st

from training.detector.augment import (
    Placement,
    draw_placement,
    jitter_colours,
    place_images,
    place_targets,
)
from training.detector.dataset import EMPTY, IGNORE, FrameStore

HEIGHT, WIDTH = 96, 128
ONE = torch.tensor(1.0)
PAINT = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 250]], dtype=torch.uint8)


def store_of_rectangles(seed: int, frames: int = 4) -> FrameStore:
    """Black frames, each with one rectangle in its own colour, whose box is known."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(frames, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    boxes = torch.zeros(frames, 2, 4)
    classes = torch.full((frames, 2), EMPTY)
    for i in range(frames):
        x, y = (int(torch.randint(4, 60, (), generator=generator)) for _ in range(2))
        w, h = (int(torch.randint(16, 32, (), generator=generator)) for _ in range(2))
        images[i, y : y + h, x : x + w] = PAINT[i]
        boxes[i, 0] = torch.tensor((x, y, x + w, y + h))
        classes[i, 0] = i
    names = tuple("abcd")
    return FrameStore(images, boxes, classes, tuple(range(frames)), names, (1, 2, 3, 4))


def painted_extent(image, box, label):
    """The tight box of the label's colour within 3 px of ``box``."""
    x1, y1, x2, y2 = box.tolist()
    left, top = max(0, int(x1) - 3), max(0, int(y1) - 3)
    window = image[:, top : int(y2) + 4, left : int(x2) + 4]
    window = ((window - PAINT[label, :, None, None].float()).abs() < 120).all(0)
    rows, columns = window.any(1).nonzero().flatten(), window.any(0).nonzero().flatten()
    return torch.tensor(
        (columns[0] + left, rows[0] + top, columns[-1] + left + 1, rows[-1] + top + 1)
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), mosaic=st.sampled_from([0.0, 1.0]))
def test_boxes_stay_on_their_objects(seed: int, mosaic: float):
    torch.manual_seed(seed)
    store = store_of_rectangles(seed)
    frames = torch.stack([torch.randperm(4) for _ in range(2)])
    placement = draw_placement(frames, (HEIGHT, WIDTH), torch.tensor(mosaic), ONE)
    images = place_images(store.images, placement)
    boxes, classes = place_targets(store, placement)
    for image, row, labels in zip(images, boxes, classes, strict=True):
        for box, label in zip(row[labels >= 0], labels[labels >= 0], strict=True):
            assert (painted_extent(image, box, label) - box).abs().max() <= 2.0


def test_a_plain_placement_without_strength_is_the_frame_or_its_mirror():
    store = store_of_rectangles(0)
    frames = torch.arange(4)[:, None].expand(4, 4)
    torch.manual_seed(1)
    nothing = torch.tensor(0.0)
    placement = draw_placement(frames, (HEIGHT, WIDTH), nothing, nothing)
    images = place_images(store.images, placement)
    source = store.images.permute(0, 3, 1, 2).float()
    flipped = placement.scale[:, 0, 0] < 0
    assert flipped.any()
    assert not flipped.all()
    for image, wanted, mirrored in zip(images, source, flipped, strict=True):
        torch.testing.assert_close(image, wanted.flip(2) if mirrored else wanted, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("shift", "label"),
    [
        pytest.param(0.0, 2, id="whole box stays an object"),
        pytest.param(-20.0, 2, id="half a box stays an object"),
        pytest.param(-36.0, IGNORE, id="a sliver is neither object nor background"),
        pytest.param(-60.0, EMPTY, id="a box out of sight is gone"),
    ],
)
def test_cut_boxes_change_class_by_what_is_left_of_them(shift: float, label: int):
    boxes, classes = torch.tensor([[[0.0, 10.0, 40.0, 50.0]]]), torch.tensor([[2]])
    images = torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    store = FrameStore(images, boxes, classes, (0,), tuple("abc"), (1, 2, 3))
    move = torch.zeros(1, 4, 2)
    move[..., 0] = shift
    cross = torch.tensor([[float(WIDTH), float(HEIGHT)]])
    frames = torch.zeros(1, 4, dtype=torch.int64)
    placement = Placement(frames, cross, torch.ones(1, 4, 2), move)
    assert place_targets(store, placement)[1][0].tolist() == [label, EMPTY, EMPTY, EMPTY]


def test_colour_jitter_keeps_range_and_changes_pictures():
    torch.manual_seed(0)
    images = torch.rand(8, 3, 32, 32) * 255
    changed = jitter_colours(images, ONE)
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert ((changed - images).abs().mean((1, 2, 3)) > 1).all()


def test_colour_jitter_without_strength_changes_nothing():
    images = torch.rand(4, 3, 32, 32) * 255
    torch.testing.assert_close(
        jitter_colours(images, torch.tensor(0.0)), images, atol=0.05, rtol=1e-4
    )
