"""Serialised ROS messages (CDR) made and read without rclpy.

Bags hold messages as CDR bytes, and rclpy publishes such bytes as they are; so a message is built
once, travels as bytes, and only its stamp is changed on the way. Of a message that starts with a
``std_msgs/Header`` the stamp lies at a fixed place: after four bytes of encapsulation, whose
second byte tells the byte order, come seconds (int32) and nanoseconds (uint32).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_perception.core.detections import Float32Array
from edge_perception.core.image import ImageFormat
from edge_perception.errors import BagError
from edge_perception.replay.typestore import load_typestore

COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
IMAGE = "sensor_msgs/msg/Image"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
DETECTIONS = "vision_msgs/msg/Detection2DArray"
IMAGE_TYPES = frozenset({COMPRESSED_IMAGE, IMAGE})
STAMPED_TYPES = frozenset({*IMAGE_TYPES, CAMERA_INFO, DETECTIONS})

Buffer = bytes | memoryview
_NS = 1_000_000_000
_STAMP = slice(4, 12)
SHORTEST_STAMPED_BYTES = _STAMP.stop


@dataclass(frozen=True)
class LabelledBoxes:
    """N named boxes of one image, as bags and reports know them.

    ``boxes_xyxy`` is float32 ``(N, 4)`` in source pixels, ``scores`` float32 ``(N,)`` in 0..1,
    ``class_names`` the N readable names.
    """

    stamp_ns: int
    boxes_xyxy: Float32Array
    scores: Float32Array
    class_names: tuple[str, ...]


def _stamp_struct(cdr: Buffer) -> str:
    return "<iI" if cdr[1] & 1 else ">iI"


def read_stamp_ns(cdr: Buffer) -> int:
    """Return the header stamp, in nanoseconds, of a serialised message that starts with a header.

    Raises:
        ValueError: fewer bytes than a header needs.

    """
    if len(cdr) < _STAMP.stop:
        raise ValueError(f"a stamped message has at least {_STAMP.stop} bytes, got {len(cdr)}")
    seconds, nanoseconds = struct.unpack(_stamp_struct(cdr), cdr[_STAMP])
    return int(seconds) * _NS + int(nanoseconds)


def with_stamp(cdr: Buffer, stamp_ns: int) -> bytes:
    """Return a copy of a serialised message whose leading header has another stamp."""
    stamp = struct.pack(_stamp_struct(cdr), *divmod(stamp_ns, _NS))
    return b"".join((cdr[: _STAMP.start], stamp, memoryview(cdr)[_STAMP.stop :]))


def restamp(cdr: Buffer, msgtype: str, shift: Callable[[int], int]) -> bytes:
    """Return a copy with every header's stamp mapped by ``shift`` (nanoseconds to nanoseconds).

    A ``Detection2DArray`` has a header in each of its detections too; those are mapped likewise,
    a stamp of zero (not set) excepted.

    Raises:
        BagError: a ``Detection2DArray`` that cannot be deserialised.
    """
    if msgtype != DETECTIONS:
        return with_stamp(cdr, shift(read_stamp_ns(cdr)))
    message = deserialize(cdr, DETECTIONS)
    message.header.stamp = _time(shift(_to_ns(message.header.stamp)))
    for detection in message.detections:
        if recorded_ns := _to_ns(detection.header.stamp):
            detection.header.stamp = _time(shift(recorded_ns))
    return bytes(load_typestore().serialize_cdr(message, DETECTIONS))


def warm_up() -> None:
    """Make rosbags generate its code for detections now; at first use it takes 50 ms."""
    box = np.zeros((1, 4), np.float32)
    restamp(serialize_detections(1, "", box, [""]), DETECTIONS, lambda stamp_ns: stamp_ns)


def serialize_compressed_image(
    stamp_ns: int, frame_id: str, data: Buffer, image_format: str = "jpeg"
) -> bytes:
    """Serialise a ``CompressedImage``; ``image_format`` is ``jpeg`` or ``png``."""
    array = np.frombuffer(data, np.uint8)
    return _serialize(COMPRESSED_IMAGE, _header(stamp_ns, frame_id), image_format, array)


def serialize_image(
    stamp_ns: int, frame_id: str, pixels: npt.NDArray[np.uint8], encoding: str
) -> bytes:
    """Serialise an ``Image`` from C-contiguous pixels ``(height, width[, channels])``.

    Raises:
        ImageError: an encoding or size that ``ImageFormat.packed`` does not accept.

    """
    packed = ImageFormat.packed(encoding, *pixels.shape[:2])
    data = np.ascontiguousarray(pixels).reshape(-1)
    header = _header(stamp_ns, frame_id)
    return _serialize(IMAGE, header, packed.height, packed.width, encoding, 0, packed.step, data)


def serialize_camera_info(
    stamp_ns: int,
    frame_id: str,
    size_px: tuple[int, int],
    intrinsics: npt.NDArray[np.float64],
) -> bytes:
    """Serialise a ``CameraInfo`` of an undistorted pinhole camera.

    Args:
        stamp_ns: header stamp.
        frame_id: the optical frame (REP-103).
        size_px: height, width.
        intrinsics: float64 ``(3, 3)``: fx, fy, cx, cy in pixels.

    """
    height, width = size_px
    projection = np.zeros((3, 4))
    projection[:, :3] = intrinsics
    region = _make("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
    return _serialize(
        CAMERA_INFO,
        _header(stamp_ns, frame_id),
        height,
        width,
        "plumb_bob",
        np.zeros(5),
        np.asarray(intrinsics, np.float64).reshape(9),
        np.eye(3).reshape(9),
        projection.reshape(12),
        0,
        0,
        region,
    )


def serialize_detections(
    stamp_ns: int,
    frame_id: str,
    boxes_xyxy: Float32Array,
    class_names: Sequence[str],
    scores: Float32Array | None = None,
    track_ids: Sequence[str] | None = None,
) -> bytes:
    """Serialise a ``Detection2DArray``; without ``scores`` each is 1, as ground truth has it.

    ``track_ids`` tell the same object in several images; without them each id is empty.

    Raises:
        ValueError: the numbers of boxes, names, scores and track ids differ.

    """
    header = _header(stamp_ns, frame_id)
    told = np.ones(len(class_names), np.float32) if scores is None else scores
    tracks = [""] * len(class_names) if track_ids is None else track_ids
    detections = [
        _detection(header, box, name, float(score), track)
        for box, name, score, track in zip(boxes_xyxy, class_names, told, tracks, strict=True)
    ]
    return _serialize(DETECTIONS, header, detections)


def deserialize_detections(cdr: Buffer) -> LabelledBoxes:
    """Read a serialised ``Detection2DArray``; of several hypotheses the first is taken.

    A detection without any hypothesis names nothing and is left out.

    Raises:
        BagError: the bytes are no such message.
    """
    message = deserialize(cdr, DETECTIONS)
    named = [detection for detection in message.detections if detection.results]
    boxes = np.array([_corners(detection.bbox) for detection in named], np.float32)
    best = [detection.results[0].hypothesis for detection in named]
    return LabelledBoxes(
        stamp_ns=_to_ns(message.header.stamp),
        boxes_xyxy=boxes.reshape(-1, 4),
        scores=np.array([hypothesis.score for hypothesis in best], np.float32),
        class_names=tuple(hypothesis.class_id for hypothesis in best),
    )


def deserialize(cdr: Buffer, msgtype: str) -> Any:
    """Turn a serialised message into a message object of rosbags.

    Raises:
        BagError: the bytes are no such message.
    """
    try:
        return load_typestore().deserialize_cdr(cdr, msgtype)
    except Exception as error:  # the parser trusts its bytes: bad ones raise anything
        raise BagError(
            f"message cannot be deserialised: {type(error).__name__}: {error}", expected=msgtype
        ) from error


def _corners(bbox: Any) -> tuple[float, float, float, float]:
    centre, half_width, half_height = bbox.center.position, bbox.size_x / 2, bbox.size_y / 2
    return (
        centre.x - half_width,
        centre.y - half_height,
        centre.x + half_width,
        centre.y + half_height,
    )


def _detection(
    header: Any, box_xyxy: Float32Array, class_name: str, score: float, track_id: str
) -> Any:
    x1, y1, x2, y2 = (float(value) for value in box_xyxy)
    centre = _make("vision_msgs/msg/Point2D", (x1 + x2) / 2, (y1 + y2) / 2)
    bbox = _make(
        "vision_msgs/msg/BoundingBox2D",
        _make("vision_msgs/msg/Pose2D", centre, 0.0),
        x2 - x1,
        y2 - y1,
    )
    hypothesis = _make("vision_msgs/msg/ObjectHypothesis", class_name, score)
    result = _make("vision_msgs/msg/ObjectHypothesisWithPose", hypothesis, _unset_pose())
    return _make("vision_msgs/msg/Detection2D", header, [result], bbox, track_id)


def _unset_pose() -> Any:
    pose = _make(
        "geometry_msgs/msg/Pose",
        _make("geometry_msgs/msg/Point", 0.0, 0.0, 0.0),
        _make("geometry_msgs/msg/Quaternion", 0.0, 0.0, 0.0, 1.0),
    )
    return _make("geometry_msgs/msg/PoseWithCovariance", pose, np.zeros(36))


def _header(stamp_ns: int, frame_id: str) -> Any:
    return _make("std_msgs/msg/Header", _time(stamp_ns), frame_id)


def _time(stamp_ns: int) -> Any:
    return _make("builtin_interfaces/msg/Time", *divmod(stamp_ns, _NS))


def _to_ns(stamp: Any) -> int:
    return int(stamp.sec) * _NS + int(stamp.nanosec)


def _make(msgtype: str, *fields: Any) -> Any:
    return load_typestore().types[msgtype](*fields)


def _serialize(msgtype: str, *fields: Any) -> bytes:
    return bytes(load_typestore().serialize_cdr(_make(msgtype, *fields), msgtype))
