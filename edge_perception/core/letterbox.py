"""Fitting an image into a network's input without changing its aspect, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_perception.core.boxes import clip_boxes
from edge_perception.core.detections import Float32Array


@dataclass(frozen=True)
class Letterbox:
    """Where a source image lies inside a network's input; all lengths in pixels.

    ``scale_x`` and ``scale_y`` are resized over source size. They are nearly equal, unless the
    image was stretched: each is exact for the rounded ``resized_width`` and ``resized_height``, so
    that boxes map back without bias.
    """

    source_height: int
    source_width: int
    target_height: int
    target_width: int
    resized_height: int
    resized_width: int
    pad_top: int
    pad_left: int

    @classmethod
    def fit(cls, source: tuple[int, int], target: tuple[int, int], align: str) -> Letterbox:
        """Fit ``source`` (height, width) into ``target`` (height, width).

        ``align`` is "center" (YOLOv5 and later, odd pixel to the bottom and right) or "top_left"
        (YOLOX), or "stretch": the whole target, each side by its own ratio (RT-DETR, ViT).
        """
        if align == "stretch":
            return cls(*source, *target, *target, 0, 0)
        ratio = min(target[0] / source[0], target[1] / source[1])
        resized = [max(1, min(t, round(s * ratio))) for s, t in zip(source, target, strict=True)]
        spare = [t - r for t, r in zip(target, resized, strict=True)]
        pads = [s // 2 for s in spare] if align == "center" else [0, 0]
        return cls(*source, *target, *resized, *pads)

    @property
    def scale_x(self) -> float:
        """Network pixels a source pixel, horizontally."""
        return self.resized_width / self.source_width

    @property
    def scale_y(self) -> float:
        """Network pixels a source pixel, vertically."""
        return self.resized_height / self.source_height

    def to_source(self, boxes_xyxy: Float32Array) -> Float32Array:
        """Map boxes ``(N, 4)`` from network to source pixels, cut to the image."""
        offset = np.array([self.pad_left, self.pad_top] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        with np.errstate(over="ignore"):  # absurd boxes of a network: the cut brings inf back
            boxes = (boxes_xyxy - offset) / scale
        return clip_boxes(boxes, self.source_height, self.source_width)

    def to_network(self, boxes_xyxy: Float32Array) -> Float32Array:
        """Map boxes ``(N, 4)`` from source to network pixels."""
        offset = np.array([self.pad_left, self.pad_top] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        return boxes_xyxy * scale + offset
