"""The training loss: objectness everywhere, class and box on the cells that SimOTA gave away.

As in YOLOX, class targets are the one-hot class times the IoU reached, so that the score learns
to rank by localisation. The box term is CIoU instead of 1 - IoU^2: its gradient does not vanish
where boxes barely overlap, which is most of the time in a short schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from training.detector import boxes as box_ops
from training.detector.assignment import assign
from training.detector.dataset import IGNORE

_BOX_WEIGHT = 5.0


@dataclass(frozen=True)
class Loss:
    """Scalar tensors on the device; ``foreground`` is the mean number of cells an image."""

    total: Tensor
    box: Tensor
    objectness: Tensor
    classes: Tensor
    distance: Tensor
    foreground: Tensor


def ignored_cells(cells: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    """Mark the cells (B, cells) whose centre lies in an ignore region.

    ``boxes`` (B, G, 4) and ``classes`` (B, G) are the targets; a class of ``IGNORE`` marks a
    region that is neither object nor background.
    """
    centre = cells[:, None, :2] + cells[:, None, 2:] / 2
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    inside = ((centre >= low) & (centre < high)).all(-1)
    return (inside & (classes == IGNORE)[:, None]).any(-1)


def detection_loss(
    outputs: Tensor,
    cells: Tensor,
    boxes: Tensor,
    classes: Tensor,
    size: tuple[int, int],
    distance_weight: Tensor,
) -> Loss:
    """Loss of raw logits (B, cells, 5 + C) against padded targets (B, G, 4) and (B, G).

    ``distance_weight`` is a scalar tensor: 0 during most of the training, 1 in its last part,
    where the L1 distance of the raw box columns sharpens the boxes (YOLOX, section 2.1).
    """
    predicted = box_ops.decode(outputs, cells)
    with torch.no_grad():
        given = assign(outputs, predicted, boxes, classes, size)
        wanted = boxes.gather(1, given.target[..., None].expand(-1, -1, 4))
        wanted = torch.where(given.foreground[..., None], wanted, predicted)
        labels = classes.gather(1, given.target).clamp(min=0)
        reached = box_ops.iou(predicted, wanted)
        scores = one_hot(labels, outputs.shape[2] - 5) * reached[..., None]
        counted = given.foreground | ~ignored_cells(cells, boxes, classes)
    hits = given.foreground.float()
    n = hits.sum().clamp(min=1)
    box = ((1 - box_ops.complete_iou(predicted, wanted)) * hits).sum() / n
    objectness = binary_cross_entropy_with_logits(outputs[..., 4], hits, reduction="none")
    objectness = (objectness * counted).sum() / n
    entropy = binary_cross_entropy_with_logits(outputs[..., 5:], scores, reduction="none")
    class_loss = (entropy.sum(-1) * hits).sum() / n
    gap = (outputs[..., :4] - box_ops.encode(wanted, cells)).abs().sum(-1)
    distance = distance_weight * (gap * hits).sum() / n
    total = _BOX_WEIGHT * box + objectness + class_loss + distance
    return Loss(
        total=total,
        box=box.detach(),
        objectness=objectness.detach(),
        classes=class_loss.detach(),
        distance=distance.detach(),
        foreground=hits.sum(1).mean(),
    )
