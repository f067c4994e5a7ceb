"""Camera and detector on a GPU, as nodes: the same detections, and no frame comes to the host.

The GPU is made of host memory, its kernels are the real ones compiled for the CPU, and TensorRT is
a fake that asks ONNX Runtime.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticStatus
from emulated_gpu import EmulatedRing, EmulatedTransport
from fake_tensorrt import FakeWorkspace, fake_tensorrt
from pictures import BLUE, GREEN, RED, picture, raw_fields
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from tiny_models import write_detector

from edge_perception.core.detections import Detections
from edge_perception.core.latency import SpanRecorder
from edge_perception.detection import runtimes
from edge_perception.detection.detector import DetectionSettings, open_detector
from edge_perception.errors import CudaError, FrameError
from edge_perception.gpu import transports
from edge_perception.gpu.host_memory import HostMemory
from edge_perception.gpu.lease import FrameLease
from edge_perception.nodes.camera import CameraNode
from edge_perception.nodes.detector import DetectorNode
from edge_perception.nodes.frame_streams import LocalFrameStream
from edge_perception.nodes.messages import to_header


class Gpu(FakeWorkspace):
    class device:  # noqa: N801  as the real one's attribute
        name = "NVIDIA GeForce RTX 3090"
        compute_capability = (8, 6)


class Graph:
    """The two nodes in this thread; ``found`` is what the detector would publish."""

    def __init__(self, folder: Path, frame_transport: str, backend: str) -> None:
        self.manifest = write_detector(folder, "yolov8")
        self.camera = CameraNode("camera_of_device_frames")
        self.detector = DetectorNode(
            "detector_of_device_frames", streams=[LocalFrameStream(self.camera)]
        )
        self._bring_up(self.camera, frame_transport=frame_transport, image_transport="raw")
        self._bring_up(
            self.detector,
            manifest=str(self.manifest),
            backend=backend,
            engine_store=str(folder / "engines"),
        )
        self.found: list[Detections] = []

    def _bring_up(self, node: Any, **values: object) -> None:
        node.set_parameters([Parameter(name, value=value) for name, value in values.items()])
        node.trigger_configure()
        node.trigger_activate()
        assert node._active, node._failure

    def send(self, stamp_ns: int, **fields: Any) -> None:
        self.camera._on_image(Image(header=to_header(stamp_ns, "camera"), **fields), {})
        assert self.detector._process_next()

    def close(self) -> None:
        for node in (self.detector, self.camera):
            node.stop()
            node.destroy_node()


@pytest.fixture
def workspaces(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    opened: list[Gpu] = []

    def open_workspace(_: int) -> Gpu:
        opened.append(Gpu())
        return opened[-1]

    monkeypatch.setattr(runtimes, "_open_workspace", open_workspace)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.3.0"))
    monkeypatch.setitem(transports._TRANSPORTS, "cuda_in_process", EmulatedTransport)
    monkeypatch.setattr(DetectorNode, "_wanted", lambda _: True)
    return opened


@pytest.fixture
def start(
    ros: None, tmp_path: Path, workspaces: list[Gpu], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    graphs: list[Graph] = []

    def run(frame_transport: str, backend: str) -> Graph:
        graph = Graph(tmp_path, frame_transport, backend)
        graphs.append(graph)

        def keep(_: FrameLease, camera: str, result: Detections, recorder: SpanRecorder) -> None:
            graph.found.append(result)

        monkeypatch.setattr(graph.detector, "_publish", keep)
        return graph

    yield run
    for graph in graphs:
        graph.close()


WAYS = [
    pytest.param("cuda_in_process", "tensorrt", "gpu", id="all on the GPU"),
    pytest.param("cuda_in_process", "onnxruntime", "gpu to host", id="model on the CPU"),
    pytest.param("in_process", "tensorrt", "host to gpu", id="frames on the host"),
    pytest.param("in_process", "onnxruntime", "host", id="all on the host"),
]
SENT = [
    raw_fields(picture(RED)),
    raw_fields(picture(GREEN, 5, 6), "bgr8", 3),
    raw_fields(picture(BLUE, 0, 7) | picture(RED, 7, 0), "nv12"),
]


@pytest.mark.parametrize(("frame_transport", "backend", "way"), WAYS)
def test_detections_do_not_depend_on_where_frames_lie_and_the_way_is_told(
    start: Any, workspaces: list[Gpu], frame_transport: str, backend: str, way: str
) -> None:
    graph = start(frame_transport, backend)
    on_cpu = open_detector(graph.manifest)
    uploads = sum(gpu.uploads for gpu in workspaces)
    for number, fields in enumerate(SENT, 1):
        graph.send(number, **fields)
        lease = graph.camera.ring.acquire_newest()
        with lease:
            pixels, image_format = lease.to_host(), lease.info.format
            expected = on_cpu.detect(pixels, image_format, DetectionSettings(), SpanRecorder())
        assert len(expected.scores) > 0
        assert graph.found[-1].class_ids.tolist() == expected.class_ids.tolist()
        np.testing.assert_allclose(graph.found[-1].boxes_xyxy, expected.boxes_xyxy, atol=1e-3)
    counters = graph.detector.counters()
    assert counters["frame_way"] == way
    assert counters["processed"] == len(SENT)
    uploaded = sum(gpu.uploads for gpu in workspaces) - uploads
    assert uploaded == (len(SENT) if way == "host to gpu" else 0)
    assert graph.camera.ring.counters.leases_held == 0


def test_gpu_lost_under_the_detector_fails_the_node_which_gives_its_frame_back(
    start: Any, workspaces: list[Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = start("cuda_in_process", "tensorrt")
    graph.send(1, **SENT[0])
    open_at_the_end: list[bool] = []

    def fail(*_: object) -> None:
        error = CudaError("CUDA failed while waiting for a stream", got="CUDA_ERROR_LAUNCH_FAILED")
        error.sticky = True
        raise error

    def mark_end(*_: object) -> None:
        open_at_the_end.append(not workspaces[-1].closed)
        fail()

    with monkeypatch.context() as patch:
        patch.setattr(Gpu, "synchronize", fail)
        patch.setattr(EmulatedRing, "record_read", mark_end)
        graph.send(2, **SENT[0])
    assert open_at_the_end == [True], "the mark is made on a stream that lives"
    level, message = graph.detector._health()
    assert level == DiagnosticStatus.ERROR
    assert "inference failed" in message
    assert "CUDA_ERROR_LAUNCH_FAILED" in message
    assert graph.camera.ring.counters.leases_held == 0

    assert graph.detector.trigger_configure() == TransitionCallbackReturn.SUCCESS
    graph.detector.trigger_activate()
    graph.send(3, **SENT[0])
    assert len(graph.found) == 2


class FullGpu(EmulatedTransport):
    """Room for a probe, and no more."""

    def allocate(self, slots: int, slot_bytes: int) -> HostMemory:
        if slot_bytes < 1 << 20:
            return super().allocate(slots, slot_bytes)
        raise FrameError(f"not enough memory for {slots} slots of {slot_bytes} bytes on a GPU")


def test_gpu_without_room_for_the_stream_is_told_at_configure(
    ros: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(transports._TRANSPORTS, "cuda_in_process", FullGpu)
    camera = CameraNode("camera_of_a_full_gpu")
    values = {"frame_transport": "cuda_in_process", "slots": 5, "slot_bytes": 6_220_800}
    camera.set_parameters([Parameter(name, value=value) for name, value in values.items()])
    assert camera.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert "not enough memory for 5 slots of 6220800 bytes" in camera._health()[1]
    camera.set_parameters([Parameter("slot_bytes", value=0)])
    assert camera.trigger_configure() == TransitionCallbackReturn.SUCCESS
    camera.stop()
    camera.destroy_node()


def test_gpu_readers_ask_the_probe_and_its_answer_is_told(
    ros: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, bool]] = []

    def choose(**wishes: bool) -> transports.TransportChoice:
        asked.append(wishes)
        return transports.TransportChoice(EmulatedTransport(), "as a test has it")

    monkeypatch.setattr("edge_perception.nodes.camera.choose_transport", choose)
    camera = CameraNode("camera_of_gpu_readers")
    camera.set_parameters([Parameter("gpu_readers", value=True)])
    camera.trigger_configure()
    assert asked == [{"across_processes": False, "gpu_readers": True}]
    counters = camera.counters()
    assert (counters["frame_transport"], counters["frame_transport_why"]) == (
        "cuda_emulated",
        "as a test has it",
    )
    assert counters["jpeg_decoder"] == "simplejpeg"  # no GPU to decode on: told, with the reason
    assert counters["jpeg_decoder_why"]
    camera.stop()
    camera.destroy_node()
