"""Serialised messages: round trips and stamps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_typestore

from edge_perception.replay import messages
from edge_perception.replay.typestore import load_typestore

STAMPS_NS = st.integers(0, (2**31 - 1) * 10**9)


def detections_cdr(stamp_ns: int = 5, count: int = 3) -> bytes:
    boxes = np.array([[i, 2 * i, i + 10.5, 2 * i + 7.25] for i in range(count)], np.float32)
    return messages.serialize_detections(
        stamp_ns, "cam", boxes, [f"thing {i}" for i in range(count)]
    )


def test_vision_msgs_type_hash_is_the_one_on_the_wire() -> None:
    assert load_typestore().hash_rihs01(messages.DETECTIONS) == (
        "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"
    )


@pytest.mark.parametrize(
    "msgtype",
    sorted(messages.STAMPED_TYPES - {messages.DETECTIONS}),
    ids=lambda t: t.split("/")[-1],
)
def test_types_have_the_same_fields_in_humble_and_jazzy(msgtype: str) -> None:
    humble, jazzy = get_typestore(Stores.ROS2_HUMBLE), load_typestore()
    assert humble.fielddefs[msgtype][1] == jazzy.fielddefs[msgtype][1]


@given(stamp_ns=STAMPS_NS, new_ns=STAMPS_NS)
def test_with_stamp_changes_the_stamp_and_nothing_else(stamp_ns: int, new_ns: int) -> None:
    cdr = messages.serialize_compressed_image(stamp_ns, "cam", b"abc")
    changed = messages.with_stamp(cdr, new_ns)
    assert messages.read_stamp_ns(changed) == new_ns
    assert changed == messages.serialize_compressed_image(new_ns, "cam", b"abc")


@pytest.mark.parametrize("little_endian", [True, False])
def test_stamps_are_read_and_written_in_the_byte_order_of_the_message(little_endian: bool) -> None:
    store = load_typestore()
    native = messages.serialize_compressed_image(1_500_000_007, "cam", b"abc")
    message = store.deserialize_cdr(native, messages.COMPRESSED_IMAGE)
    cdr = bytes(
        store.serialize_cdr(message, messages.COMPRESSED_IMAGE, little_endian=little_endian)
    )
    assert messages.read_stamp_ns(cdr) == 1_500_000_007
    assert messages.read_stamp_ns(messages.with_stamp(cdr, 42)) == 42


def test_read_stamp_of_a_message_too_short_for_a_header_raises() -> None:
    with pytest.raises(ValueError, match="at least 12 bytes, got 11"):
        messages.read_stamp_ns(b"\x00\x01" + b"\x00" * 9)


def test_restamp_moves_every_inner_header_of_detections() -> None:
    moved = messages.restamp(detections_cdr(5_000_000_000), messages.DETECTIONS, lambda t: t + 7)
    message = load_typestore().deserialize_cdr(moved, messages.DETECTIONS)
    headers = [message.header, *(d.header for d in message.detections)]  # type: ignore[attr-defined]
    assert [(h.stamp.sec, h.stamp.nanosec) for h in headers] == [(5, 7)] * 4


def test_restamp_leaves_an_inner_stamp_that_was_never_set() -> None:
    store = load_typestore()
    message = store.deserialize_cdr(detections_cdr(9), messages.DETECTIONS)
    inner = message.detections[1].header  # type: ignore[attr-defined]
    inner.stamp.nanosec = 0
    cdr = bytes(store.serialize_cdr(message, messages.DETECTIONS))
    moved = store.deserialize_cdr(
        messages.restamp(cdr, messages.DETECTIONS, lambda t: t + 100), messages.DETECTIONS
    )
    stamps = [d.header.stamp.nanosec for d in moved.detections]  # type: ignore[attr-defined]
    assert stamps == [109, 0, 109]


def test_detections_survive_the_round_trip() -> None:
    boxes = messages.deserialize_detections(detections_cdr(77))
    assert boxes.stamp_ns == 77
    assert boxes.class_names == ("thing 0", "thing 1", "thing 2")
    np.testing.assert_array_equal(boxes.boxes_xyxy[1], [1.0, 2.0, 11.5, 9.25])
    np.testing.assert_array_equal(boxes.scores, [1, 1, 1])


def test_no_detections_become_empty_arrays() -> None:
    boxes = messages.deserialize_detections(detections_cdr(count=0))
    assert boxes.boxes_xyxy.shape == (0, 4)
    assert boxes.scores.shape == (0,)


def test_detections_whose_numbers_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        messages.serialize_detections(1, "cam", np.zeros((2, 4), np.float32), ["one"])


def test_image_has_the_bytes_and_step_of_its_pixels() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    cdr = messages.serialize_image(1, "cam", pixels, "bgr8")
    message = messages.deserialize(cdr, messages.IMAGE)
    assert (message.height, message.width, message.step) == (2, 3, 9)
    np.testing.assert_array_equal(message.data, pixels.reshape(-1))
