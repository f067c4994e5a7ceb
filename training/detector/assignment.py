"""SimOTA on padded targets: which cells of the grid learn which object.

The idea (Ge et al., *YOLOX*, arXiv 2107.08430, section 2.1): every object bids for the cells
near its centre; a bid's cost is the class loss plus three times the box loss of what the cell
predicts *now*, and the object wins its k cheapest cells, with k the sum of its ten best IoUs. A
cell bid for by several objects goes to the cheapest bidder.

The published code loops over images and builds an objects x cells matrix for each one. Here a
whole batch is one set of fixed-shape tensors, so nothing waits for the host. What makes it cheap
is that the centre rule (closer than 1.5 strides on both axes) admits exactly the 3 x 3 cells
around the centre on each level: 27 candidates an object on three levels, against thousands of
cells. Their indices are arithmetic, so the cost "matrix" is (B, G, 27).

Left out: the older rule that also admits every cell inside the box. The price is that k, a sum
over at most 27 cells, is a little smaller for large objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.detector.boxes import iou
from training.detector.config import STRIDES

_TOP_IOUS = 10
_IOU_COST = 3.0


@dataclass(frozen=True)
class Assignment:
    """For every cell: whether it is foreground (B, cells), and its object's index (B, cells)."""

    foreground: Tensor
    target: Tensor


def candidate_cells(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Indices of the 3 x 3 cells around each box's centre on every level.

    ``boxes`` is (B, G, 4) xyxy in pixels. Returns int64 indices (B, G, 27), clamped into the
    grid, and a bool mask (B, G, 27) of those that lie inside it.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    steps = torch.arange(-1, 2, device=boxes.device)
    cells, inside, base = [], [], 0
    for stride in STRIDES:
        rows, columns = height // stride, width // stride
        home = torch.floor(centre / stride).long()
        x = home[..., 0, None, None] + steps
        y = home[..., 1, None, None] + steps[:, None]
        ok = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        index = base + y.clamp(0, rows - 1) * columns + x.clamp(0, columns - 1)
        cells.append(index.flatten(2))
        inside.append(ok.flatten(2))
        base += rows * columns
    return torch.cat(cells, dim=2), torch.cat(inside, dim=2)


def bid_costs(
    logits: Tensor, predicted: Tensor, boxes: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Cost and IoU (B, G, K) of what the candidates (B, G, K, ...) predict for each object.

    The class loss is the binary cross-entropy of sqrt(class x objectness) against the one-hot
    class, as published; ``logits`` are the objectness and class columns (B, G, K, 1 + C).
    """
    overlap = iou(predicted, boxes[:, :, None])
    log_objectness = logsigmoid(logits[..., :1])
    log_score = (log_objectness + logsigmoid(logits[..., 1:])) / 2
    against = torch.log1p(-log_score.exp().clamp(max=1 - 1e-6))
    wanted = classes.clamp(min=0)[:, :, None, None].expand(*against.shape[:3], 1)
    chosen = log_score.gather(3, wanted) - against.gather(3, wanted)
    class_cost = -(against.sum(3) + chosen.squeeze(3))
    return class_cost - _IOU_COST * overlap.clamp(min=1e-8).log(), overlap


def assign(
    outputs: Tensor, predicted: Tensor, boxes: Tensor, classes: Tensor, size: tuple[int, int]
) -> Assignment:
    """Give cells to objects.

    ``outputs`` are the raw logits (B, cells, 5 + C), ``predicted`` their boxes (B, cells, 4) xyxy
    in pixels, ``boxes`` and ``classes`` the targets (B, G, 4) and (B, G) where a negative class
    marks a slot that holds no object; ``size`` is (height, width) of the input in pixels.
    """
    cells, inside = candidate_cells(boxes, *size)
    inside &= (classes >= 0)[:, :, None]
    flat = cells.flatten(1)[..., None]
    near = (*cells.shape, -1)
    logits = outputs[..., 4:].gather(1, flat.expand(-1, -1, outputs.shape[2] - 4)).view(near)
    bids = predicted.gather(1, flat.expand(-1, -1, 4)).view(near)
    cost, overlap = bid_costs(logits, bids, boxes, classes)
    cost = torch.where(inside, cost, torch.inf)
    overlap = torch.where(inside, overlap, 0.0)
    wins = _cheapest(cost, overlap) & inside
    return _settle(cells, cost, wins, outputs.shape[1])


def _cheapest(cost: Tensor, overlap: Tensor) -> Tensor:
    """Mark each object's k cheapest candidates, k from its best overlaps but at least one."""
    k = overlap.topk(_TOP_IOUS, dim=2).values.sum(2).long().clamp(min=1)
    rank = cost.argsort(dim=2).argsort(dim=2)
    return rank < k[..., None]


def _settle(cells: Tensor, cost: Tensor, wins: Tensor, count: int) -> Assignment:
    """Leave every cell to its cheapest winner; equal costs go to the later object."""
    batch, objects, candidates = cells.shape
    flat = cells.flatten(1)
    price = torch.where(wins, cost, torch.inf).flatten(1)
    best = price.new_full((batch, count), torch.inf).scatter_reduce(1, flat, price, "amin")
    owner = torch.arange(objects, device=cells.device)[:, None].expand(objects, candidates)
    cheapest = wins.flatten(1) & (price == best.gather(1, flat))
    claim = torch.where(cheapest, owner.reshape(1, -1), -1)
    target = flat.new_full((batch, count), -1).scatter_reduce(1, flat, claim, "amax")
    return Assignment(foreground=target >= 0, target=target.clamp(min=0))
