"""Timing caches of TensorRT 8.5: what it cannot read back is taken away, the rest left alone."""

from __future__ import annotations

import struct

import pytest

from edge_perception.backends.timing_cache import without_empty_text

HEADING = b"file_format_version=1\n0.0.0.0_0.0.0.0_0.0.0.0_d2a7b8d5ba\n"
TAG = b"\x01\x80\x03\x80\x01\x00"


def cache(text: bytes, timings: bytes = b"\x18\x80\x01\x00timings" * 40) -> bytes:
    """What TensorRT 8.5.3 writes, as far as it is looked at."""
    length = struct.pack("<Q", len(text))
    rest = timings + length + TAG + length + text
    return b"ptrt" + bytes(4) + struct.pack("<QQ", 232, len(rest)) + rest


def test_empty_text_is_taken_away_and_nothing_else() -> None:
    assert without_empty_text(cache(HEADING)) == cache(b"")


def test_timings_that_hold_the_texts_first_words_are_kept() -> None:
    timings = b"\x01file_format_version=\x02" * 3
    assert without_empty_text(cache(HEADING, timings)) == cache(b"", timings)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(b"", id="nothing learnt yet"),
        pytest.param(b"file_format_version=1\n", id="not a timing cache"),
        pytest.param(HEADING, id="the text alone"),
        pytest.param(cache(HEADING + b"kernel 17\n"), id="kernels were generated"),
        pytest.param(cache(b""), id="the text is gone already"),
        pytest.param(cache(HEADING)[:-1], id="cut short"),
        pytest.param(cache(HEADING) + b"more\n", id="something behind the text"),
        pytest.param(b"PTRT" + cache(HEADING)[4:], id="another magic"),
        pytest.param(cache(HEADING).replace(TAG, TAG[::-1]), id="another tag"),
        pytest.param(
            cache(HEADING)[:16] + struct.pack("<Q", 9) + cache(HEADING)[24:], id="another length"
        ),
    ],
)
def test_all_else_is_left_as_it_is(other: bytes) -> None:
    assert without_empty_text(other) == other
