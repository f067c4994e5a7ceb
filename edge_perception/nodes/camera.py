"""The camera node: takes image messages, refuses what makes no sense, writes frames into a ring."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from edge_perception.core.frame import FrameInfo
from edge_perception.core.gaps import GapEstimator
from edge_perception.core.image import ImageFormat, UInt8Array, check_size
from edge_perception.core.lately import SILENT_S
from edge_perception.errors import ConfigError, EdgePerceptionError, ImageError
from edge_perception.gpu.decode_image import (
    JpegChoice,
    choose_jpeg_decoder,
    decode_into,
    read_image_format,
)
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import (
    TransportChoice,
    choose_transport,
    transport_named,
)
from edge_perception.nodes.camera_parameters import PARAMETERS
from edge_perception.nodes.demand import Demand
from edge_perception.nodes.managed import Health, ManagedNode
from edge_perception.nodes.messages import to_frame_handle, to_nanoseconds
from edge_perception.nodes.runner import run

_FUTURE_NS = 1_000_000_000
_SECOND_NS = 1_000_000_000
_MAX_FRAME_ID_CHARACTERS = 1024

# What rclpy tells of a message: times, and from Iron on the publisher's own number.
MessageInfo = Mapping[str, int]

# Makes the facts of a frame that is complete now.
Describe = Callable[[ImageFormat], FrameInfo]


class CameraNode(ManagedNode):
    """Reads ``image_topic`` or its ``/compressed`` and keeps the newest frames in ``ring``.

    ``ring`` is None unless the node is configured. Readers in the same process look at it for each
    frame, and join ``demand``: messages are taken while one of them waits for a frame.
    """

    def __init__(
        self, name: str = "camera", image_topic: str = "image", **node_options: Any
    ) -> None:
        super().__init__(name, PARAMETERS, **node_options)
        self._image_topic = image_topic
        self._compressed_topic = f"{image_topic}/compressed"
        self.ring: FrameRing | None = None
        self.demand = Demand(self, self._take_waiting)
        self._taking = threading.RLock()  # readers take messages on their own threads
        self._left_waiting = False
        self._broken = ""
        self._give_up = self.create_guard_condition(lambda: self.fail(self._broken))
        self._counts: Counter[str] = Counter()
        self._gaps = GapEstimator()
        self._last_rejection = ""
        self._last_receive_s = 0.0
        self._last_stamp_ns = 0
        self._last_publication = 0
        self._sequence = 0
        self._max_image_bytes = 0
        self._choice: TransportChoice | None = None
        self._jpeg = JpegChoice(None, "")
        self._subscription: Any = None
        self._search_timer: Any = None
        self._handles: Any = None

    def configure(self) -> None:
        """Make the ring, in the size given, or in that of the first frame when it comes."""
        values = self.parameter_values()
        self.apply_parameters(values)
        spec = RingSpec(self.get_name(), values["slots"], values["slot_bytes"])
        self._choice = _choose(
            values["frame_transport"],
            across_processes=values["share_frames"],
            gpu_readers=values["gpu_readers"],
        )
        self.get_logger().info(f"frame transport {self._choice.transport.name}: {self._choice.why}")
        self._jpeg = choose_jpeg_decoder(device_memory=self._choice.transport.device_memory)
        self.get_logger().info(f"JPEGs are decoded by {self._jpeg.name}: {self._jpeg.why}")
        self.demand.always_open = values["share_frames"]  # readers elsewhere cannot ask
        if values["share_frames"]:
            self._handles = self.create_lifecycle_publisher(Image, "~/frames", 1)
        self.ring = FrameRing.create(spec, self._choice.transport)

    def activate(self) -> None:
        """Subscribe, or begin to look for a publisher."""
        self._search_timer = self.create_steady_timer(0.1, self._subscribe_when_found)
        self._subscribe_when_found()

    def deactivate(self) -> None:
        """Unsubscribe."""
        self._stop_searching()
        with self._taking:
            if self._subscription is not None:
                self.destroy_subscription(self._subscription)
                self._subscription = None

    def cleanup(self) -> None:
        """Close the ring; readers keep what they hold until they release it."""
        if self._handles is not None:
            self.destroy_lifecycle_publisher(self._handles)
            self._handles = None
        with self._taking:
            if self.ring is not None:
                self.ring.close()
                self.ring = None
            if self._jpeg.on_gpu is not None:
                self._jpeg.on_gpu.close()
                self._jpeg = JpegChoice(None, "")

    def apply_parameters(self, values: Mapping[str, Any]) -> None:
        """Take over the size limit."""
        self._max_image_bytes = values["max_image_bytes"]

    def counters(self) -> Mapping[str, object]:
        """Frames received, rejected by reason, lost before this node, and the ring's counters."""
        ring = {} if self.ring is None else asdict(self.ring.counters)
        return {
            "received": self._counts["received"],
            "rejected": self._counts["rejected"],
            "superseded": self._counts["superseded"],
            "lost_before_camera": self._counts["lost"],
            "stamps_zero": self._counts["stamps_zero"],
            "stamps_backward": self._counts["stamps_backward"],
            "stamps_future": self._counts["stamps_future"],
            "last_rejection": self._last_rejection,
            "frame_transport": self._choice.transport.name if self._choice else "",
            "frame_transport_why": self._choice.why if self._choice else "",
            "jpeg_decoder": self._jpeg.name,
            "jpeg_decoder_why": self._jpeg.why,
            "jpegs_decoded_on_gpu": self._counts["decoded_on_gpu"],
            **{f"ring_{name}": count for name, count in ring.items()},
        }

    def health(self) -> Health:
        """Warn while no image comes, and while frames are lost or rejected."""
        lost, rejected = (
            self.lately.grew(name, self._counts[name]) for name in ("lost", "rejected")
        )
        silent_s = time.monotonic() - self._last_receive_s
        if self._counts["received"] == 0:
            return DiagnosticStatus.WARN, "no image yet"
        if silent_s > SILENT_S:
            return DiagnosticStatus.WARN, f"no image for {silent_s:.0f} s"
        if lost:
            return (
                DiagnosticStatus.WARN,
                f"{self._counts['lost']} frames were lost before this node: use the Fast DDS"
                " profile in config/fastdds.xml, compressed images, or reliability:=reliable",
            )
        if rejected:
            return DiagnosticStatus.WARN, f"rejected images: {self._last_rejection}"
        return DiagnosticStatus.OK, "active"

    def _subscribe_when_found(self) -> None:
        transport = self._find_transport()
        if transport is None or self._subscription is not None:
            return
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=1,
            reliability=ReliabilityPolicy[self.parameter_values()["reliability"].upper()],
        )
        self._subscription = (
            self.create_subscription(
                Image, self._image_topic, self._on_image, qos, callback_group=self.demand
            )
            if transport == "raw"
            else self.create_subscription(
                CompressedImage,
                self._compressed_topic,
                self._on_compressed_image,
                qos,
                callback_group=self.demand,
            )
        )
        self._last_publication = 0
        self.get_logger().info(f"reading {self._subscription.topic_name}")
        self._stop_searching()

    def _find_transport(self) -> str | None:
        chosen: str = self.parameter_values()["image_transport"]
        if chosen != "auto":
            return chosen
        for transport, topic in (
            ("raw", self._image_topic),
            ("compressed", self._compressed_topic),
        ):
            if self.count_publishers(self.resolve_topic_name(topic)):
                return transport
        return None

    def _stop_searching(self) -> None:
        if self._search_timer is not None:
            self.destroy_timer(self._search_timer)
            self._search_timer = None

    def _take_waiting(self) -> None:
        """Take the message that waits, if any, on the calling thread, as the executor would."""
        with self._taking:
            if self._subscription is None:
                return
            handle, message_type = self._subscription.handle, self._subscription.msg_type
            with handle:
                taken = handle.take_message(message_type, False)
            if taken is not None:
                self._left_waiting = True
                try:
                    self._subscription.callback(*taken)
                except Exception as error:  # this node's, not the reader's whose thread it is
                    self._break(f"unexpected error: {error!r}")
                finally:
                    self._left_waiting = False

    def _on_image(self, message: Image, information: MessageInfo) -> None:
        with self._taking:
            self._take(message.header, information, partial(self._write_raw, message))

    def _on_compressed_image(self, message: CompressedImage, information: MessageInfo) -> None:
        with self._taking:
            self._take(message.header, information, partial(self._write_compressed, message))

    def _take(
        self,
        header: Header,
        information: MessageInfo,
        write: Callable[[FrameRing, Describe], FrameInfo | None],
    ) -> None:
        """Turn one message into a frame in the ring, or count why not."""
        receive_ns, receive_stamp_ns = time.monotonic_ns(), self.get_clock().now().nanoseconds
        ring = self.ring
        if ring is None:
            return
        self._counts["received"] += 1
        self._last_receive_s = time.monotonic()
        waiting = self.demand.begin()
        try:
            _check_header(header)
            stamp_ns = to_nanoseconds(header.stamp)
            self._judge_stamp(stamp_ns, receive_stamp_ns)
            self._count_missing(stamp_ns, information)
            info = write(ring, partial(self._describe, header, receive_ns, receive_stamp_ns))
            self._sequence += 1
        except EdgePerceptionError as error:
            self.demand.fail(waiting)
            if ring.failure is None:
                self._reject(error)
            else:
                self._break(f"frame ring failed: {error}")
            return
        except Exception:
            self.demand.fail(waiting)  # they still want a frame when this node works again
            raise
        if info is None:
            self.demand.fail(waiting)
        else:
            self._tell_readers(info)

    def _describe(
        self, header: Header, receive_ns: int, receive_stamp_ns: int, image_format: ImageFormat
    ) -> FrameInfo:
        """Make the facts of the next frame, complete now."""
        return FrameInfo(
            sequence=self._sequence + 1,
            stamp_ns=to_nanoseconds(header.stamp),
            frame_id=header.frame_id,
            format=image_format,
            receive_ns=receive_ns,
            receive_stamp_ns=receive_stamp_ns,
            decoded_ns=time.monotonic_ns(),
        )

    def _write_raw(self, message: Image, ring: FrameRing, describe: Describe) -> FrameInfo | None:
        pixels, image_format = _view_raw(message, self._max_image_bytes)
        info = describe(image_format)
        return None if ring.write(pixels, info) is None else info

    def _write_compressed(
        self, message: CompressedImage, ring: FrameRing, describe: Describe
    ) -> FrameInfo | None:
        """Decode straight into a slot of the ring, on the GPU where the slot lies there."""
        data = np.frombuffer(message.data, np.uint8)
        image_format = read_image_format(data, self._max_image_bytes)
        decoder = self._jpeg.on_gpu
        if decoder is not None and decoder.can_decode(data):

            def enqueue(pointer: int, stream: int) -> FrameInfo:
                decoder.enqueue(data, image_format, pointer, stream)
                self._counts["decoded_on_gpu"] += 1
                return describe(image_format)

            return ring.write_on_device(image_format, enqueue)

        def fill(target: UInt8Array) -> FrameInfo:
            decode_into(target, data, image_format)
            return describe(image_format)

        return ring.write_by(image_format, fill)

    def _break(self, reason: str) -> None:
        """Fail the node on its own thread, where transitions belong."""
        if self._left_waiting:
            self._broken = reason
            self._give_up.trigger()
        else:
            self.fail(reason)

    def _tell_readers(self, info: FrameInfo) -> None:
        self.demand.serve()
        if self._handles is not None and self.ring is not None:
            described = self.ring.descriptor(info.sequence)
            self._handles.publish(to_frame_handle(info, described))

    def _judge_stamp(self, stamp_ns: int, now_ns: int) -> None:
        """Count stamps that no working camera sends; their images are used all the same."""
        self._counts["stamps_zero"] += stamp_ns == 0
        self._counts["stamps_backward"] += stamp_ns != 0 and stamp_ns < self._last_stamp_ns
        self._counts["stamps_future"] += stamp_ns > now_ns + _FUTURE_NS
        self._last_stamp_ns = stamp_ns

    def _count_missing(self, stamp_ns: int, information: MessageInfo) -> None:
        """Count the messages between the last one taken and this.

        What came while no reader asked was replaced on purpose, by a message that then waited to be
        taken; others were lost on the way. The publisher's own numbers tell how many, where the
        middleware passes them on; those of several publishers interleave, and rclpy does not tell
        whose a number is, so there the stamps' rhythm decides.
        """
        missing = self._gaps.add(stamp_ns)
        number = information.get("publication_sequence_number")
        if number is not None:
            skipped = max(0, number - self._last_publication - 1) if self._last_publication else 0
            self._last_publication = number
            if not skipped or self._has_one_publisher():
                missing = skipped
        self._counts["superseded" if self._left_waiting else "lost"] += missing

    def _has_one_publisher(self) -> bool:
        return bool(self.count_publishers(self._subscription.topic_name) <= 1)

    def _reject(self, error: EdgePerceptionError) -> None:
        self._counts["rejected"] += 1
        self._last_rejection = str(error)
        self.get_logger().warning(f"image dropped: {error}", throttle_duration_sec=5.0)


