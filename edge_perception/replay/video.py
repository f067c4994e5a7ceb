"""Video files and V4L2 cameras as sources, read by OpenCV."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from edge_perception.errors import BagError
from edge_perception.replay import messages
from edge_perception.replay.source import DEFAULT_FPS, TimedMessage, even_time_ns

_TOPIC = "/image"


class VideoFile:
    """A video file's frames as ``Image`` (bgr8), at the file's rate or, without one, ``fps``."""

    live = False

    def __init__(self, path: Path, fps: float = DEFAULT_FPS) -> None:
        self.path = path
        self.fps = fps
        self.topics: Mapping[str, str] = {_TOPIC: messages.IMAGE}

    def __enter__(self) -> VideoFile:
        """Decode the first frame, to see that there is one."""
        capture = cv2.VideoCapture(str(self.path))
        try:
            readable, _ = capture.read()
            self.fps = capture.get(cv2.CAP_PROP_FPS) or self.fps
        finally:
            capture.release()
        if not readable:
            raise BagError(
                "no frame can be read",
                expected="a bag, a folder of images or a video that OpenCV can decode",
                got=str(self.path),
            )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing stays open between passes."""

    def messages(self) -> Iterator[TimedMessage]:
        """Decode and yield frame after frame."""
        capture = cv2.VideoCapture(str(self.path))
        try:
            index = 0
            while True:
                more, pixels = capture.read()
                if not more:
                    return
                yield _to_message(even_time_ns(index, self.fps), np.asarray(pixels, np.uint8))
                index += 1
        finally:
            capture.release()

    def image_times_ns(self) -> list[int]:
        """Return the frames' times; decodes nothing but must walk through the file."""
        capture = cv2.VideoCapture(str(self.path))
        try:
            count = 0
            while capture.grab():
                count += 1
        finally:
            capture.release()
        return [even_time_ns(index, self.fps) for index in range(count)]


class CameraSource:
    """A V4L2 camera: frames as they come, stamped with the wall clock after their read."""

    live = True

    def __init__(self, device: str, fps: float = DEFAULT_FPS) -> None:
        self.device = device
        self.fps = fps
        self.topics: Mapping[str, str] = {_TOPIC: messages.IMAGE}
        self._capture: cv2.VideoCapture | None = None

    def __enter__(self) -> CameraSource:
        """Open the device and ask it for ``fps``; the driver may choose another rate."""
        capture = cv2.VideoCapture(self.device, cv2.CAP_V4L2)
        if not capture.isOpened():
            raise BagError(
                "camera cannot be opened",
                got=self.device,
                mend="See `v4l2-ctl --list-devices`, and that this user is in the group video.",
            )
        capture.set(cv2.CAP_PROP_FPS, self.fps)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._capture = capture
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the device."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def messages(self) -> Iterator[TimedMessage]:
        """Yield frames until the device stops giving any, which is an error."""
        if self._capture is None:
            raise ValueError("the camera is not open; use CameraSource in a with statement")
        while True:
            more, pixels = self._capture.read()
            if not more:
                raise BagError("camera stopped giving frames", got=self.device)
            yield _to_message(time.time_ns(), np.asarray(pixels, np.uint8))

    def image_times_ns(self) -> list[int]:
        """Return nothing: the future is not known."""
        return []


def _to_message(recorded_ns: int, pixels_bgr: np.typing.NDArray[np.uint8]) -> TimedMessage:
    cdr = messages.serialize_image(recorded_ns, "camera", pixels_bgr, "bgr8")
    return TimedMessage(recorded_ns, _TOPIC, messages.IMAGE, cdr)
