"""Detections written as a message already serialised, in the CDR that DDS sends.

Turning nested Python messages into C structures and those into bytes takes rclpy twelve
microseconds an object with warm caches, and several times that just after inference has emptied
them: it was the largest part of what a frame costs beside the model. Every field but five is the
same in each object, so here the bytes are put together at once.

The layout (little-endian, plain CDR, version 1) is that of ``vision_msgs/Detection2DArray`` 4.x,
field by field. Distributions differ, so it is not trusted: ``encoder_for`` has the middleware read
a sample, and gives the ordinary conversion where what it reads is not what was written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from edge_perception.core.detections import Detections
from edge_perception.nodes.messages import to_detection2d_array, to_header, track_name

Encoded: TypeAlias = "bytes | Detection2DArray"
Encoder = Callable[[Detections, Header], Encoded]

_ENCAPSULATION = b"\x00\x01\x00\x00"
_NO_POSE = struct.pack("<7d", 0, 0, 0, 0, 0, 0, 1) + bytes(36 * 8)  # and its covariance
_BOX = struct.Struct("<5d")


def encoder_for(class_names: Sequence[str]) -> Encoder:
    """Return what turns detections into something that a publisher takes.

    ``class_names`` are by class id. The result is bytes where this module's layout is the
    middleware's, and the message where it is not.
    """

    def as_message(detections: Detections, header: Header) -> Detection2DArray:
        return to_detection2d_array(detections, header, class_names)

    encode = _CdrEncoder(class_names)
    sample, header = _sample(len(class_names)), to_header(1_000_000_007, "sample")
    return encode if _reads_as(encode(sample, header), as_message(sample, header)) else as_message


def _reads_as(encoded: bytes, message: Detection2DArray) -> bool:
    """Whether the middleware reads ``message``; padding, which it leaves undefined, may differ."""
    if len(encoded) != len(serialize_message(message)):  # another layout is not even read
        return False
    return bool(deserialize_message(encoded, Detection2DArray) == message)


def _sample(classes: int) -> Detections:
    """Objects with names and tracks of several lengths: every padding occurs."""
    count = min(classes, 16)
    corners = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    tracks = np.array([10**i % 1_000_007 - 1 for i in range(count)], np.int32)
    return Detections(corners, np.linspace(0, 1, count, dtype=np.float32), np.arange(count), tracks)


class _CdrEncoder:
    """Writes messages of one model."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = [_string(name) for name in class_names]

    def __call__(self, detections: Detections, header: Header) -> bytes:
        header_bytes = _header(header)
        out = bytearray(_padded(header_bytes, 4) + struct.pack("<I", len(detections.scores)))
        tracks = detections.track_ids
        for i, ((x1, y1, x2, y2), score, class_id) in enumerate(
            zip(
                detections.boxes_xyxy.tolist(),
                detections.scores.tolist(),
                detections.class_ids.tolist(),
                strict=True,
            )
        ):
            _pad(out, 4)
            out += header_bytes
            _pad(out, 4)
            out += b"\x01\x00\x00\x00"  # hypotheses
            out += self._class_names[class_id]
            _pad(out, 8)
            out += struct.pack("<d", score)
            out += _NO_POSE
            out += _BOX.pack((x1 + x2) / 2, (y1 + y2) / 2, 0.0, x2 - x1, y2 - y1)
            out += _string(track_name(tracks, i))
        return _ENCAPSULATION + out


def _header(header: Header) -> bytes:
    return struct.pack("<iI", header.stamp.sec, header.stamp.nanosec) + _string(header.frame_id)


def _string(text: str) -> bytes:
    encoded = text.encode("utf-8") + b"\x00"
    return struct.pack("<I", len(encoded)) + encoded


def _padded(part: bytes, alignment: int) -> bytes:
    return part + bytes(-len(part) % alignment)


def _pad(out: bytearray, alignment: int) -> None:
    out += bytes(-len(out) % alignment)
