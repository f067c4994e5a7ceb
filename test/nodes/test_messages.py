"""Conversions between this package's types and ROS messages."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy")
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from vision_msgs.msg import Detection2D, Detection2DArray

from edge_perception.core.detections import Detections
from edge_perception.nodes.messages import (
    from_detection2d_array,
    from_status,
    to_detection2d_array,
    to_header,
    to_image,
    to_label_info,
    to_nanoseconds,
    to_status,
    to_time,
)

HEADER = to_header(1_700_000_000_123_456_789, "left optical")


def detections(track_ids: list[int] | None = None) -> Detections:
    return Detections(
        np.array([[10.25, 20, 30, 41.5], [0, 0, 640, 480]], np.float32),
        np.array([0.75, 1], np.float32),
        np.array([1, 0], np.int32),
        None if track_ids is None else np.array(track_ids, np.int32),
    )


@given(st.integers(-(2**31), 2**31 - 1), st.integers(0, 999_999_999))
def test_time_comes_back_from_nanoseconds(sec: int, nanosec: int) -> None:
    stamp = Time(sec=sec, nanosec=nanosec)
    assert to_time(to_nanoseconds(stamp)) == stamp


def test_boxes_become_sub_pixel_centres_and_sizes() -> None:
    first, second = to_detection2d_array(detections(), HEADER, ["mug", "box"]).detections
    centre = first.bbox.center.position
    assert (centre.x, centre.y) == (20.125, 30.75)
    assert (first.bbox.size_x, first.bbox.size_y) == (19.75, 21.5)
    assert first.bbox.center.theta == 0
    assert [d.results[0].hypothesis.class_id for d in (first, second)] == ["box", "mug"]
    assert first.header == second.header == HEADER
    assert (first.id, second.id) == ("", "")


def test_tracks_become_ids_and_none_of_them_an_empty_one() -> None:
    message = to_detection2d_array(detections([7, -1]), HEADER, ["mug", "box"])
    assert [d.id for d in message.detections] == ["7", ""]


def test_detections_come_back_from_their_message() -> None:
    read = from_detection2d_array(to_detection2d_array(detections(), HEADER, ["mug", "box"]))
    assert read["stamp_ns"] == 1_700_000_000_123_456_789
    assert read["frame_id"] == "left optical"
    assert json.loads(json.dumps(read))["detections"] == [
        {"class": "box", "score": 0.75, "id": "", "xyxy": [10.25, 20, 30, 41.5]},
        {"class": "mug", "score": 1.0, "id": "", "xyxy": [0, 0, 640, 480]},
    ]


def test_detection_without_a_hypothesis_has_no_class() -> None:
    message = Detection2DArray(detections=[Detection2D()])
    read = from_detection2d_array(message)["detections"]
    assert read == [{"class": "", "score": 0.0, "id": "", "xyxy": [0, 0, 0, 0]}]


def test_label_info_maps_every_class() -> None:
    told = to_label_info(["mug", "box"], 0.5, HEADER)
    assert [(c.class_id, c.class_name) for c in told.class_map] == [(0, "mug"), (1, "box")]
    assert told.threshold == 0.5
    assert told.header == HEADER


@given(
    st.dictionaries(
        st.text(max_size=5), st.none() | st.integers() | st.floats(allow_nan=False) | st.booleans()
    )
)
def test_status_values_parse_back(values: dict[str, object]) -> None:
    pairs = from_status(to_status("node", DiagnosticStatus.OK, "fine", values))
    assert {key: json.loads(value) for key, value in pairs.items()} == values


def test_text_in_a_status_stands_as_it_is() -> None:
    status = to_status("node", DiagnosticStatus.WARN, "", {"reason": "too large"})
    assert from_status(status) == {"reason": "too large"}


def test_picture_becomes_a_bgr8_image_also_from_a_strided_view() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (6, 20, 3), np.uint8)
    message = to_image(wide[:, 4:9], HEADER)
    assert (message.height, message.width, message.step, message.encoding) == (6, 5, 15, "bgr8")
    assert bytes(message.data) == wide[:, 4:9].tobytes()