def _choose(name: str, *, across_processes: bool, gpu_readers: bool) -> TransportChoice:
    """Take the transport that was asked for, or probe; never another one in silence."""
    if name == "auto":
        return choose_transport(across_processes=across_processes, gpu_readers=gpu_readers)
    transport = transport_named(name)
    if across_processes and not transport.crosses_processes:
        raise ConfigError(
            f"frame_transport {name} does not reach other processes",
            mend="Choose another, or set share_frames to false.",
        )
    return TransportChoice(transport, "as configured")


def _check_header(header: Header) -> None:
    """Refuse what could not be told unchanged in the header of the detections."""
    if header.stamp.nanosec >= _SECOND_NS:
        raise ImageError("stamp is no time", expected="nanosec below 1e9", got=header.stamp)
    if len(header.frame_id) > _MAX_FRAME_ID_CHARACTERS:
        raise ImageError(
            "frame_id is too long",
            expected=f"at most {_MAX_FRAME_ID_CHARACTERS} characters",
            got=len(header.frame_id),
        )


def _view_raw(message: Image, max_bytes: int) -> tuple[UInt8Array, ImageFormat]:
    """Return the bytes of a raw image and their format, without a copy."""
    if message.is_bigendian and message.encoding not in ("mono8",):
        raise ImageError("big-endian image", expected="is_bigendian 0", got=message.is_bigendian)
    image_format = ImageFormat(message.encoding, message.height, message.width, message.step)
    if image_format.size_bytes > max_bytes:
        raise ImageError(
            "image is too large",
            expected=f"at most {max_bytes} bytes",
            got=image_format.size_bytes,
            mend="Raise the parameter max_image_bytes if such images are meant.",
        )
    check_size(len(message.data), image_format)
    return np.frombuffer(message.data, np.uint8), image_format


def main() -> int:
    """Run the node in a process of its own."""
    return run(lambda: [CameraNode()])


if __name__ == "__main__":
    sys.exit(main())
