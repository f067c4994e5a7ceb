"""Whether a JPEG is plain and sound enough to be given to a GPU (ITU-T T.81, annexes B and C).

A decoder on the CPU that stumbles over a file returns an error. One on a GPU may read or write
where it should not, after which the process has lost its context. So a file is looked through
first, and what is not plain in every respect goes to the CPU. Not looked at is the coded data
itself, which would be most of decoding; only that no stray marker lies in it.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np

from edge_perception.core.image import UInt8Array

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_QUANTISATION, _HUFFMAN, _RESTART_INTERVAL = 0xDB, 0xC4, 0xDD
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_ADOBE, _COMMENT, _APPLICATIONS = 0xEE, 0xFE, range(0xE0, 0xF0)
_FIRST_RESTART = 0xD0
_LUMA_SAMPLINGS = frozenset({0x11, 0x12, 0x21, 0x22, 0x41})
_END_WITHIN = 64  # some cameras pad behind the end marker
_BASELINE_TABLES = 2
_MOST_DC_BITS, _MOST_AC_BITS = 11, 10

Segment = tuple[int, bytes]


def is_plain_jpeg(data: UInt8Array) -> bool:
    """Tell whether a file, uint8 ``(n,)``, is what cameras send, from its start to its end.

    Sequential Huffman coding in 8 bits in one scan, grey or YCbCr sampled 4:4:4, 4:4:0, 4:2:2,
    4:2:0 or 4:1:1, sound tables, and an end marker at the end. Progressive and arithmetic coding,
    RGB, CMYK and truncated files are not; nor is what is no JPEG.
    """
    try:
        segments, scan_at = _read_segments(data)
        return _are_sound(segments) and _is_whole(data[scan_at:], segments)
    except (struct.error, IndexError, ValueError):  # something ends too early
        return False


def _read_segments(data: UInt8Array) -> tuple[tuple[Segment, ...], int]:
    """Return the segments up to the first scan's, comments left out, and where its data begin."""
    raw = data.data
    if raw[0] != 0xFF or raw[1] != 0xD8:
        raise ValueError("no JPEG")
    segments: list[Segment] = []
    at = 2
    while not segments or segments[-1][0] != _START_OF_SCAN:
        if raw[at] != 0xFF:
            raise ValueError("no marker")
        marker = raw[at + 1]
        (length,) = struct.unpack_from(">H", raw, at + 2)
        if length < 2 or at + 2 + length > len(raw):
            raise ValueError("segment leaves the file")
        if marker == _ADOBE or (marker != _COMMENT and marker not in _APPLICATIONS):
            segments.append((marker, bytes(raw[at + 4 : at + 2 + length])))
        at += 2 + length
    return tuple(segments), at


@lru_cache(maxsize=32)
def _are_sound(segments: tuple[Segment, ...]) -> bool:
    """Check all headers against one another; a camera's are the same for every frame."""
    quantisers: set[int] = set()
    codes: set[int] = set()
    frames: list[bytes] = []
    for marker, body in segments[:-1]:
        if marker == _QUANTISATION:
            quantisers |= _read_quantisers(body)
        elif marker == _HUFFMAN:
            codes |= _read_codes(body)
        elif marker in _SEQUENTIAL_FRAMES:
            frames.append(body)
        elif marker == _RESTART_INTERVAL:
            _require(len(body) == 2)
        else:
            _require(marker == _ADOBE and (body[:5] != b"Adobe" or body[11] == 1))
    _require(len(frames) == 1)
    names = _read_frame(frames[0], quantisers)
    return _is_plain_scan(segments[-1][1], names, codes)


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError("not plain")


def _read_quantisers(body: bytes) -> set[int]:
    """Return the numbers of the tables: 8 bits a step, none zero."""
    found = set()
    while body:
        _require(body[0] < 4 and len(body) >= 65 and 0 not in body[1:65])
        found.add(body[0])
        body = body[65:]
    return found


def _read_codes(body: bytes) -> set[int]:
    """Return class and number of the Huffman tables, whose codes must fit (T.81, C.2)."""
    found = set()
    while body:
        kind, number = divmod(body[0], 16)
        count = sum(body[1:17])
        symbols = body[17 : 17 + count]
        _require(kind < 2 and number < _BASELINE_TABLES and 0 < count == len(symbols))
        free = 1
        for of_length in body[1:17]:
            free = 2 * free - of_length
            _require(free >= 0)
        _require(len(set(symbols)) == count)
        most_bits = _MOST_AC_BITS if kind else _MOST_DC_BITS
        _require(max(s % 16 if kind else s for s in symbols) <= most_bits)
        found.add(body[0])
        body = body[17 + count :]
    return found


def _read_frame(body: bytes, quantisers: set[int]) -> list[int]:
    """Return the components' names: grey, or luma and two chroma sampled as cameras do."""
    precision, height, width, components = struct.unpack_from(">BHHB", body)
    names, samplings, tables = (list(body[6 + i :: 3]) for i in range(3))
    _require(precision == 8 and height > 0 and width > 0 and len(body) == 6 + 3 * components)
    _require(set(tables) <= quantisers and len(set(names)) == components in (1, 3))
    _require(bytes(names) != b"RGB")
    if components == 1:
        _require(samplings[0] == 0x11)
    else:
        _require(samplings[0] in _LUMA_SAMPLINGS and samplings[1:] == [0x11, 0x11])
    return names


def _is_plain_scan(body: bytes, names: list[int], codes: set[int]) -> bool:
    """One scan of all components, of the whole spectrum, by tables that are there."""
    components = len(names)
    selectors = body[2 : 1 + 2 * components : 2]
    needed = {code for table in selectors for code in (table >> 4, 16 + (table & 15))}
    return (
        body[0] == components
        and list(body[1 : 1 + 2 * components : 2]) == names
        and needed <= codes
        and body[1 + 2 * components :] == b"\x00\x3f\x00"
    )


def _is_whole(scan: UInt8Array, segments: tuple[Segment, ...]) -> bool:
    """No marker in the coded data but restarts in their turn, and the end marker at its end."""
    at = np.flatnonzero(scan[:-1] == 0xFF)
    after = scan[at + 1]
    markers = np.flatnonzero(after != 0)
    ends = markers[after[markers] == _END_OF_IMAGE]
    if not ends.size or at[ends[0]] < scan.size - 2 - _END_WITHIN:
        return False
    restarts = after[markers[markers < ends[0]]]
    may_restart = any(marker == _RESTART_INTERVAL for marker, _ in segments)
    turns = _FIRST_RESTART + np.arange(restarts.size) % 8
    return (may_restart or not restarts.size) and bool((restarts == turns).all())
