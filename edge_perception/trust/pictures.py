"""A frame as both models saw it, side by side, with what differs brought out.

Agreement is drawn faintly and without words; each difference gets its colour and a label. So the
eye goes where INT8 went wrong, and the picture is read without a legend of classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from edge_perception.core.image import UInt8Array
from edge_perception.gpu.preprocess import to_bgr
from edge_perception.replay.pictures import draw_box, draw_caption
from edge_perception.trust.frames import Frame
from edge_perception.trust.matching import (
    ABSENT,
    BELOW_THRESHOLD,
    KEPT,
    OTHER_CLASS,
    FrameComparison,
    Side,
)

# Blue, green, red; the page's legend has the same colours.
COLOURS = {
    KEPT: (150, 150, 150),
    BELOW_THRESHOLD: (40, 190, 250),
    OTHER_CLASS: (220, 110, 200),
    ABSENT: (60, 60, 235),
}
_WIDTH_PX = 760
_GAP_PX = 8


def draw_side_by_side(
    frame: Frame, comparison: FrameComparison, class_names: Sequence[str]
) -> UInt8Array:
    """Return uint8 BGR: float on the left, INT8 on the right, each 760 px wide."""
    pixels = to_bgr(frame.pixels, frame.format)
    panels = [
        _panel(pixels, comparison.float_side, class_names, "float"),
        _panel(pixels, comparison.int8_side, class_names, "INT8"),
    ]
    gap = np.full((panels[0].shape[0], _GAP_PX, 3), 24, np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=1)


def _panel(
    pixels_bgr: UInt8Array, side: Side, class_names: Sequence[str], model: str
) -> UInt8Array:
    scale = _WIDTH_PX / pixels_bgr.shape[1]
    size = (_WIDTH_PX, max(1, round(pixels_bgr.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = np.asarray(cv2.resize(pixels_bgr, size, interpolation=method), np.uint8)
    corners = np.round(side.detections.boxes_xyxy * scale).astype(int).tolist()
    for index in np.argsort(side.fate != KEPT, kind="stable"):  # differences on top
        fate = int(side.fate[index])
        if fate == KEPT:
            x1, y1, x2, y2 = corners[index]
            cv2.rectangle(canvas, (x1, y1), (x2, y2), COLOURS[KEPT], 1, cv2.LINE_AA)
        else:
            name = class_names[side.detections.class_ids[index]]
            label = f"{name} {side.detections.scores[index]:.2f}"
            draw_box(canvas, corners[index], label, COLOURS[fate], 1)
    alone = int((side.fate != KEPT).sum())
    draw_caption(canvas, f"{model}: {len(side)} found, {alone} not by the other", 1)
    return canvas
