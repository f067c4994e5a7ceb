"""Compressed images: what they hold, and files that are damaged or mean harm."""

from __future__ import annotations

import resource
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_perception.core.image import ImageFormat
from edge_perception.errors import ImageError
from edge_perception.gpu.decode_image import decode_image

LIMIT = 64 << 20
PICTURE = np.zeros((48, 64, 3), np.uint8)
PICTURE[10:30, 20:40] = (255, 128, 0)
PICTURE[:, 50:] = np.random.default_rng(0).integers(0, 256, (48, 14, 3))


def encode(suffix: str, picture: np.ndarray = PICTURE) -> np.ndarray:
    _, data = cv2.imencode(suffix, picture)
    return np.asarray(data).reshape(-1)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, *extra: bytes) -> np.ndarray:
    """A PNG of 8-bit RGB whose header says what it is told."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (
        png_chunk(b"IHDR", header),
        *extra,
        png_chunk(b"IDAT", zlib.compress(rows)),
        png_chunk(b"IEND", b""),
    )
    return np.frombuffer(b"\x89PNG\r\n\x1a\n" + b"".join(chunks), np.uint8)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_picture_comes_back_as_packed_bgr(suffix: str) -> None:
    pixels, image_format = decode_image(encode(suffix), LIMIT)
    assert image_format == ImageFormat.packed("bgr8", 48, 64)
    assert pixels.flags.c_contiguous
    assert np.abs(pixels[15:25, 25:35].astype(int) - (255, 128, 0)).max() < 12
    if suffix == ".png":
        assert np.array_equal(pixels, PICTURE)


@pytest.mark.parametrize(
    "picture",
    [PICTURE[..., 0], np.dstack([PICTURE, PICTURE[..., :1]]), PICTURE.astype(np.uint16) * 257],
    ids=["grey", "alpha", "16 bit"],
)
def test_png_of_any_depth_becomes_bgr8(picture: np.ndarray) -> None:
    pixels, image_format = decode_image(encode(".png", picture), LIMIT)
    assert pixels.shape == (48, 64, 3)
    assert image_format.encoding == "bgr8"


def test_grey_jpeg_becomes_bgr8() -> None:
    pixels, _ = decode_image(encode(".jpg", PICTURE[..., 0]), LIMIT)
    assert pixels.shape == (48, 64, 3)


def test_orientation_tag_does_not_turn_a_png() -> None:
    # Bayer, raw and JPEG images are not turned either: boxes refer to the sensor's rows.
    turned = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
    rows = b"".join(b"\x00" + row.tobytes() for row in PICTURE[..., ::-1])
    pixels, _ = decode_image(png(64, 48, rows, png_chunk(b"eXIf", turned + bytes(4))), LIMIT)
    assert np.array_equal(pixels, PICTURE)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9, 0.98])
def test_truncated_picture_is_refused(suffix: str, kept: float) -> None:
    data = encode(suffix)
    with pytest.raises(ImageError):
        decode_image(data[: int(data.size * kept)].copy(), LIMIT)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "neither JPEG nor PNG"),
        (b"\xff", "neither JPEG nor PNG"),
        (b"GIF89a" + bytes(100), "neither JPEG nor PNG"),
        (b"RIFF" + bytes(100), "neither JPEG nor PNG"),
        (b"\xff\xd8\xff", "JPEG cannot be decoded"),
        (b"\xff\xd8\xff" + bytes(500), "JPEG cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "ends inside its header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "out of range"),
    ],
)
def test_garbage_is_told(data: bytes, told: str) -> None:
    with pytest.raises(ImageError, match=told):
        decode_image(np.frombuffer(data, np.uint8), LIMIT)


def jpeg_claiming(width: int, height: int) -> np.ndarray:
    data = bytearray(encode(".jpg").tobytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return np.frombuffer(bytes(data), np.uint8)


@pytest.mark.parametrize(
    "bomb",
    [
        png(16384, 16384, b""),
        png(16384, 16384, bytes(1 << 20)),
        jpeg_claiming(16384, 16384),
        jpeg_claiming(7680, 4320),
        png(7680, 4320, b""),
    ],
    ids=["png", "png with rows", "jpeg", "8K jpeg", "8K png"],
)
def test_size_is_refused_before_anything_is_decoded(bomb: np.ndarray) -> None:
    with pytest.raises(ImageError, match="too large"):
        decode_image(bomb, LIMIT)


@pytest.mark.parametrize(
    "bomb",
    [
        png(1 << 30, 1 << 30, b""),
        png(0, 10, b""),
        jpeg_claiming(65535, 65535),
        jpeg_claiming(0, 48),
    ],
    ids=["huge png", "empty png", "huge jpeg", "empty jpeg"],
)
def test_side_that_no_camera_has_is_refused(bomb: np.ndarray) -> None:
    with pytest.raises(ImageError):
        decode_image(bomb, LIMIT)


def test_png_with_more_rows_than_it_says_gives_those_it_says() -> None:
    pixels, _ = decode_image(png(4, 2, bytes(13 * 1000)), LIMIT)
    assert pixels.shape == (2, 4, 3)


def test_png_with_fewer_rows_than_it_says_is_refused() -> None:
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode_image(png(64, 48, bytes(193 * 20)), LIMIT)


def test_chunk_that_claims_gigabytes_is_refused_before_opencv_allocates_them() -> None:
    claim = struct.pack(">I", 0xF0000000) + b"tEXt"
    data = encode(".png").tobytes()
    bomb = np.frombuffer(data[:33] + claim + data[33:], np.uint8)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode_image(bomb, LIMIT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000


GOOD = {suffix: encode(suffix) for suffix in (".jpg", ".png")}


@settings(max_examples=200)
@given(
    suffix=st.sampled_from([".jpg", ".png"]),
    wounds=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
    kept=st.floats(0, 1),
)
def test_damaged_picture_is_decoded_or_refused(
    suffix: str, wounds: list[tuple[float, int]], kept: float
) -> None:
    data = GOOD[suffix].copy()
    for place, value in wounds:
        data[int(place * data.size)] = value
    data = data[: int(kept * data.size)].copy()
    try:
        pixels, image_format = decode_image(data, 1 << 20)
    except ImageError:
        return
    assert pixels.nbytes == image_format.size_bytes <= 1 << 20
