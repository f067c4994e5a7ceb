"""What travels beside the pixels of a frame."""

from __future__ import annotations

from dataclasses import dataclass

from edge_perception.core.image import ImageFormat


@dataclass(frozen=True)
class FrameInfo:
    """One camera frame's identity and times.

    ``sequence`` counts the sound frames of its camera from 1, also those for which the ring had
    no slot, so that a reader can count what it missed. ``stamp_ns`` and ``frame_id`` are the
    source header's, unchanged.
    ``receive_ns`` (the callback's start) and ``decoded_ns`` (pixels complete, or what makes them
    queued on the GPU) are ``time.monotonic_ns``, comparable between the processes of one host;
    ``receive_stamp_ns`` is the callback's start in ROS time, comparable with ``stamp_ns``.
    """

    sequence: int
    stamp_ns: int
    frame_id: str
    format: ImageFormat
    receive_ns: int
    receive_stamp_ns: int
    decoded_ns: int
