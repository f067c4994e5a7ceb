"""Camera and detector on a GPU that fails under them, and one that is too small: what they say.

Prints one JSON object a line. A process of its own: nothing brings its CUDA context back.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import rclpy
from pictures import RED, picture, raw_fields
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from tiny_models import write_detector

from edge_perception.core.image import ImageFormat
from edge_perception.core.manifest import Preprocessing
from edge_perception.gpu.cuda import Stream, get_device
from edge_perception.gpu.preprocess_cuda import CudaPreprocessor, DeviceRegion
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.nodes import camera as camera_module
from edge_perception.nodes.camera import CameraNode
from edge_perception.nodes.detector import DetectorNode
from edge_perception.nodes.frame_streams import LocalFrameStream
from edge_perception.nodes.messages import to_header


def set_parameters(node: Any, **values: object) -> None:
    node.set_parameters([Parameter(name, value=value) for name, value in values.items()])


def tell(event: str, *nodes: Any, **facts: object) -> None:
    health = {node.get_name(): [node._health()[0][0], node._health()[1]] for node in nodes}
    print(json.dumps({"event": event, **health, **facts}), flush=True)


def send(camera: CameraNode, stamp_ns: int) -> None:
    fields = raw_fields(picture(RED))
    camera._on_image(Image(header=to_header(stamp_ns, "camera"), **fields), {})


def exhaust(camera: CameraNode) -> None:
    """Ask for slots of a tebibyte, which no parameter allows."""

    def huge(name: str, slots: int, _: int) -> RingSpec:
        return RingSpec(name, slots, 1 << 40, max_slot_bytes=1 << 41)

    camera_module.RingSpec = huge  # type: ignore[assignment,misc]
    configured = camera.trigger_configure() == TransitionCallbackReturn.SUCCESS
    camera_module.RingSpec = RingSpec  # type: ignore[misc]
    tell("exhausted", camera, configured=configured)


def break_gpu() -> None:
    """Let a kernel read where nothing is."""
    nowhere = DeviceRegion(0x10, ImageFormat.packed("rgb8", 48, 64))
    stream = Stream(get_device())
    CudaPreprocessor(Preprocessing(48, 64)).launch([nowhere], 0x10, stream.handle)


def main(folder: Path) -> None:
    rclpy.init()
    camera = CameraNode("camera")
    set_parameters(camera, frame_transport="cuda_in_process", image_transport="raw")
    exhaust(camera)
    camera.trigger_configure()
    camera.trigger_activate()

    detector = DetectorNode("detector", streams=[LocalFrameStream(camera)])
    manifest, engines = str(write_detector(folder)), str(folder / "engines")
    set_parameters(detector, manifest=manifest, backend="tensorrt", engine_store=engines)
    detector.trigger_configure()
    detector.trigger_activate()
    detector._wanted = lambda: True  # type: ignore[method-assign]
    found: list[int] = []
    detector._publish = lambda *given: found.append(len(given[2]))  # type: ignore[method-assign]
    send(camera, 1)
    detector._process_next()
    tell("well", camera, detector, found=found, way=detector.counters()["frame_way"])

    send(camera, 2)
    break_gpu()
    time.sleep(0.2)
    detector._process_next()
    tell("lost by the detector", detector, found=found)
    send(camera, 3)
    handed_out = LocalFrameStream(camera).acquire_newest() is not None
    tell("lost by the camera", camera, handed_out=handed_out)

    configured = detector.trigger_configure() == TransitionCallbackReturn.SUCCESS
    tell("again", detector, configured=configured)
    for node in (detector, camera):
        node.stop()
        node.destroy_node()
    tell("ended")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
