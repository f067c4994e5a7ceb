"""Drawing what a model found into an image for people."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import cv2
import numpy as np

from edge_perception.core.classification import Classification
from edge_perception.core.detections import Detections
from edge_perception.core.image import UInt8Array

_MOST_CLASSES = 5
_MOST_LINES = 6


def draw_result(
    pixels_bgr: UInt8Array, result: Detections | Classification, class_names: Sequence[str]
) -> UInt8Array:
    """Return a copy of the image with what a model found in it."""
    if isinstance(result, Classification):
        return draw_classification(pixels_bgr, result, class_names)
    return draw_detections(pixels_bgr, result, class_names)


def draw_classification(
    pixels_bgr: UInt8Array, classification: Classification, class_names: Sequence[str]
) -> UInt8Array:
    """Return a copy of the image with its five likeliest classes as lines of text."""
    canvas = pixels_bgr.copy()
    found = zip(classification.class_ids.tolist(), classification.scores.tolist(), strict=True)
    for row, (class_id, score) in enumerate(list(found)[:_MOST_CLASSES]):
        label, place = f"{class_names[class_id]} {score:.2f}", (6, 18 + 18 * row)
        cv2.putText(canvas, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3)
        colour = _class_colour(class_id)
        cv2.putText(canvas, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1)
    return canvas


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


def draw_caption(
    pixels_bgr: UInt8Array,
    boxes: Sequence[tuple[str, tuple[float, float, float, float], bool]],
    text: str,
) -> UInt8Array:
    """Return a copy of the image with a caption below it, and the boxes of what a detector saw.

    A box is a name, its corners in px, and whether the text speaks of it: then it is drawn thick.
    """
    canvas = pixels_bgr.copy()
    for name, box, is_spoken_of in boxes:
        x1, y1, x2, y2 = (round(side) for side in box)
        colour, thickness = ((80, 220, 80), 3) if is_spoken_of else ((160, 160, 160), 1)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness)
        cv2.putText(canvas, name, (x1, max(10, y1 - 4)), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1)
    lines = textwrap.wrap(text, max(16, canvas.shape[1] // 9))[:_MOST_LINES] or [""]
    strip = np.zeros((20 * len(lines) + 8, canvas.shape[1], 3), np.uint8)
    for row, line in enumerate(lines):
        place = (6, 20 + 20 * row)
        cv2.putText(strip, line, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
    return np.concatenate((canvas, strip))


def _class_colour(class_id: int) -> tuple[int, int, int]:
    # The golden angle spreads the hues of neighbouring ids far apart.
    hsv = np.array([[[class_id * 137 * 180 // 360 % 180, 200, 255]]], np.uint8)
    blue, green, red = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return blue, green, red
