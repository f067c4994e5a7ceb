"""Compressed images (JPEG, PNG) to pixels on the CPU.

The size is read from the file's header before anything is decoded, and a PNG's chunks must lie
inside the file (OpenCV allocates whatever length one claims), so that a small hostile file cannot
ask for gigabytes.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np
import simplejpeg

from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.errors import ImageError

_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = struct.Struct(">8sI4sII")
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_CHUNK_FRAME_BYTES = 12  # length, kind and check sum around a chunk's body


def decode_image(data: UInt8Array, max_bytes: int) -> tuple[UInt8Array, ImageFormat]:
    """Decode a JPEG or PNG to packed bgr8.

    Args:
        data: uint8 ``(n,)``, the file's bytes.
        max_bytes: the largest decoded size allowed.

    Returns:
        uint8 ``(height, width, 3)`` owned by the caller, and its format.

    Raises:
        ImageError: neither JPEG nor PNG, truncated, damaged, or too large.
    """
    head = data[: _PNG_HEADER.size].tobytes()
    if head.startswith(_JPEG_MAGIC):
        return _decode_jpeg(data, max_bytes)
    if head.startswith(_PNG_MAGIC):
        return _decode_png(data, head, max_bytes)
    raise ImageError(
        "compressed image is neither JPEG nor PNG", expected="their first bytes", got=head[:8]
    )


def _decode_jpeg(data: UInt8Array, max_bytes: int) -> tuple[UInt8Array, ImageFormat]:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        image_format = _bgr8(height, width, max_bytes)
        pixels: UInt8Array = simplejpeg.decode_jpeg(data, colorspace="BGR")
    except ValueError as error:  # what simplejpeg raises for truncated and damaged files
        raise ImageError(f"JPEG cannot be decoded: {error}", got=f"{data.size} bytes") from error
    return pixels, image_format


def _decode_png(data: UInt8Array, head: bytes, max_bytes: int) -> tuple[UInt8Array, ImageFormat]:
    if len(head) < _PNG_HEADER.size:
        raise ImageError("PNG ends inside its header", got=f"{data.size} bytes")
    _, _, _, width, height = _PNG_HEADER.unpack(head)
    image_format = _bgr8(height, width, max_bytes)
    _check_png_chunks(data)
    try:  # an orientation tag is ignored, as in JPEG: boxes refer to the sensor's rows
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f"PNG cannot be decoded: {error}", got=f"{data.size} bytes") from error
    if pixels is None or pixels.shape != (height, width, 3):
        raise ImageError("PNG is truncated or damaged", got=f"{data.size} bytes")
    return np.ascontiguousarray(pixels, np.uint8), image_format


def _check_png_chunks(data: UInt8Array) -> None:
    """Walk from chunk to chunk up to the last; raise ``ImageError`` where one leaves the file."""
    at = len(_PNG_MAGIC)
    while at + _PNG_CHUNK_FRAME_BYTES <= data.size:
        length, kind = _PNG_CHUNK.unpack_from(data.data, at)
        at += _PNG_CHUNK_FRAME_BYTES + length
        if kind == b"IEND" and at <= data.size:
            return
    raise ImageError("PNG is truncated or damaged", got=f"{data.size} bytes")


def _bgr8(height: int, width: int, max_bytes: int) -> ImageFormat:
    image_format = ImageFormat.packed("bgr8", height, width)
    if image_format.size_bytes > max_bytes:
        raise ImageError(
            f"compressed image of {width}x{height} px is too large",
            expected=f"at most {max_bytes} bytes decoded",
            got=image_format.size_bytes,
            mend="Raise the parameter max_image_bytes if such images are meant.",
        )
    return image_format
