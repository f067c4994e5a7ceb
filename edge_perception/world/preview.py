"""Contact sheets: rendered frames with their boxes drawn, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_perception.world.frames import Frame
from edge_perception.world.spec import CLASS_NAMES

_COLOURS = [tuple(int(c) for c in np.random.default_rng(i).integers(90, 256, 3)) for i in range(12)]


def draw_boxes(frame: Frame) -> NDArray[np.uint8]:
    """A copy of the picture, rgb uint8 (480, 640, 3), with class and occlusion at each box."""
    import cv2

    picture = frame.rgb.copy()
    for box, class_id, hidden, ignored in zip(
        frame.boxes_xyxy.astype(int), frame.class_ids, frame.occlusion, frame.ignored
    ):
        colour = (110, 110, 110) if ignored else _COLOURS[int(class_id)]
        x1, y1, x2, y2 = (int(edge) for edge in box)
        cv2.rectangle(picture, (x1, y1), (x2 - 1, y2 - 1), colour, 1)
        text = "ignored" if ignored else f"{CLASS_NAMES[int(class_id)]} {hidden:.0%}"
        place, font = (x1 + 1, max(y1 - 3, 9)), cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(picture, text, place, font, 0.36, (0, 0, 0), 2, cv2.LINE_AA)
        cv2.putText(picture, text, place, font, 0.36, colour, 1, cv2.LINE_AA)
    return picture


def contact_sheet(pictures: Sequence[NDArray[np.uint8]], columns: int = 4) -> NDArray[np.uint8]:
    """Pictures of one size in rows of ``columns``, the rest black."""
    blank = np.zeros_like(pictures[0])
    padded = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [np.hstack(padded[at : at + columns]) for at in range(0, len(padded), columns)]
    return np.vstack(rows)
