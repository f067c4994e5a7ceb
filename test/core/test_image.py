"""Image formats and the array views they give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.core.image import ENCODINGS, ImageFormat, check_size, view_image
from edge_perception.errors import ImageError

sides = st.integers(1, 40).map(lambda half: 2 * half)


@st.composite
def formats(draw: st.DrawFn) -> ImageFormat:
    packed = ImageFormat.packed(draw(st.sampled_from(ENCODINGS)), draw(sides), draw(sides))
    return ImageFormat(
        packed.encoding, packed.height, packed.width, packed.step + draw(st.integers(0, 9))
    )


def numbered_bytes(count: int) -> np.ndarray:
    return (np.arange(count) % 251).astype(np.uint8)


@given(formats())
def test_view_holds_the_bytes_that_row_and_column_name(image_format: ImageFormat) -> None:
    data = numbered_bytes(image_format.size_bytes)
    view = view_image(data, image_format)
    rows = data.reshape(image_format.rows, image_format.step)[:, : image_format.row_bytes]
    assert np.array_equal(view.reshape(image_format.rows, -1), rows)
    assert np.shares_memory(view, data)


@given(formats())
def test_last_rows_padding_may_be_missing(image_format: ImageFormat) -> None:
    padding = image_format.step - image_format.row_bytes
    whole = numbered_bytes(image_format.size_bytes)
    cut = whole[: whole.size - padding].copy()
    assert np.array_equal(view_image(cut, image_format), view_image(whole, image_format))


@given(formats(), st.integers(1, 10_000))
def test_missing_and_surplus_bytes_are_refused(image_format: ImageFormat, count: int) -> None:
    shortest = (image_format.rows - 1) * image_format.step + image_format.row_bytes
    with pytest.raises(ImageError, match="wrong number of bytes"):
        check_size(max(0, shortest - count), image_format)
    with pytest.raises(ImageError, match="wrong number of bytes"):
        check_size(image_format.size_bytes + count, image_format)


@pytest.mark.parametrize(
    ("encoding", "shape"),
    [
        ("rgb8", (4, 6, 3)),
        ("bgra8", (4, 6, 4)),
        ("mono8", (4, 6)),
        ("bayer_rggb8", (4, 6)),
        ("uyvy", (4, 6, 2)),
        ("nv12", (6, 6)),
    ],
)
def test_view_has_the_shape_of_its_encoding(encoding: str, shape: tuple[int, ...]) -> None:
    image_format = ImageFormat.packed(encoding, 4, 6)
    assert view_image(np.zeros(image_format.size_bytes, np.uint8), image_format).shape == shape


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("rgb16", 4, 4, 24), "unknown image encoding"),
        (("", 4, 4, 12), "unknown image encoding"),
        (("RGB8", 4, 4, 12), "unknown image encoding"),
        (("rgb8", 0, 4, 12), "height out of range"),
        (("rgb8", 4, 0, 12), "width out of range"),
        (("rgb8", 16385, 4, 12), "height out of range"),
        (("rgb8", 4, 4, 11), "step is shorter"),
        (("rgb8", 4, 4, 0), "step is shorter"),
        (("yuyv", 4, 5, 10), "even width"),
        (("nv12", 4, 5, 5), "even width"),
        (("nv12", 5, 4, 4), "even height"),
    ],
)
def test_geometry_that_makes_no_sense_is_refused(
    arguments: tuple[str, int, int, int], reason: str
) -> None:
    with pytest.raises(ImageError, match=reason):
        ImageFormat(*arguments)


def test_refusal_stays_short_however_long_the_encoding_is() -> None:
    with pytest.raises(ImageError) as refused:
        ImageFormat("x" * 1_000_000, 4, 4, 12)
    assert len(str(refused.value)) < 1000
