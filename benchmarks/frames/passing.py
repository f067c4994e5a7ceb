"""A frame's way to one reader process or from the writer's: by DDS, or by ring and handle.

    python -m benchmarks.frames.passing {write,read} {dds,ring} TOPIC WIDTH HEIGHT FRAMES

The writer waits for its three readers, then publishes at 30 Hz; ``header.stamp`` is the monotonic
clock just before. Frames count from 1; the first ``WARM_UP`` are compared byte by byte, the next
FRAMES are timed, and everything after them says that it is over. Each process prints one JSON
object: the CPU time of all its threads over the timed frames, and a reader its latencies.
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from benchmarks.frames.frame_source import info, random_frame
from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import transport_named
from edge_perception.nodes.frame_streams import RemoteFrameStream
from edge_perception.nodes.messages import to_frame_handle, to_header, to_nanoseconds

READERS = 3
WARM_UP = 30
FRAME_ID = "camera"
_PERIOD_S = 1 / 30
_FAREWELLS = 30
RELIABLE = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
HANDLES = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


def picture(image_format: ImageFormat) -> UInt8Array:
    """The frame that all processes know; its first 8 bytes are the sequence's place."""
    return random_frame(4, image_format)


class DdsWriter:
    """Publishes whole images. The message is made once: a driver fills its array in place.

    Where its copies happen cannot be seen from here, so none are timed.
    """

    copy_ns = 0

    def __init__(self, node: Node, topic: str, image_format: ImageFormat) -> None:
        self.publisher = node.create_publisher(Image, topic, RELIABLE)
        self._message = Image(
            height=image_format.height,
            width=image_format.width,
            encoding=image_format.encoding,
            step=image_format.step,
            data=array("B", picture(image_format).tobytes()),
        )
        self._bytes = memoryview(self._message.data)

    def write(self, sequence: int) -> None:
        """Publish one frame."""
        self._bytes[:8] = sequence.to_bytes(8, "little")
        self._message.header = to_header(time.monotonic_ns(), FRAME_ID)
        self.publisher.publish(self._message)


class RingWriter:
    """Writes into a ring and publishes handles, as the camera node does.

    ``copy_ns`` is the thread's CPU time in ``write``: the one copy and its bookkeeping.
    """

    def __init__(self, node: Node, topic: str, image_format: ImageFormat) -> None:
        self.publisher = node.create_publisher(Image, topic, HANDLES)
        spec = RingSpec("passing", slots=6, slot_bytes=image_format.size_bytes, max_leases=4)
        self._ring = FrameRing.create(spec, transport_named("shared_memory"))
        self.copy_ns = 0
        self._format = image_format
        self._frame = picture(image_format)

    def write(self, sequence: int) -> None:
        """Write one frame and tell its readers."""
        self._frame[:8] = np.frombuffer(sequence.to_bytes(8, "little"), np.uint8)
        described = stamped(info(sequence, self._format))
        began_ns = time.thread_time_ns()
        self._ring.write(self._frame, described)
        self.copy_ns += time.thread_time_ns() - began_ns
        self.publisher.publish(to_frame_handle(described, self._ring.descriptor(sequence)))


def stamped(described: FrameInfo) -> FrameInfo:
    """Give a frame the monotonic clock for a stamp, as both ways must have it."""
    values = {**vars(described), "stamp_ns": described.receive_ns}
    return FrameInfo(**values)


class Tally:
    """What one reader has seen, and what it cost."""

    def __init__(self, image_format: ImageFormat, frames: int) -> None:
        self._expected = picture(image_format)
        self._frames = frames
        self._cpu_ns = 0
        self.latencies_ms: list[float] = []
        self.different = 0
        self.over = False

    def see(self, pixels: UInt8Array, sent_ns: int) -> None:
        """Take note of one frame, readable now."""
        latency_ns = time.monotonic_ns() - sent_ns
        sequence = int.from_bytes(pixels[:8].tobytes(), "little")
        if sequence <= WARM_UP:
            self.different += not np.array_equal(pixels[8:], self._expected[8:])
            self._cpu_ns = time.process_time_ns()
        elif sequence <= WARM_UP + self._frames:
            self.latencies_ms.append(latency_ns / 1e6)
        elif not self.over:
            self._cpu_ns = time.process_time_ns() - self._cpu_ns
            self.over = True

    def report(self) -> dict[str, Any]:
        """Say it."""
        return {
            "cpu_ms": self._cpu_ns / 1e6,
            "latencies_ms": self.latencies_ms,
            "different": self.different,
        }


def subscribe(node: Node, way: str, topic: str, tally: Tally) -> RemoteFrameStream | None:
    """Feed the tally from a subscription, or from the detector's own kind of frame stream."""
    if way == "dds":

        def take(message: Image) -> None:
            tally.see(np.frombuffer(message.data, np.uint8), to_nanoseconds(message.header.stamp))

        node.create_subscription(Image, topic, take, RELIABLE)
        return None
    stream = RemoteFrameStream(topic)

    def lease() -> None:
        frame = stream.acquire_newest()
        if frame is not None:
            with frame:
                tally.see(frame.pixels, frame.info.stamp_ns)

    stream.start(node, lease, eager=True)
    return stream


def read(way: str, topic: str, image_format: ImageFormat, frames: int) -> dict[str, Any]:
    """Read until the writer says it is over."""
    node = rclpy.create_node("reader")
    tally = Tally(image_format, frames)
    stream = subscribe(node, way, topic, tally)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    deadline = time.monotonic() + 60 + frames * _PERIOD_S
    while not tally.over and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=1.0)
    if stream is not None:
        stream.stop()
    executor.shutdown()
    node.destroy_node()
    return tally.report()


def write(way: str, topic: str, image_format: ImageFormat, frames: int) -> dict[str, Any]:
    """Write once everybody listens."""
    node = rclpy.create_node("writer")
    kind = DdsWriter if way == "dds" else RingWriter
    writer: DdsWriter | RingWriter = kind(node, topic, image_format)
    while writer.publisher.get_subscription_count() < READERS:
        time.sleep(0.05)
    time.sleep(1.0)  # matched here is not yet matched there
    _at_rate(writer.write, range(1, WARM_UP + 1))
    cpu_ns, copy_ns = time.process_time_ns(), writer.copy_ns
    _at_rate(writer.write, range(WARM_UP + 1, WARM_UP + frames + 1))
    cpu_ns, copy_ns = time.process_time_ns() - cpu_ns, writer.copy_ns - copy_ns
    _at_rate(writer.write, range(WARM_UP + frames + 1, WARM_UP + frames + 1 + _FAREWELLS))
    node.destroy_node()
    return {"cpu_ms": cpu_ns / 1e6, "copy_ms": copy_ns / 1e6}


def _at_rate(work: Callable[[int], None], sequences: range) -> None:
    due = time.monotonic()
    for sequence in sequences:
        work(sequence)
        due += _PERIOD_S
        time.sleep(max(0.0, due - time.monotonic()))


def main() -> None:
    """Play one part."""
    role, way, topic, *numbers = sys.argv[1:]
    width, height, frames = (int(number) for number in numbers)
    rclpy.init()
    play = {"write": write, "read": read}[role]
    print(json.dumps(play(way, topic, ImageFormat.packed("rgb8", height, width), frames)))
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
