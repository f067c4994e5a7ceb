"""The CPU preprocessing against a slow, independent statement of the same arithmetic."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_perception.core.image import ENCODINGS, ImageFormat
from edge_perception.core.manifest import Preprocessing
from edge_perception.errors import ImageError
from edge_perception.gpu.preprocess import ImageRegion, Preprocessor


def padded_format(encoding: str, height: int, width: int, padding: int = 0) -> ImageFormat:
    packed = ImageFormat.packed(encoding, height, width)
    return ImageFormat(encoding, height, width, packed.step + padding)


def random_pixels(image_format: ImageFormat, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, image_format.size_bytes, np.uint8)


def bilinear(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize one plane in float64 with half-pixel centres and clamped edges."""

    def taps(target: int, source: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(place).astype(int)
        return low, np.minimum(low + 1, source - 1), place - low

    y0, y1, fy = taps(height, plane.shape[0])
    x0, x1, fx = taps(width, plane.shape[1])
    rows = plane[y0] * (1 - fy)[:, None] + plane[y1] * fy[:, None]
    return rows[:, x0] * (1 - fx) + rows[:, x1] * fx


IDENTITY = Preprocessing(64, 96, scale=1.0)


@pytest.mark.parametrize(
    ("encoding", "rgb"),
    [("rgb8", (0, 1, 2)), ("bgr8", (2, 1, 0)), ("rgba8", (0, 1, 2)), ("bgra8", (2, 1, 0))],
)
@pytest.mark.parametrize("size", [(48, 96), (128, 192), (37, 201), (300, 111)])
def test_packed_image_matches_float_bilinear_within_one_level(
    encoding: str, rgb: tuple[int, int, int], size: tuple[int, int]
) -> None:
    image_format = padded_format(encoding, *size, padding=5)
    pixels = random_pixels(image_format)
    tensor, box = Preprocessor(IDENTITY)(pixels, image_format)
    rows = pixels.reshape(size[0], image_format.step)[:, : image_format.row_bytes]
    image = rows.reshape(*size, -1)
    for channel in range(3):
        expected = bilinear(image[:, :, rgb[channel]], box.resized_height, box.resized_width)
        inside = tensor[0, channel, box.pad_top :, box.pad_left :]
        inside = inside[: box.resized_height, : box.resized_width]
        assert np.abs(inside - expected).max() <= 1.0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_shows_a_flat_colour_as_itself(encoding: str) -> None:
    """A grey that all encodings can carry comes out as grey, whatever the route."""
    image_format = padded_format(encoding, 48, 96, padding=7)
    level = {"nv12": 128, "uyvy": 128, "yuv422": 128, "yuyv": 128, "yuv422_yuy2": 128}
    pixels = np.full(image_format.size_bytes, level.get(encoding, 130), np.uint8)
    tensor, box = Preprocessor(IDENTITY)(pixels, image_format)
    inside = tensor[0, :, box.pad_top : box.pad_top + box.resized_height]
    assert inside.min() == inside.max() == 130.0


@pytest.mark.parametrize(
    ("encoding", "rows"),
    [
        ("bayer_rggb8", ["RG", "GB"]),
        ("bayer_bggr8", ["BG", "GR"]),
        ("bayer_gbrg8", ["GB", "RG"]),
        ("bayer_grbg8", ["GR", "BG"]),
    ],
)
def test_bayer_pattern_names_mean_what_ros_means(encoding: str, rows: list[str]) -> None:
    colour = {"R": 200, "G": 100, "B": 50}
    tile = np.array([[colour[letter] for letter in row] for row in rows], np.uint8)
    mosaic = np.tile(tile, (24, 48))
    tensor, _ = Preprocessor(Preprocessing(48, 96, scale=1.0))(
        mosaic.ravel(), ImageFormat.packed(encoding, 48, 96)
    )
    assert tensor[0, :, 24, 48].tolist() == [200, 100, 50]


@pytest.mark.parametrize("encoding", ["uyvy", "yuyv", "nv12"])
def test_luma_and_chroma_of_yuv_encodings_are_told_apart(encoding: str) -> None:
    y, u, v = 90, 60, 200  # far from grey: red up, green down
    image_format = ImageFormat.packed(encoding, 48, 96)
    flat = {"uyvy": [u, y, v, y], "yuyv": [y, u, y, v]}
    if encoding == "nv12":
        image_format = ImageFormat("nv12", 48, 96, 96)
        pixels = np.concatenate([np.full(48 * 96, y), np.tile([u, v], 24 * 48)])
    else:
        pixels = np.tile(flat[encoding], 48 * 48)
    tensor, _ = Preprocessor(Preprocessing(48, 96, scale=1.0))(
        pixels.astype(np.uint8), image_format
    )
    luma = 1.164 * (y - 16)
    expected = [
        luma + 1.596 * (v - 128),
        luma - 0.813 * (v - 128) - 0.391 * (u - 128),
        luma + 2.018 * (u - 128),
    ]
    assert tensor[0, :, 20, 20] == pytest.approx(np.clip(expected, 0, 255), abs=1)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_layout_dtype_and_colour_order_follow_the_manifest(
    layout: str, dtype: str, color: str
) -> None:
    scale = 1.0 if dtype == "uint8" else 1 / 255
    spec = Preprocessing(8, 8, color=color, scale=scale, layout=layout, dtype=dtype)
    pixels = np.tile(np.array([10, 20, 30], np.uint8), 64)
    tensor, _ = Preprocessor(spec)(pixels, ImageFormat.packed("rgb8", 8, 8))
    assert tensor.shape == spec.input_shape
    assert tensor.dtype == np.dtype(dtype)
    pixel = tensor[0, :, 3, 3] if layout == "nchw" else tensor[0, 3, 3]
    expected = np.array([10, 20, 30])[:: 1 if color == "rgb" else -1] * scale
    assert pixel.astype(float) == pytest.approx(expected, rel=1e-3)


def test_mean_and_std_apply_to_picture_and_padding_alike() -> None:
    spec = Preprocessing(32, 64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    image_format = ImageFormat.packed("rgb8", 32, 32)
    tensor, box = Preprocessor(spec)(np.full(32 * 32 * 3, 114, np.uint8), image_format)
    expected = (114 / 255 - np.array(spec.mean)) / np.array(spec.std)
    assert box.pad_left == 16
    for channel in range(3):
        assert np.ptp(tensor[0, channel]) == 0
        assert tensor[0, channel, 0, 0] == pytest.approx(expected[channel], abs=1e-6)


def test_padding_is_renewed_when_the_source_size_changes() -> None:
    preprocess = Preprocessor(Preprocessing(64, 64, scale=1.0))
    for height, width in [(64, 64), (32, 64), (64, 32), (64, 64), (16, 64)]:
        image_format = ImageFormat.packed("rgb8", height, width)
        tensor, box = preprocess(np.zeros(image_format.size_bytes, np.uint8), image_format)
        padded = np.full((64, 64), 114.0)
        bottom, right = box.pad_top + box.resized_height, box.pad_left + box.resized_width
        padded[box.pad_top : bottom, box.pad_left : right] = 0
        assert (tensor[0] == padded).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    crops=st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 30), st.integers(1, 46), st.integers(1, 30)),
        min_size=1,
        max_size=4,
    ),
    encoding=st.sampled_from(["rgb8", "mono8", "bgra8"]),
)
@settings(max_examples=50, deadline=None)
def test_crop_equals_the_crop_copied_out(
    seed: int, crops: list[tuple[int, int, int, int]], encoding: str
) -> None:
    image_format = ImageFormat.packed(encoding, 60, 96)
    pixels = random_pixels(image_format, seed)
    image = pixels.reshape(60, 96, -1)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in crops]
    tensor, _ = Preprocessor(IDENTITY).batch(
        [ImageRegion(pixels, image_format, box) for box in boxes]
    )
    for got, (left, top, right, bottom) in zip(tensor, boxes, strict=True):
        part = np.ascontiguousarray(image[top:bottom, left:right])
        alone = ImageFormat.packed(encoding, bottom - top, right - left)
        expected, _ = Preprocessor(IDENTITY)(part.ravel(), alone)
        assert (got == expected[0]).all()


