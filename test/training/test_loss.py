from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from training.detector.boxes import encode
from training.detector.dataset import EMPTY, IGNORE
from training.detector.loss import detection_loss, ignored_cells
from training.detector.model import grid_cells

SIZE = (128, 160)
CELLS = grid_cells(*SIZE)
REGION = torch.tensor([[[32.0, 16.0, 96.0, 64.0]]])
OFF, ON = torch.tensor(0.0), torch.tensor(1.0)


def outputs_of(objectness: float = -4.0):
    outputs = torch.zeros(1, len(CELLS), 7)
    outputs[..., 4] = objectness
    return outputs.requires_grad_()


def test_cells_inside_an_ignore_region_get_no_gradient_and_others_do():
    outputs = outputs_of()
    loss = detection_loss(outputs, CELLS, REGION, torch.tensor([[IGNORE]]), SIZE, OFF)
    loss.total.backward()
    inside = ignored_cells(CELLS, REGION, torch.tensor([[IGNORE]]))
    assert 0 < inside.sum() < len(CELLS)
    gradient = outputs.grad[..., 4]
    assert (gradient[inside] == 0).all()
    assert (gradient[~inside] > 0).all()


def test_an_object_inside_an_ignore_region_is_still_learnt():
    boxes = torch.cat((REGION, torch.tensor([[[48.0, 24.0, 72.0, 48.0]]])), dim=1)
    outputs = outputs_of()
    detection_loss(outputs, CELLS, boxes, torch.tensor([[IGNORE, 1]]), SIZE, OFF).total.backward()
    assert (outputs.grad[..., 4] < 0).any()


@pytest.mark.parametrize("label", [0, EMPTY], ids=["an object", "an empty slot"])
def test_what_is_no_ignore_region_masks_nothing(label: int):
    assert not ignored_cells(CELLS, REGION, torch.tensor([[label]])).any()


def test_frames_without_objects_have_a_finite_loss():
    loss = detection_loss(outputs_of(), CELLS, REGION, torch.tensor([[EMPTY]]), SIZE, ON)
    assert loss.total.isfinite()
    assert loss.box == loss.classes == loss.distance == 0


def test_a_perfect_prediction_costs_next_to_nothing():
    outputs = torch.zeros(1, len(CELLS), 7)
    outputs[0, :, :4] = encode(REGION[0], CELLS)
    outputs[..., 5], outputs[..., 6] = 12.0, -12.0
    loss = detection_loss(outputs, CELLS, REGION, torch.tensor([[0]]), SIZE, ON)
    assert loss.box < 1e-3
    assert loss.classes < 1e-2
    assert loss.distance < 1e-3
    assert loss.foreground >= 1


def test_the_distance_term_counts_only_when_asked_for():
    args = (outputs_of(), CELLS, REGION, torch.tensor([[0]]), SIZE)
    assert detection_loss(*args, OFF).distance == 0
    assert detection_loss(*args, ON).distance > 0
