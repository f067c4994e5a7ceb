"""Conversions between this package's types and ROS messages."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Classification as ClassificationMessage
from vision_msgs.msg import (
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    VisionClass,
)

from edge_perception.core.classification import Classification
from edge_perception.core.detections import Detections
from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import UInt8Array
from edge_perception.errors import FrameError
from edge_perception.gpu import descriptor
from edge_perception.vlm.scene import SeenObject

_NS = 1_000_000_000


def to_nanoseconds(stamp: Time) -> int:
    """Return a message's time in nanoseconds."""
    return int(stamp.sec) * _NS + int(stamp.nanosec)


def to_time(stamp_ns: int) -> Time:
    """Return nanoseconds as a message's time."""
    return Time(sec=stamp_ns // _NS, nanosec=stamp_ns % _NS)


def to_header(stamp_ns: int, frame_id: str) -> Header:
    """Return a header."""
    return Header(stamp=to_time(stamp_ns), frame_id=frame_id)


def to_frame_handle(info: FrameInfo, described: bytes) -> Image:
    """Return the message that names a frame of a ring; ``described`` is its descriptor."""
    return Image(
        header=to_header(info.stamp_ns, info.frame_id),
        height=info.format.height,
        width=info.format.width,
        encoding=descriptor.ENCODING,
        step=len(described),
        data=array("B", described),
    )


def from_frame_handle(message: Image) -> bytes:
    """Return the descriptor that a frame handle carries; ``FrameError`` if it is an image."""
    if message.encoding != descriptor.ENCODING:
        raise FrameError(
            "the topic carries an image, not a frame handle",
            expected=f"encoding {descriptor.ENCODING!r}",
            got=message.encoding,
            mend="Subscribe a camera node to it, and read that node's ~/frames.",
        )
    return bytes(message.data)


def to_classification(
    classification: Classification, header: Header, class_names: Sequence[str]
) -> ClassificationMessage:
    """Return classes as a message, the likeliest first."""
    return ClassificationMessage(
        header=header,
        results=[
            ObjectHypothesis(class_id=class_names[class_id], score=score)
            for class_id, score in zip(
                classification.class_ids.tolist(), classification.scores.tolist(), strict=True
            )
        ],
    )


def to_detection2d_array(
    detections: Detections, header: Header, class_names: Sequence[str]
) -> Detection2DArray:
    """Return detections as a message in source pixels; ``id`` is the track, empty without one."""
    message = Detection2DArray(header=header)
    for i, (box, score, class_id) in enumerate(
        zip(
            detections.boxes_xyxy.tolist(),
            detections.scores.tolist(),
            detections.class_ids.tolist(),
            strict=True,
        )
    ):
        detection = Detection2D(header=header, results=[ObjectHypothesisWithPose()])
        detection.id = track_name(detections.track_ids, i)
        _fill(detection, box, score, class_names[class_id])
        message.detections.append(detection)
    return message


def track_name(track_ids: np.ndarray | None, index: int) -> str:  # type: ignore[type-arg]
    """Return an object's track as its id; empty where it has none."""
    if track_ids is None or track_ids[index] < 0:
        return ""
    return str(int(track_ids[index]))


def _fill(detection: Detection2D, box_xyxy: Sequence[float], score: float, class_name: str) -> None:
    x1, y1, x2, y2 = box_xyxy
    hypothesis, box = detection.results[0].hypothesis, detection.bbox
    hypothesis.class_id = class_name
    hypothesis.score = score
    box.center.position.x = (x1 + x2) / 2
    box.center.position.y = (y1 + y2) / 2
    box.size_x = x2 - x1
    box.size_y = y2 - y1


def from_detection2d_array(message: Detection2DArray) -> Mapping[str, object]:
    """Return a message as plain values: header, and class, score and corners of each object.

    Boxes are ``[x1, y1, x2, y2]`` in source pixels; an object without a hypothesis has class ""
    and score 0.
    """
    return {
        "stamp_ns": to_nanoseconds(message.header.stamp),
        "frame_id": message.header.frame_id,
        "detections": [_from_detection2d(detection) for detection in message.detections],
    }


def _from_detection2d(detection: Detection2D) -> Mapping[str, Any]:
    centre, box = detection.bbox.center.position, detection.bbox
    hypothesis = detection.results[0].hypothesis if detection.results else None
    return {
        "class": hypothesis.class_id if hypothesis else "",
        "score": hypothesis.score if hypothesis else 0.0,
        "id": detection.id,
        "xyxy": [
            centre.x - box.size_x / 2,
            centre.y - box.size_y / 2,
            centre.x + box.size_x / 2,
            centre.y + box.size_y / 2,
        ],
    }


def to_seen_objects(message: Detection2DArray) -> tuple[SeenObject, ...]:
    """Return detections as the language side needs them, in the message's order."""
    return tuple(
        SeenObject(str(told["class"]), told["score"], tuple(told["xyxy"]))
        for told in map(_from_detection2d, message.detections)
    )


def to_label_info(class_names: Sequence[str], threshold: float, header: Header) -> LabelInfo:
    """Return the class table that readers of ``detections`` may need."""
    classes = [VisionClass(class_id=i, class_name=name) for i, name in enumerate(class_names)]
    return LabelInfo(header=header, class_map=classes, threshold=threshold)


def to_status(
    name: str, level: bytes, message: str, values: Mapping[str, object]
) -> DiagnosticStatus:
    """Return one diagnostic status; numbers are written as JSON so that they parse back."""
    pairs = [
        KeyValue(key=key, value=value if isinstance(value, str) else json.dumps(value))
        for key, value in values.items()
    ]
    return DiagnosticStatus(name=name, level=level, message=message, values=pairs)


def to_diagnostic_array(header: Header, *statuses: DiagnosticStatus) -> DiagnosticArray:
    """Return statuses under a header."""
    return DiagnosticArray(header=header, status=list(statuses))


def from_status(status: DiagnosticStatus) -> Mapping[str, str]:
    """Return a status's pairs."""
    return {pair.key: pair.value for pair in status.values}


def to_image(pixels_bgr: UInt8Array, header: Header) -> Image:
    """Return uint8 ``(height, width, 3)`` as a bgr8 message; one copy of the pixels."""
    height, width = pixels_bgr.shape[:2]
    data = array("B")
    data.frombytes(np.ascontiguousarray(pixels_bgr).data)
    return Image(
        header=header, height=height, width=width, encoding="bgr8", step=width * 3, data=data
    )
