from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings
from hypothesis import strategies as st

from training.detector.assignment import assign, candidate_cells
from training.detector.boxes import decode, encode, iou
from training.detector.dataset import EMPTY
from training.detector.model import grid_cells

HEIGHT, WIDTH, CLASSES = 128, 160, 3
SIZE = (HEIGHT, WIDTH)
CELLS = grid_cells(HEIGHT, WIDTH)


def random_boxes(generator: object, count: int, batch: int = 2):
    corner = torch.rand(batch, count, 2, generator=generator) * torch.tensor((120.0, 90.0))
    side = torch.rand(batch, count, 2, generator=generator) * 60 + 4
    limit = torch.tensor((WIDTH, HEIGHT))
    return torch.cat((corner, torch.minimum(corner + side, limit)), dim=-1)


def assignment_of(seed: int, count: int, empty: int = 0):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, count)
    classes = torch.randint(CLASSES, (2, count), generator=generator)
    classes[:, count - empty :] = EMPTY
    outputs = torch.randn(2, len(CELLS), 5 + CLASSES, generator=generator)
    return assign(outputs, decode(outputs, CELLS), boxes, classes, SIZE), boxes, classes


def test_candidates_are_the_cells_closer_than_one_and_a_half_strides():
    boxes = random_boxes(torch.Generator().manual_seed(3), 40, batch=1)
    cells, inside = candidate_cells(boxes, *SIZE)
    centre = (boxes[0, :, None, :2] + boxes[0, :, None, 2:]) / 2
    cell_centre = CELLS[:, :2] + CELLS[:, 2:] / 2
    near = ((cell_centre - centre).abs() < 1.5 * CELLS[:, 2:]).all(-1)
    for g in range(40):
        found = set(cells[0, g][inside[0, g]].tolist())
        assert found == set(near[g].nonzero().flatten().tolist())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12))
def test_every_foreground_cell_is_near_the_object_it_learns(seed: int, count: int):
    given_cells, boxes, _ = assignment_of(seed, count)
    target = given_cells.target[..., None].expand(-1, -1, 4)
    wanted = boxes.gather(1, target)
    centre = (wanted[..., :2] + wanted[..., 2:]) / 2
    gap = (CELLS[:, :2] + CELLS[:, 2:] / 2 - centre).abs().amax(-1)
    assert (gap <= 1.5 * CELLS[:, 2])[given_cells.foreground].all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_lonely_object_gets_between_one_and_ten_cells(seed: int):
    given_cells, _, _ = assignment_of(seed, 1)
    counts = given_cells.foreground.sum(1)
    assert ((counts >= 1) & (counts <= 10)).all()


def test_empty_slots_get_no_cell():
    given_cells, _, classes = assignment_of(seed=1, count=6, empty=4)
    owners = classes.gather(1, given_cells.target)
    assert (owners[given_cells.foreground] >= 0).all()
    none, _, _ = assignment_of(seed=1, count=3, empty=3)
    assert not none.foreground.any()


def test_the_cell_that_predicts_the_box_already_wins_it():
    box = torch.tensor([[[40.0, 40.0, 72.0, 80.0]]])
    cells, _ = candidate_cells(box, *SIZE)
    best = int(cells[0, 0, 13])  # the middle cell of the second level
    outputs = torch.zeros(1, len(CELLS), 5 + CLASSES)
    outputs[0, best, :4] = encode(box[0], CELLS)[best]
    given_cells = assign(outputs, decode(outputs, CELLS), box, torch.tensor([[1]]), SIZE)
    assert given_cells.foreground[0, best]


def test_a_contested_cell_goes_to_the_object_it_fits_best():
    boxes = torch.tensor([[[32.0, 32.0, 64.0, 64.0], [24.0, 24.0, 72.0, 72.0]]])
    outputs = torch.zeros(1, len(CELLS), 5 + CLASSES)
    outputs[0, :, :4] = encode(boxes[0, 1], CELLS)
    given_cells = assign(outputs, decode(outputs, CELLS), boxes, torch.tensor([[0, 0]]), SIZE)
    owners = given_cells.target[given_cells.foreground].tolist()
    assert owners.count(1) > owners.count(0)


def test_decode_inverts_encode():
    boxes = random_boxes(torch.Generator().manual_seed(0), len(CELLS))
    raw = encode(boxes, CELLS)
    torch.testing.assert_close(decode(raw, CELLS), boxes, atol=1e-3, rtol=1e-4)
    assert (iou(decode(raw, CELLS), boxes) > 0.999).all()
