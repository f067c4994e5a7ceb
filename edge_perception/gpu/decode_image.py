"""Compressed images (JPEG, PNG) to pixels on the CPU, into memory that the caller gives.

The size is read from the file's header before anything is decoded, and a PNG's chunks must lie
inside the file (OpenCV allocates whatever length one claims), so that a small hostile file cannot
ask for gigabytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import simplejpeg

from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.errors import EdgePerceptionError, ImageError

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
    image_format = read_image_format(data, max_bytes)
    pixels = np.empty(image_format.size_bytes, np.uint8)
    decode_into(pixels, data, image_format)
    return pixels.reshape(image_format.height, image_format.width, 3), image_format


def read_image_format(data: UInt8Array, max_bytes: int) -> ImageFormat:
    """Read from a JPEG's or PNG's header what ``decode_into`` will make of it.

    Raises:
        ImageError: neither JPEG nor PNG, a damaged header, or too large.
    """
    head = data[: _PNG_HEADER.size].tobytes()
    if head.startswith(_JPEG_MAGIC):
        return _read_jpeg_header(data, max_bytes)
    if head.startswith(_PNG_MAGIC):
        return _read_png_header(data, head, max_bytes)
    raise ImageError(
        "compressed image is neither JPEG nor PNG", expected="their first bytes", got=head[:8]
    )


def is_jpeg(data: UInt8Array) -> bool:
    """Tell a JPEG by its first bytes."""
    return data[: len(_JPEG_MAGIC)].tobytes() == _JPEG_MAGIC


def decode_into(target: UInt8Array, data: UInt8Array, image_format: ImageFormat) -> None:
    """Decode a JPEG or PNG into memory.

    Args:
        target: uint8 ``(image_format.size_bytes,)``; holds nothing sound after an error.
        data: uint8 ``(n,)``, the file's bytes.
        image_format: what ``read_image_format`` said of it.

    Raises:
        ImageError: truncated or damaged.
    """
    if is_jpeg(data):
        _decode_jpeg(target, data)
    else:
        _decode_png(target, data, image_format)


class DeviceDecoder(Protocol):
    """What decodes JPEG into device memory; ``gpu.nvjpeg.NvJpegDecoder`` is one."""

    name: str

    def can_decode(self, data: UInt8Array) -> bool:
        """Tell whether a file is one for this decoder; the others are decoded on the CPU."""

    def enqueue(
        self, data: UInt8Array, image_format: ImageFormat, pointer: int, stream: int
    ) -> None:
        """Queue the decoding on a stream."""

    def close(self) -> None:
        """Free it."""


@dataclass(frozen=True)
class JpegChoice:
    """Who decodes JPEGs, and the reason. ``on_gpu`` None is simplejpeg on the CPU."""

    on_gpu: DeviceDecoder | None
    why: str

    @property
    def name(self) -> str:
        """Published in diagnostics."""
        return "simplejpeg" if self.on_gpu is None else self.on_gpu.name


def choose_jpeg_decoder(*, device_memory: bool) -> JpegChoice:
    """Choose by where frames lie, and by trying.

    Args:
        device_memory: whether decoded frames belong into device memory.
    """
    if not device_memory:
        return JpegChoice(None, "frames lie in host memory")
    try:
        from edge_perception.gpu.nvjpeg import open_probed

        return JpegChoice(open_probed(), "frames lie on the GPU; probe succeeded")
    except ImportError as error:
        return JpegChoice(None, f"cuda-bindings is not installed: {error}")
    except EdgePerceptionError as error:
        return JpegChoice(None, str(error))


def _read_jpeg_header(data: UInt8Array, max_bytes: int) -> ImageFormat:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise _jpeg_error(error, data) from error
    return _bgr8(height, width, max_bytes)


def _decode_jpeg(target: UInt8Array, data: UInt8Array) -> None:
    try:
        simplejpeg.decode_jpeg(data, colorspace="BGR", buffer=target)
    except ValueError as error:  # what simplejpeg raises for truncated and damaged files
        raise _jpeg_error(error, data) from error


def _jpeg_error(error: ValueError, data: UInt8Array) -> ImageError:
    return ImageError(f"JPEG cannot be decoded: {error}", got=f"{data.size} bytes")


def _read_png_header(data: UInt8Array, head: bytes, max_bytes: int) -> ImageFormat:
    if len(head) < _PNG_HEADER.size:
        raise ImageError("PNG ends inside its header", got=f"{data.size} bytes")
    _, _, _, width, height = _PNG_HEADER.unpack(head)
    return _bgr8(height, width, max_bytes)


def _decode_png(target: UInt8Array, data: UInt8Array, image_format: ImageFormat) -> None:
    _check_png_chunks(data)
    try:  # an orientation tag is ignored, as in JPEG: boxes refer to the sensor's rows
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f"PNG cannot be decoded: {error}", got=f"{data.size} bytes") from error
    if pixels is None or pixels.shape != (image_format.height, image_format.width, 3):
        raise ImageError("PNG is truncated or damaged", got=f"{data.size} bytes")
    np.copyto(target, np.asarray(pixels, np.uint8).reshape(-1))


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
