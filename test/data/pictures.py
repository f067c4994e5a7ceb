"""Pictures for the tiny models, and as image messages of every encoding."""

from __future__ import annotations

from array import array

import cv2
import numpy as np

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SIDE_PX = 128
BLOCK_PX = 16
# What a tiny model tells of a block in cell (2, 1): twice the block's size around its centre.
BLOCK_CENTRE, BLOCK_SIZE = (40.0, 24.0), (32.0, 32.0)


def picture(colour: tuple[int, int, int] = RED, column: int = 2, row: int = 1) -> np.ndarray:
    """A black RGB picture (128, 128, 3) with one block, exactly a cell of the network's input."""
    image = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    top, left = row * BLOCK_PX, column * BLOCK_PX
    image[top : top + BLOCK_PX, left : left + BLOCK_PX] = colour
    return image


def encode_raw(image: np.ndarray, encoding: str) -> np.ndarray:
    """An RGB picture as rows of bytes (rows, row_bytes) of a raw encoding."""
    if encoding in _CHANNELS:
        return image[..., _CHANNELS[encoding]].reshape(len(image), -1)
    if encoding == "mono8":
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if encoding.startswith("bayer_"):
        return _bayer(image, encoding[6:10])
    return _subsampled(image, encoding)


_CHANNELS = {
    "rgb8": [0, 1, 2],
    "bgr8": [2, 1, 0],
    "rgba8": [0, 1, 2, 0],  # whatever stands in alpha must not matter
    "bgra8": [2, 1, 0, 0],
}


def _bayer(image: np.ndarray, pattern: str) -> np.ndarray:
    mosaic = np.empty(image.shape[:2], np.uint8)
    for i, colour in enumerate(pattern):
        mosaic[i // 2 :: 2, i % 2 :: 2] = image[i // 2 :: 2, i % 2 :: 2, "rgb".index(colour)]
    return mosaic


def _subsampled(image: np.ndarray, encoding: str) -> np.ndarray:
    height, width = image.shape[:2]
    planes = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420).reshape(-1)
    luma, chroma = planes[: height * width].reshape(height, width), planes[height * width :]
    u, v = chroma.reshape(2, height // 2, width // 2)
    if encoding == "nv12":
        return np.concatenate([luma, np.stack([u, v], axis=2).reshape(height // 2, width)])
    pairs = np.empty((height, width, 2), np.uint8)
    luma_first = encoding in ("yuyv", "yuv422_yuy2")
    pairs[..., 0 if luma_first else 1] = luma
    pairs[:, 0::2, 1 if luma_first else 0] = u.repeat(2, axis=0)
    pairs[:, 1::2, 1 if luma_first else 0] = v.repeat(2, axis=0)
    return pairs.reshape(height, -1)


def raw_fields(
    image: np.ndarray, encoding: str = "rgb8", padding: int = 0, *, last_padding: bool = True
) -> dict[str, object]:
    """The fields of an ``Image`` message, header aside; ``padding`` bytes end each row."""
    rows = encode_raw(image, encoding)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=170).tobytes()
    if padding and not last_padding:
        padded = padded[:-padding]
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "encoding": encoding,
        "step": rows.shape[1] + padding,
        "data": to_array(padded),
    }


def encode_file(image: np.ndarray, suffix: str = ".jpg") -> array[int]:
    """An RGB picture as a JPEG or PNG file."""
    _, data = cv2.imencode(suffix, image[..., ::-1])
    return to_array(np.asarray(data).tobytes())


def to_array(data: bytes) -> array[int]:
    """The only type of ``data`` that rclpy takes without a walk over its elements."""
    values = array("B")
    values.frombytes(data)
    return values
