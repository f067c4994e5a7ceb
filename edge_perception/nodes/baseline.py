"""The peer of the benchmark: a detector node written the way most Python ones are.

Conversion and inference inside the subscription's callback, a queue of ``depth`` messages, one
``rclpy.spin``. Model, pre- and postprocessing are this package's own, so that only the graph
differs. Not meant for use.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Detection2DArray

from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.core.latency import SpanRecorder
from edge_perception.detection.detector import DetectionSettings, open_detector
from edge_perception.embedded import demo_manifest
from edge_perception.nodes.messages import to_detection2d_array


class BaselineNode(Node):
    """Subscribes to ``image`` or ``image/compressed``, publishes ``detections``."""

    def __init__(self) -> None:
        super().__init__("baseline")
        depth = self.declare_parameter("depth", 10).value
        manifest = self.declare_parameter("manifest", "").value
        threads = self.declare_parameter("threads", 0).value
        compressed = self.declare_parameter("compressed", True).value
        self._settings = DetectionSettings(
            score_threshold=self.declare_parameter("score_threshold", 0.3).value
        )
        self._detector = open_detector(Path(manifest) if manifest else demo_manifest(), threads)
        self._publisher = self.create_publisher(Detection2DArray, "detections", depth)
        if compressed:
            self.create_subscription(
                CompressedImage, "image/compressed", self._on_compressed, depth
            )
        else:
            self.create_subscription(Image, "image", self._on_raw, depth)

    def _on_compressed(self, message: CompressedImage) -> None:
        pixels = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
        self._detect(message, np.asarray(pixels, np.uint8))

    def _on_raw(self, message: Image) -> None:
        shape = (message.height, message.width, 3)
        pixels = np.frombuffer(message.data, np.uint8).reshape(shape)
        if message.encoding == "rgb8":
            pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), np.uint8)
        self._detect(message, pixels)

    def _detect(self, message: Image | CompressedImage, pixels: UInt8Array) -> None:
        image_format = ImageFormat.packed("bgr8", *pixels.shape[:2])
        detections = self._detector.detect(
            pixels.reshape(-1), image_format, self._settings, SpanRecorder()
        )
        names = self._detector.manifest.class_names
        self._publisher.publish(to_detection2d_array(detections, message.header, names))


def main() -> int:
    """Run the baseline."""
    rclpy.init()
    try:
        rclpy.spin(BaselineNode())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
