"""Few calibration frames, seen in more ways."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge_perception.core.image import ImageFormat
from edge_perception.gpu.preprocess import to_bgr
from edge_perception.quantization.int8.variants import with_variants
from edge_perception.trust.frames import Frame


def frame(index: int, height: int = 8, width: int = 12) -> Frame:
    picture = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
    image_format = ImageFormat.packed("rgb8", height, width)
    return Frame(index, f"frame{index}", picture.reshape(-1), image_format, None)


def pictures(frames: tuple[Frame, ...]) -> list[np.ndarray]:
    return [to_bgr(each.pixels, each.format) for each in frames]


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        pytest.param(2, 3, id="enough frames: no variant"),
        pytest.param(5, 5, id="as many variants as are missing"),
        pytest.param(99, 21, id="no more than there are: six of each frame"),
    ],
)
def test_variants_make_up_for_missing_frames(wanted: int, given: int) -> None:
    frames = tuple(frame(index) for index in range(3))
    varied = with_variants(frames, wanted)
    assert varied[:3] == frames
    assert len(varied) == given


def test_variants_are_the_same_frames_seen_otherwise() -> None:
    picture, mirrored, further, nearer, _, brighter, darker = pictures(with_variants([frame(0)], 7))
    assert {each.shape for each in (mirrored, further, nearer, brighter)} == {picture.shape}
    np.testing.assert_array_equal(mirrored, picture[:, ::-1])
    assert (further[5:] == 114).all(), "grey, as the letterbox is, where nothing was seen"
    np.testing.assert_array_equal(nearer, cv2.resize(picture[:4, :7], (12, 8)))
    assert brighter.mean() > picture.mean() > darker.mean()


def test_no_two_variants_are_alike() -> None:
    seen = {each.tobytes() for each in pictures(with_variants([frame(0)], 7))}
    assert len(seen) == 7


def test_smallest_picture_has_variants_too() -> None:
    assert len(with_variants([frame(0, 1, 1)], 7)) == 7
