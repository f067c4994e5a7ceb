"""What the VLM node publishes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image
from std_msgs.msg import String

from edge_perception.core.answers import Answer
from edge_perception.detection.drawing import draw_caption
from edge_perception.errors import RequestError
from edge_perception.nodes.managed import OVERRIDABLE, reliable
from edge_perception.nodes.messages import to_diagnostic_array, to_header, to_image, to_status
from edge_perception.vlm.inbox import Asked
from edge_perception.vlm.scene import SeenObject
from edge_perception.vlm.vision_cache import Picture


class VlmTopics:
    """The node's publishers, from ``configure`` to ``cleanup``. May be used on any thread."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        publisher = partial(node.create_lifecycle_publisher, qos_overriding_options=OVERRIDABLE)
        self._caption = publisher(String, "caption", reliable(10))
        self._caption_text = publisher(String, "~/caption_text", reliable(10))
        self._answer = publisher(String, "~/answer", reliable(10))
        self._partial = publisher(String, "~/answer/partial", reliable(10))
        self._debug_image = publisher(Image, "~/debug_image", 1)
        self._stages = publisher(DiagnosticArray, "~/stages", reliable(10))

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in (
            *(self._caption, self._caption_text, self._answer, self._partial),
            *(self._debug_image, self._stages),
        ):
            self._node.destroy_lifecycle_publisher(publisher)

    @property
    def captions_wanted(self) -> bool:
        """Whether anybody listens to captions, or looks at what is said."""
        publishers = (self._caption, self._caption_text, self._debug_image)
        return any(publisher.get_subscription_count() for publisher in publishers)

    @property
    def answers_wanted(self) -> bool:
        """Whether anybody listens to answers."""
        return bool(self._answer.get_subscription_count())

    def tell_partial(self, asked: Asked, picture: Picture, text: str) -> None:
        """Publish what has been written of an answer so far, to those who listen."""
        with self._unless_ros_ends():
            if not asked.is_caption and self._partial.get_subscription_count():
                self._publish_partial(asked, picture, text)

    def _publish_partial(self, asked: Asked, picture: Picture, text: str) -> None:
        so_far = Answer(
            id=asked.request.id,
            prompt=asked.request.prompt,
            text=text,
            finish_reason="",
            stamp_ns=picture.stamp_ns,
            frame_id=picture.frame_id,
        )
        self._partial.publish(String(data=so_far.to_json()))

    def tell_answer(
        self, asked: Asked, answer: Answer, picture: Picture | None, seen: Sequence[SeenObject]
    ) -> None:
        """Publish an answer or a caption, and for people the picture with both."""
        with self._unless_ros_ends():
            self._publish_answer(asked, answer, picture, seen)

    def _publish_answer(
        self, asked: Asked, answer: Answer, picture: Picture | None, seen: Sequence[SeenObject]
    ) -> None:
        message = String(data=answer.to_json())
        if asked.is_caption:
            self._caption.publish(message)
            self._caption_text.publish(String(data=answer.text))
        else:
            self._answer.publish(message)
        if picture is not None and self._debug_image.get_subscription_count():
            said = answer.text or answer.error
            text = said if asked.is_caption else f"{answer.prompt} {said}"
            self._publish_debug_image(answer, picture, seen, text)

    def tell_refusal(self, error: RequestError) -> None:
        """Answer what is no request."""
        answer = Answer(error.request_id, "", "", "error", error=str(error))
        self._answer.publish(String(data=answer.to_json()))

    def tell_work(self, picture: Picture, start_ns: int, end_ns: int) -> None:
        """Publish when the model was at work (``time.monotonic_ns``), to those who listen."""
        with self._unless_ros_ends():
            if self._stages.get_subscription_count():
                self._publish_work(picture, start_ns, end_ns)

    @contextmanager
    def _unless_ros_ends(self) -> Iterator[None]:
        """Pass over what rclpy raises when ROS is shut down under the worker's thread."""
        try:
            yield
        except RuntimeError:  # RCLError, which rclpy exports nowhere
            if self._node.context.ok():
                raise

    def _publish_work(self, picture: Picture, start_ns: int, end_ns: int) -> None:
        to_ros_ns = self._node.get_clock().now().nanoseconds - time.monotonic_ns()
        values = {"start_stamp_ns": start_ns + to_ros_ns, "end_stamp_ns": end_ns + to_ros_ns}
        status = to_status(self._node.get_name(), DiagnosticStatus.OK, "work", values)
        header = to_header(picture.stamp_ns, picture.frame_id)
        self._stages.publish(to_diagnostic_array(header, status))

    def _publish_debug_image(
        self, answer: Answer, picture: Picture, seen: Sequence[SeenObject], text: str
    ) -> None:
        spoken_of = answer.grounded or ()
        boxes = [
            (seen_object.name, seen_object.box_xyxy, index in spoken_of)
            for index, seen_object in enumerate(seen)
        ]
        drawn = draw_caption(picture.pixels_rgb[:, :, ::-1], boxes, text)
        header = to_header(picture.stamp_ns, picture.frame_id)
        self._debug_image.publish(to_image(drawn, header))
