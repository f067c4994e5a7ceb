"""Which frames calibrate: those that differ, the same ones each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_detections import frame as known_frame

from edge_perception.core.image import ImageFormat
from edge_perception.core.manifest import Preprocessing
from edge_perception.errors import QuantizationError
from edge_perception.gpu.preprocess import Preprocessor
from edge_perception.quantization.int8.frames import (
    choose_frames,
    digest_of,
    farthest_points,
    input_tensors,
)
from edge_perception.trust.frames import Frame, Frames


def grey_frame(index: int, grey: int) -> Frame:
    pixels = np.full(32 * 32 * 3, grey, np.uint8)
    return Frame(index, f"frame {index}", pixels, ImageFormat.packed("rgb8", 32, 32), None)


def test_next_point_is_the_farthest_from_all_chosen() -> None:
    points = np.array([[0.0], [1.0], [10.0], [4.0]], np.float32)
    seed = next(s for s in range(99) if np.random.default_rng(s).integers(4) == 0)
    assert farthest_points(points, 4, seed).tolist() == [0, 2, 3, 1]


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 9), st.integers(1, 4))
def test_every_point_is_chosen_once_at_most(total: int, wanted: int, seed: int, kinds: int) -> None:
    points = (np.arange(total) % kinds).astype(np.float32)[:, None]  # many are equal
    chosen = farthest_points(points, wanted, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(wanted, total)


def test_one_frame_of_each_kind_is_chosen_before_a_second_of_any() -> None:
    frames = [grey_frame(i, grey) for i, grey in enumerate([0] * 20 + [128] + [255] * 20)]
    chosen = choose_frames(frames, count=3, judging=0, seed=5)
    assert {int(frame.pixels[0]) for frame in chosen.calibration} == {0, 128, 255}


def test_choice_is_the_same_for_the_same_seed_and_its_digest_tells_the_frames() -> None:
    frames = [grey_frame(i, grey) for i, grey in enumerate(range(0, 240, 6))]
    first, again, other = (choose_frames(frames, 8, 4, seed) for seed in (1, 1, 2))
    assert (first.digest, first.indices) == (again.digest, again.indices)
    assert other.digest != first.digest
    assert first.digest == digest_of([frames[index] for index in first.indices])


def test_judging_frames_are_others_than_the_calibrating() -> None:
    chosen = choose_frames([grey_frame(i, 2 * i) for i in range(100)], 20, 10, seed=0)
    calibrating = {frame.index for frame in chosen.calibration}
    judging = {frame.index for frame in chosen.judging}
    assert (len(calibrating), len(judging)) == (20, 10)
    assert not calibrating & judging
    assert chosen.seen == 100


@pytest.mark.parametrize(
    ("there", "calibrating", "judging"),
    [
        pytest.param(9, 6, 3, id="a third judges where frames are few"),
        pytest.param(2, 2, 2, id="two frames do both"),
        pytest.param(1, 1, 1, id="one frame does both"),
    ],
)
def test_few_frames_are_shared_out(there: int, calibrating: int, judging: int) -> None:
    chosen = choose_frames([grey_frame(i, i) for i in range(there)], 128, 32, seed=0)
    assert (len(chosen.calibration), len(chosen.judging)) == (calibrating, judging)


def test_no_frame_at_all_is_told() -> None:
    with pytest.raises(QuantizationError, match="nothing to calibrate with"):
        choose_frames([], 4, 2, seed=0)


def test_digest_knows_pixels_formats_and_order() -> None:
    one, two = grey_frame(0, 10), grey_frame(1, 20)
    turned = replace(one, format=ImageFormat.packed("bgr8", 32, 32))
    digests = {digest_of(each) for each in ([one, two], [two, one], [turned, two], [one])}
    assert len(digests) == 4


def test_tensors_are_those_of_the_detectors_own_preprocessing(image_folder: Path) -> None:
    spec = Preprocessing(height=48, width=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    frames = list(Frames(str(image_folder)))[:2]
    for frame, tensor in zip(frames, input_tensors(frames, spec), strict=True):
        wanted, _ = Preprocessor(spec)(frame.pixels, frame.format)
        np.testing.assert_array_equal(tensor, wanted)


def test_known_frames_of_several_sizes_are_described_alike() -> None:
    picture, _ = known_frame(0)
    height, width = picture.shape[:2]
    pixels = np.ascontiguousarray(picture).reshape(-1)
    large = Frame(0, "", pixels, ImageFormat.packed("rgb8", height, width), None)
    chosen = choose_frames([large, grey_frame(1, 0)], 2, 0, seed=0)
    assert len(chosen.calibration) == 2
