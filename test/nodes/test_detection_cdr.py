"""Detections written as serialised messages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy")
from rclpy.serialization import deserialize_message, serialize_message
from vision_msgs.msg import Detection2DArray

from edge_perception.core.detections import Detections
from edge_perception.nodes import detection_cdr
from edge_perception.nodes.detection_cdr import encoder_for
from edge_perception.nodes.messages import to_detection2d_array, to_header

NAMES = ["mug", "box", "pallet jack", "Blumentöpfe", "", "robot arm"]

# One object: corner, size, score, class id and track.
_OBJECT = st.tuples(
    st.floats(-100, 4000, width=32),
    st.floats(-100, 4000, width=32),
    st.floats(0, 4000, width=32),
    st.floats(0, 4000, width=32),
    st.floats(0, 1, width=32),
    st.integers(0, len(NAMES) - 1),
    st.integers(-1, 2**31 - 1),
)


def detections_of(objects: list[tuple[float, float, float, float, float, int, int]]) -> Detections:
    rows = np.array([o[:4] for o in objects], np.float32).reshape(-1, 4)
    corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1)
    return Detections(
        corners,
        np.array([o[4] for o in objects], np.float32),
        np.array([o[5] for o in objects], np.int32),
        np.array([o[6] for o in objects], np.int32),
    )


@given(
    st.lists(_OBJECT, max_size=12),
    st.integers(0, 2**31 * 10**9 - 1),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
)
def test_the_middleware_reads_what_was_written(
    objects: list[tuple[float, float, float, float, float, int, int]], stamp_ns: int, frame_id: str
) -> None:
    found, header = detections_of(objects), to_header(stamp_ns, frame_id)
    message = to_detection2d_array(found, header, NAMES)
    encoded = encoder_for(NAMES)(found, header)
    assert isinstance(encoded, bytes)
    assert len(encoded) == len(serialize_message(message))
    assert deserialize_message(encoded, Detection2DArray) == message


def test_another_layout_of_the_message_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a distribution's vision_msgs has one field more."""
    monkeypatch.setattr(detection_cdr, "serialize_message", lambda _: b"other")
    found, header = detections_of([(1, 2, 3, 4, 0.5, 1, -1)]), to_header(5, "left")
    assert encoder_for(NAMES)(found, header) == to_detection2d_array(found, header, NAMES)