def test_read_only_pixels_with_a_short_last_row_are_accepted() -> None:
    image_format = ImageFormat("bgr8", 20, 20, 64)
    pixels = random_pixels(image_format)[: 20 * 64 - 4]
    pixels.flags.writeable = False
    tensor, _ = Preprocessor(IDENTITY)(pixels, image_format)
    assert np.isfinite(tensor).all()


@pytest.mark.parametrize(
    "crop",
    [(0, 0, 0, 10), (10, 0, 5, 10), (-1, 0, 5, 5), (0, 0, 97, 10), (0, 0, 10, 61)],
)
def test_crop_outside_the_image_is_refused(crop: tuple[int, int, int, int]) -> None:
    image_format = ImageFormat.packed("rgb8", 60, 96)
    with pytest.raises(ImageError, match="crop is empty or leaves the image"):
        ImageRegion(random_pixels(image_format), image_format, crop)


def test_wrong_number_of_bytes_is_refused() -> None:
    image_format = ImageFormat.packed("rgb8", 60, 96)
    with pytest.raises(ImageError, match="wrong number of bytes"):
        Preprocessor(IDENTITY)(random_pixels(image_format)[:-1], image_format)


def test_opencv_bayer_is_the_reference_inside_the_image() -> None:
    """Pins the meaning of OpenCV's names, which changed once already."""
    image_format = ImageFormat.packed("bayer_rggb8", 40, 60)
    pixels = random_pixels(image_format)
    tensor, _ = Preprocessor(Preprocessing(40, 60, scale=1.0))(pixels, image_format)
    mosaic = pixels.reshape(40, 60).astype(int)
    red_at_blue = mosaic[0:39:2, 0:59:2]
    around = (red_at_blue[:-1, :-1] + red_at_blue[1:, :-1]) + (
        red_at_blue[:-1, 1:] + red_at_blue[1:, 1:]
    )
    got = tensor[0, 0, 1:38:2, 1:58:2]
    assert np.abs(got - around / 4).max() <= 0.5
    assert cv2.COLOR_BayerRGGB2RGB == cv2.COLOR_BayerBG2RGB
