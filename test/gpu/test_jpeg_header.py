"""Which JPEGs are plain enough for a decoder on the GPU."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.gpu.jpeg_header import is_plain_jpeg

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def encode(*options: int, picture: np.ndarray = PICTURE) -> np.ndarray:
    return np.asarray(cv2.imencode(".jpg", picture, list(options))[1]).reshape(-1)


SAMPLED = cv2.IMWRITE_JPEG_SAMPLING_FACTOR
PLAIN = [
    pytest.param(encode(), id="4:2:0"),
    pytest.param(encode(SAMPLED, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422), id="4:2:2"),
    pytest.param(encode(SAMPLED, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444), id="4:4:4"),
    pytest.param(encode(SAMPLED, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411), id="4:1:1"),
    pytest.param(encode(SAMPLED, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440), id="4:4:0"),
    pytest.param(encode(picture=PICTURE[..., 0]), id="grey"),
    pytest.param(encode(cv2.IMWRITE_JPEG_RST_INTERVAL, 2), id="restart markers"),
    pytest.param(np.append(encode(), np.zeros(30, np.uint8)), id="padded behind its end"),
]


@pytest.mark.parametrize("data", PLAIN)
def test_what_cameras_send_is_plain(data: np.ndarray) -> None:
    assert is_plain_jpeg(data)


def patched(marker: bytes, offset: int, value: bytes) -> np.ndarray:
    """A plain file with bytes after a marker replaced."""
    raw = bytearray(encode().tobytes())
    at = raw.index(marker) + offset
    raw[at : at + len(value)] = value
    return np.frombuffer(bytes(raw), np.uint8)


def with_adobe(transform: int) -> np.ndarray:
    segment = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    raw = encode().tobytes()
    return np.frombuffer(raw[:2] + segment + raw[2:], np.uint8)


OTHERS = [
    pytest.param(encode(cv2.IMWRITE_JPEG_PROGRESSIVE, 1), id="progressive"),
    pytest.param(patched(b"\xff\xc0", 1, b"\xc9"), id="arithmetic coding"),
    pytest.param(patched(b"\xff\xc0", 4, b"\x0c"), id="12 bits"),
    pytest.param(patched(b"\xff\xc0", 9, b"\x04"), id="four components"),
    pytest.param(patched(b"\xff\xc0", 11, b"\x13"), id="odd sampling"),
    pytest.param(with_adobe(0), id="RGB by Adobe's word"),
    pytest.param(patched(b"\xff\xdb", 4, b"\x07"), id="quantiser of an impossible number"),
    pytest.param(patched(b"\xff\xdb", 9, b"\x00"), id="quantiser with a step of zero"),
    pytest.param(patched(b"\xff\xc4", 4, b"\x05"), id="Huffman table of an impossible number"),
    pytest.param(patched(b"\xff\xc4", 5, b"\x03"), id="more codes of one bit than there are"),
    pytest.param(patched(b"\xff\xc4", 6, b"\x02"), id="more codes than symbols"),
    pytest.param(patched(b"\xff\xc4", 21, b"\x0f"), id="more bits than a DC coefficient has"),
    pytest.param(patched(b"\xff\xc0", 12, b"\x03"), id="quantiser that is not there"),
    pytest.param(patched(b"\xff\xda", 6, b"\x22"), id="Huffman tables that are not there"),
    pytest.param(patched(b"\xff\xda", 11, b"\x01"), id="part of the spectrum"),
    pytest.param(patched(b"\xff\xda", 40, b"\xff\xc4"), id="marker in the coded data"),
    pytest.param(patched(b"\xff\xda", 40, b"\xff\xd0"), id="restart that was not announced"),
    pytest.param(encode()[:-20].copy(), id="truncated"),
    pytest.param(encode()[:100].copy(), id="truncated in its headers"),
    pytest.param(np.frombuffer(b"\x89PNG\r\n\x1a\n" + bytes(50), np.uint8), id="PNG"),
    pytest.param(np.zeros(0, np.uint8), id="nothing"),
    pytest.param(np.frombuffer(b"\xff\xd8\xff", np.uint8), id="magic alone"),
]


@pytest.mark.parametrize("data", OTHERS)
def test_all_else_is_not(data: np.ndarray) -> None:
    assert not is_plain_jpeg(data)


def test_ycc_by_adobes_word_is_plain() -> None:
    assert is_plain_jpeg(with_adobe(1))


@given(st.binary(max_size=300), st.integers(0, 600))
def test_any_bytes_are_judged(noise: bytes, kept: int) -> None:
    assert is_plain_jpeg(np.frombuffer(encode().tobytes()[:kept] + noise, np.uint8)) in (
        True,
        False,
    )
    is_plain_jpeg(np.frombuffer(b"\xff\xd8" + noise, np.uint8))
