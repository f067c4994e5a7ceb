"""Timing caches of TensorRT 8.5 as it reads them again.

At the end of a timing cache TensorRT 8.5 writes the cache of its code generator, as text. Where
nothing was generated, as with networks of convolutions, it refuses to read that text back ("Error
Code 1: Myelin", then "The timing cache will not be used!"), and everything is timed anew, for many
minutes. Others have met it, too (lightvector/KataGo issues 739 and 945, there until TensorRT 10.2).

A cache whose text is taken away, with its lengths set to none, is read and used: on an H100
YOLOv8m's INT8 build took 191 s instead of 1045 s so, with a cache of another H100.

The layout is not documented; this is what 8.5.3 was seen to write. What does not look exactly so is
left as it is, and costs the time that it always has.
"""

from __future__ import annotations

import struct

_TEXT = b"file_format_version="
_HEADING_LINES = 2  # format and version; each entry is a line more
_TAG = b"\x01\x80\x03\x80\x01\x00"  # between the text's length as a member and as a string
_LENGTH = struct.Struct("<Q")
_MAGIC = b"ptrt"
_TOTAL_AT = 16  # what follows these 24 bytes is counted there


def without_empty_text(cache: bytes) -> bytes:
    """Return a serialised timing cache without the code generator's, where that is empty."""
    at = cache.rfind(_TEXT)
    text = cache[at:] if at >= 0 else b""
    if text.count(b"\n") != _HEADING_LINES or not text.endswith(b"\n"):
        return cache
    length, none = _LENGTH.pack(len(text)), _LENGTH.pack(0)
    ending = length + _TAG + length + text
    first = _TOTAL_AT + _LENGTH.size
    if not (cache.startswith(_MAGIC) and cache.endswith(ending) and len(cache) > first):
        return cache
    if cache[_TOTAL_AT:first] != _LENGTH.pack(len(cache) - first):
        return cache
    rest = cache[first : -len(ending)] + none + _TAG + none
    return cache[:_TOTAL_AT] + _LENGTH.pack(len(rest)) + rest
