"""Boxes as tensors: overlap measures and the decoding of the raw grid. All xyxy in pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EPS = 1e-7
_LOG_SIZE_LIMIT = 6.0


def area(boxes: Tensor) -> Tensor:
    """Areas (...) of boxes (..., 4) in square pixels; an inverted box has none."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Shared areas of boxes that broadcast against each other."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clamp(min=0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast against each other, 0..1."""
    shared = intersection(a, b)
    return shared / (area(a) + area(b) - shared + _EPS)


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU less penalties for centre distance and aspect ratio (Zheng et al., arXiv 1911.08287)."""
    overlap = iou(a, b)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    diagonal = (high - low).square().sum(-1) + _EPS
    distance = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]).square().sum(-1) / 4
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    angle_a = torch.atan(size_a[..., 0] / (size_a[..., 1] + _EPS))
    angle_b = torch.atan(size_b[..., 0] / (size_b[..., 1] + _EPS))
    aspect = (4 / math.pi**2) * (angle_a - angle_b).square()
    with torch.no_grad():
        trade = aspect / (1 - overlap + aspect + _EPS)
    return overlap - distance / diagonal - trade * aspect


def decode(outputs: Tensor, cells: Tensor) -> Tensor:
    """Turn the first four columns of the raw grid (B, cells, >=4) into boxes (B, cells, 4).

    ``cells`` is :func:`training.detector.model.grid_cells`'s table. Log sizes are limited to
    403 strides, so that a wild prediction stays finite.
    """
    corner, stride = cells[:, :2], cells[:, 2:]
    centre = outputs[..., :2] * stride + corner
    half = outputs[..., 2:4].clamp(max=_LOG_SIZE_LIMIT).exp() * stride / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def encode(boxes: Tensor, cells: Tensor) -> Tensor:
    """Invert :func:`decode`: offsets and log sizes (..., cells, 4) of one box a cell."""
    corner, stride = cells[:, :2], cells[:, 2:]
    offset = ((boxes[..., :2] + boxes[..., 2:]) / 2 - corner) / stride
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=_EPS) / stride
    return torch.cat((offset, size.log()), dim=-1)
