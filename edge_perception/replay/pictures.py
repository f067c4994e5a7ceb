"""Annotated frames for people: a contact sheet, an animation, and the drawing that both share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, features

from edge_perception.core.image import ImageFormat, UInt8Array, view_image
from edge_perception.errors import EdgePerceptionError
from edge_perception.replay import messages
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.replay.source import TimedMessage

SHOWN_SCORE = 0.3
ANIMATION_FPS = 10.0
_FONT = cv2.FONT_HERSHEY_DUPLEX
# Blue, green, red; told apart on both light and dark pictures, also by most colour-blind people.
_PALETTE = (
    (66, 133, 244),
    (80, 200, 60),
    (240, 170, 40),
    (60, 76, 231),
    (200, 90, 200),
    (210, 210, 30),
    (30, 210, 240),
    (150, 120, 255),
    (120, 220, 160),
    (255, 130, 110),
    (90, 160, 200),
    (170, 200, 90),
)


def decode_picture(message: TimedMessage) -> UInt8Array | None:
    """Return a serialised image as BGR ``(height, width, 3)``; None if it cannot be shown."""
    try:
        image = messages.deserialize(message.cdr, message.msgtype)
        data = np.asarray(image.data, np.uint8)
        if message.msgtype == messages.COMPRESSED_IMAGE:
            decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
            return None if decoded is None else np.asarray(decoded, np.uint8)
        layout = ImageFormat(image.encoding, image.height, image.width, image.step)
        return _to_bgr(view_image(data, layout), image.encoding)
    except (EdgePerceptionError, cv2.error):
        return None


def _to_bgr(pixels: UInt8Array, encoding: str) -> UInt8Array | None:
    if encoding == "bgr8":
        return np.ascontiguousarray(pixels)
    conversion = {"rgb8": cv2.COLOR_RGB2BGR, "mono8": cv2.COLOR_GRAY2BGR}.get(encoding)
    return None if conversion is None else np.asarray(cv2.cvtColor(pixels, conversion), np.uint8)


def nothing_to_show() -> UInt8Array:
    """Return a dark picture in the place of frames that ``decode_picture`` cannot show."""
    canvas = np.full((480, 640, 3), 48, np.uint8)
    draw_caption(canvas, "frames of this encoding are not shown", scale=1)
    return canvas


def class_colours(names: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Give each name a colour (BGR) that depends only on the set of names."""
    return {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(sorted(set(names)))}


def annotate(
    pixels_bgr: UInt8Array,
    found: LabelledBoxes | None,
    colours: Mapping[str, tuple[int, int, int]],
    *,
    scale: int = 1,
    caption: str = "",
) -> UInt8Array:
    """Return a copy, ``scale`` times as large, with labelled boxes and a caption.

    Boxes below a score of 0.3 are not drawn: the report counts them, people need not see them.
    """
    size = (pixels_bgr.shape[1] * scale, pixels_bgr.shape[0] * scale)
    canvas = np.asarray(cv2.resize(pixels_bgr, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    if found is not None:
        order = np.argsort(found.scores)  # the surest on top
        for index in order[found.scores[order] >= SHOWN_SCORE]:
            name, score = found.class_names[index], float(found.scores[index])
            corners = np.round(found.boxes_xyxy[index] * scale).astype(int).tolist()
            draw_box(canvas, corners, f"{name} {score:.2f}", colours.get(name, _PALETTE[0]), scale)
    if caption:
        draw_caption(canvas, caption, scale)
    return canvas


def draw_box(
    canvas: UInt8Array,
    corners: Sequence[int],
    label: str,
    colour: tuple[int, int, int],
    scale: int,
) -> None:
    """Draw a box (x1, y1, x2, y2 px of the canvas) and a chip with its label above it."""
    x1, y1, x2, y2 = corners
    size = 0.42 * scale
    (width, height), baseline = cv2.getTextSize(label, _FONT, size, 1)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, max(2, round(1.5 * scale)), cv2.LINE_AA)
    pad = 3 * scale
    top = max(0, y1 - height - baseline - pad)
    left = max(0, min(x1, canvas.shape[1] - width - 2 * pad))
    chip = (left + width + 2 * pad, top + height + baseline + pad)
    cv2.rectangle(canvas, (left, top), chip, colour, cv2.FILLED)
    bright = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2] > 140
    ink = (20, 20, 20) if bright else (255, 255, 255)
    place = (left + pad, top + height + pad)
    cv2.putText(canvas, label, place, _FONT, size, ink, 1, cv2.LINE_AA)


def draw_caption(canvas: UInt8Array, caption: str, scale: int) -> None:
    """Write a line into the lower left corner, on a dark strip."""
    size = 0.42 * scale
    (width, height), baseline = cv2.getTextSize(caption, _FONT, size, 1)
    pad = 5 * scale
    top = canvas.shape[0] - height - baseline - 2 * pad
    strip = canvas[top:, : width + 2 * pad]
    strip[:] = (strip * 0.25).astype(np.uint8)
    place = (pad, canvas.shape[0] - baseline - pad)
    cv2.putText(canvas, caption, place, _FONT, size, (255, 255, 255), 1, cv2.LINE_AA)


def contact_sheet(
    pictures: Sequence[UInt8Array], columns: int = 3, width_px: int = 1920
) -> UInt8Array:
    """Lay pictures of one size out in rows, with a thin gap; uint8 BGR ``width_px`` wide."""
    gap = 8
    tile_width = (width_px - gap * (columns + 1)) // columns
    tile_height = round(tile_width * pictures[0].shape[0] / pictures[0].shape[1])
    rows = math.ceil(len(pictures) / columns)
    sheet = np.full((rows * (tile_height + gap) + gap, width_px, 3), 24, np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        y, x = gap + row * (tile_height + gap), gap + column * (tile_width + gap)
        resized = cv2.resize(picture, (tile_width, tile_height), interpolation=cv2.INTER_AREA)
        sheet[y : y + tile_height, x : x + tile_width] = resized
    return sheet


def write_animation(path: Path, pictures: Iterable[UInt8Array], fps: float) -> bool:
    """Write an endless animated WebP, which browsers show like any picture.

    Chosen over a video file because OpenCV's wheels carry no encoder whose result every browser
    plays. Returns False if there is no picture, or if this Pillow was built without WebP.
    """
    images = [Image.fromarray(picture[:, :, ::-1]) for picture in pictures]
    if not images or not features.check("webp"):
        return False
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
        quality=65,
        method=2,
    )
    return True


def encode_jpeg(picture: UInt8Array, quality: int = 88) -> bytes:
    """Return a picture as JPEG."""
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
