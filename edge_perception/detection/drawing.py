"""Drawing detections into an image for people."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from edge_perception.core.detections import Detections
from edge_perception.core.image import UInt8Array


def draw_detections(
    pixels_bgr: UInt8Array, detections: Detections, class_names: Sequence[str]
) -> UInt8Array:
    """Return a copy of the image with labelled boxes, one colour a class."""
    canvas = pixels_bgr.copy()
    for box, score, class_id in zip(
        detections.boxes_xyxy, detections.scores, detections.class_ids, strict=True
    ):
        x1, y1, x2, y2 = (round(float(side)) for side in box)
        colour = _class_colour(int(class_id))
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, 2)
        label = f"{class_names[class_id]} {score:.2f}"
        cv2.putText(canvas, label, (x1, max(10, y1 - 4)), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1)
    return canvas


def _class_colour(class_id: int) -> tuple[int, int, int]:
    # The golden angle spreads the hues of neighbouring ids far apart.
    hsv = np.array([[[class_id * 137 * 180 // 360 % 180, 200, 255]]], np.uint8)
    blue, green, red = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return blue, green, red
