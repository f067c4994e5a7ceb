"""Axis-aligned boxes as float arrays ``(N, 4)`` of x1, y1, x2, y2 in pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_perception.core.detections import Float32Array


def cxcywh_to_xyxy(boxes: Float32Array) -> Float32Array:
    """Convert centre, width, height ``(N, 4)`` to corners."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def clip_boxes(boxes_xyxy: Float32Array, height: int, width: int) -> Float32Array:
    """Cut boxes to an image of ``height`` by ``width`` px; boxes outside get no area."""
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(boxes_xyxy, np.float32(0), limits)


def box_areas(boxes_xyxy: Float32Array) -> Float32Array:
    """Return areas in square pixels ``(N,)``."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    areas: Float32Array = sides[:, 0] * sides[:, 1]
    return areas


def iou_matrix(first_xyxy: Float32Array, second_xyxy: Float32Array) -> npt.NDArray[np.float32]:
    """Return intersection over union ``(N, M)``; 0 where neither box has an area."""
    upper_left = np.maximum(first_xyxy[:, None, :2], second_xyxy[None, :, :2])
    lower_right = np.minimum(first_xyxy[:, None, 2:], second_xyxy[None, :, 2:])
    overlap = np.clip(lower_right - upper_left, 0, None).prod(axis=2)
    union = box_areas(first_xyxy)[:, None] + box_areas(second_xyxy)[None, :] - overlap
    ratio: npt.NDArray[np.float32] = np.divide(
        overlap, union, out=np.zeros_like(overlap), where=union > 0
    )
    return ratio
