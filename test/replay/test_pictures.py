"""Annotated pictures: where boxes land, what cannot be shown, sheets and animations."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from edge_perception.replay import messages, pictures
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.replay.source import TimedMessage

GREY = np.full((120, 160, 3), 128, np.uint8)


def found(*scores: float) -> LabelledBoxes:
    boxes = np.array([[40, 40, 120, 100]] * len(scores), np.float32).reshape(-1, 4)
    return LabelledBoxes(0, boxes, np.array(scores, np.float32), ("mug",) * len(scores))


def raw(encoding: str, pixels: np.ndarray) -> TimedMessage:
    cdr = messages.serialize_image(0, "camera", pixels, encoding)
    return TimedMessage(0, "/image", messages.IMAGE, cdr)


def compressed(data: bytes) -> TimedMessage:
    cdr = messages.serialize_compressed_image(0, "camera", data)
    return TimedMessage(0, "/image", messages.COMPRESSED_IMAGE, cdr)


def test_box_is_drawn_on_its_edge_and_not_inside() -> None:
    picture = pictures.annotate(GREY, found(0.9), {"mug": (0, 0, 255)})
    assert picture[70, 40].tolist() == [0, 0, 255]
    assert picture[70, 80].tolist() == [128, 128, 128]
    assert (GREY == 128).all()


def test_scale_enlarges_picture_and_boxes() -> None:
    picture = pictures.annotate(GREY, found(0.9), {"mug": (0, 0, 255)}, scale=2)
    assert picture.shape == (240, 320, 3)
    assert picture[140, 80].tolist() == [0, 0, 255]


def test_unsure_and_missing_detections_are_not_drawn() -> None:
    assert (pictures.annotate(GREY, found(0.29), {}) == 128).all()
    assert (pictures.annotate(GREY, None, {}) == 128).all()


def test_boxes_far_outside_the_picture_do_no_harm() -> None:
    boxes = np.array([[-1e6, -1e6, 1e6, 1e6]], np.float32)
    outside = LabelledBoxes(0, boxes, np.ones(1, np.float32), ("mug",))
    assert pictures.annotate(GREY, outside, {}).shape == GREY.shape


def test_caption_darkens_the_lower_left_corner() -> None:
    picture = pictures.annotate(GREY, None, {}, caption="frame 1")
    assert picture[118, 2].tolist() == [32, 32, 32]
    assert (picture[:90] == 128).all()


@pytest.mark.parametrize(
    ("encoding", "pixel", "bgr"),
    [("bgr8", [1, 2, 3], [1, 2, 3]), ("rgb8", [1, 2, 3], [3, 2, 1]), ("mono8", 7, [7, 7, 7])],
)
def test_raw_images_become_bgr(encoding: str, pixel: object, bgr: list[int]) -> None:
    shape = (4, 6) if encoding == "mono8" else (4, 6, 3)
    picture = pictures.decode_picture(raw(encoding, np.full(shape, pixel, np.uint8)))
    assert picture is not None
    assert picture.shape == (4, 6, 3)
    assert picture[2, 3].tolist() == bgr


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (compressed(b"\xff\xd8not a jpeg"), "a damaged JPEG"),
        (compressed(b""), "no data"),
        (TimedMessage(0, "/image", messages.IMAGE, b"\x00\x01\x00\x00" * 4), "a cut message"),
        (raw("yuyv", np.zeros((4, 6, 2), np.uint8)), "an encoding that is not shown"),
    ],
)
def test_what_cannot_be_shown_is_none(message: TimedMessage, reason: str) -> None:
    assert pictures.decode_picture(message) is None, reason


def test_jpeg_survives_the_way_there_and_back() -> None:
    picture = pictures.decode_picture(compressed(pictures.encode_jpeg(GREY)))
    assert picture is not None
    np.testing.assert_allclose(picture, GREY, atol=2)


def test_colours_depend_on_the_names_alone() -> None:
    assert pictures.class_colours(["b", "a", "b"]) == pictures.class_colours({"a", "b"})
    many = pictures.class_colours(str(index) for index in range(12))
    assert len(set(many.values())) == 12


def test_contact_sheet_holds_all_pictures_in_reading_order() -> None:
    levels = (50, 100, 150, 200)
    sheet = pictures.contact_sheet([np.full_like(GREY, level) for level in levels], width_px=632)
    assert sheet.shape == (2 * (150 + 8) + 8, 632, 3)  # tiles of 200x150
    centres = [(83, 108), (83, 316), (83, 524), (241, 108)]
    assert [int(sheet[y, x, 0]) for y, x in centres] == list(levels)


def test_animation_has_all_pictures_at_their_rate(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    frames = (np.full_like(GREY, level) for level in (0, 120, 240))
    assert pictures.write_animation(path, frames, fps=10.0)
    with Image.open(path) as animation:
        assert animation.n_frames == 3
        animation.seek(2)
        assert animation.convert("L").getpixel((5, 5)) == pytest.approx(240, abs=4)
        assert animation.info["duration"] == 100


def test_animation_of_nothing_is_not_written(tmp_path: Path) -> None:
    assert not pictures.write_animation(tmp_path / "a.webp", iter(()), fps=10.0)
    assert not (tmp_path / "a.webp").exists()


def test_jpeg_is_a_jpeg() -> None:
    assert cv2.imdecode(np.frombuffer(pictures.encode_jpeg(GREY), np.uint8), 1).shape == GREY.shape
