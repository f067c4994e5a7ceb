"""What kind of JPEG a file is, by its headers alone (ITU-T T.81, annex B)."""

from __future__ import annotations

import struct

from edge_perception.core.image import UInt8Array

_START_OF_SCAN, _ADOBE = 0xDA, 0xEE
_HUFFMAN_SEQUENTIAL = (0xC0, 0xC1)
_OTHER_FRAMES = frozenset(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those are tables and spare
_LUMA_SAMPLINGS = frozenset({0x11, 0x12, 0x21, 0x22, 0x41})
_END_MARKER, _END_WITHIN = b"\xff\xd9", 64  # some cameras pad behind it


def is_plain_jpeg(data: UInt8Array) -> bool:
    """Tell whether a file, uint8 ``(n,)``, is what cameras send, from its start to its end.

    Sequential Huffman coding in 8 bits, grey or YCbCr sampled 4:4:4, 4:4:0, 4:2:2, 4:2:0 or 4:1:1,
    and an end marker at the end. Progressive and arithmetic coding, RGB, CMYK and truncated files
    are not; nor is what is no JPEG.
    """
    try:
        return _walk(data)
    except (struct.error, IndexError):  # the headers end too early
        return False


def _walk(data: UInt8Array) -> bool:
    """Go from segment to segment up to the first scan."""
    raw = data.data
    plain_frame = False
    at = 2
    while True:
        if raw[at] != 0xFF:
            return False
        if raw[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        marker = raw[at + 1]
        (length,) = struct.unpack_from(">H", raw, at + 2)
        body = raw[at + 4 : at + 2 + length]
        if marker == _START_OF_SCAN:
            return plain_frame and _END_MARKER in data[-_END_WITHIN:].tobytes()
        if marker in _OTHER_FRAMES or (marker == _ADOBE and not _is_ycc(body)):
            return False
        if marker in _HUFFMAN_SEQUENTIAL:
            plain_frame = _is_plain_frame(body)
        at += 2 + length


def _is_ycc(adobe: memoryview) -> bool:
    return bytes(adobe[:5]) != b"Adobe" or adobe[11] == 1


def _is_plain_frame(body: memoryview) -> bool:
    """8 bits; grey, or luma and two chroma components sampled as cameras do."""
    precision, _, _, components = struct.unpack_from(">BHHB", body)
    names = [body[6 + 3 * i] for i in range(components)]
    samplings = [body[7 + 3 * i] for i in range(components)]
    if precision != 8 or bytes(names) == b"RGB":
        return False
    return components == 1 or (
        components == 3 and samplings[0] in _LUMA_SAMPLINGS and samplings[1:] == [0x11, 0x11]
    )
