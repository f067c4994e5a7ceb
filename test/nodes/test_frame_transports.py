"""One graph, the same answers over every transport, in one process and in two."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticStatus
from pictures import BLUE, GREEN, RED, picture
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from edge_perception.errors import CudaError
from edge_perception.gpu.host_memory import HostMemory, SharedMemoryTransport
from edge_perception.gpu.ledger import ReadDone
from edge_perception.gpu.memory import ExportedMemory
from edge_perception.nodes.camera import CameraNode
from edge_perception.nodes.frame_streams import LocalFrameStream, RemoteFrameStream
from edge_perception.nodes.messages import from_detection2d_array, from_frame_handle, to_header

WAYS = [
    pytest.param("container", "in_process", id="threads, private memory"),
    pytest.param("container", "shared_memory", id="threads, shared memory"),
    pytest.param("processes", "shared_memory", id="processes, shared memory"),
    *(
        pytest.param(arrangement, transport, marks=pytest.mark.gpu, id=f"{readers}, {memory}")
        for arrangement, readers, transport, memory in (
            ("container", "threads", "cuda_in_process", "device memory"),
            ("container", "threads", "cuda_mapped", "mapped memory"),
            ("processes", "processes", "cuda_ipc", "device memory by CUDA IPC"),
            ("processes", "processes", "cuda_mapped", "mapped memory"),
        )
    ),
]
SENT = [
    (picture(RED), "rgb8", 0),
    (picture(GREEN, 5, 6), "bgr8", 3),
    (picture(BLUE, 0, 7) | picture(RED, 7, 0), "nv12", 0),
    (picture((0, 0, 0)), "mono8", 1),
]


@pytest.mark.parametrize(("arrangement", "transport"), WAYS)
def test_answers_do_not_depend_on_how_frames_travel(
    graph: Any, running: Any, manifest: Path, arrangement: str, transport: str
) -> None:
    graph.start_arrangement(arrangement, manifest, transport)
    detections = graph.listen_to_detections()
    found = 0
    for image, encoding, padding in SENT:
        header = graph.send(image, encoding, padding)
        here = graph.answer_to(header, detections)
        running.send(image, encoding, padding, header=header)
        there = running.answer_to(header, running.detections)
        assert from_detection2d_array(here) == from_detection2d_array(there)
        found += len(here.detections)
    assert found >= 4
    camera, detector = graph.counters("camera"), graph.counters("detector")
    assert (camera["frame_transport"], camera["frame_transport_why"]) == (
        transport,
        "as configured",
    )
    assert detector["frame_transport"] == transport


@pytest.fixture
def camera(ros: None) -> Iterator[CameraNode]:
    node = CameraNode("camera_of_a_transport")
    yield node
    node.stop()
    node.destroy_node()


def configure(camera: CameraNode, **values: object) -> TransitionCallbackReturn:
    camera.set_parameters([Parameter(name, value=value) for name, value in values.items()])
    return camera.trigger_configure()


def image() -> Image:
    data = picture(RED)
    return Image(
        header=to_header(1, "camera"),
        height=128,
        width=128,
        encoding="rgb8",
        step=128 * 3,
        data=data.tobytes(),
    )


@pytest.mark.parametrize(("shared", "name"), [(False, "in_process"), (True, "shared_memory")])
def test_probed_transport_is_told_with_its_reason(
    camera: CameraNode, shared: bool, name: str
) -> None:
    assert configure(camera, share_frames=shared) == TransitionCallbackReturn.SUCCESS
    counters = camera.counters()
    assert counters["frame_transport"] == name
    assert counters["frame_transport_why"] == "readers work on the CPU"


UNREACHABLE = [
    ({"share_frames": True, "frame_transport": "in_process"}, "does not reach other processes"),
    ({"share_frames": True, "frame_transport": "cuda_in_process"}, "in_process"),
]


@pytest.mark.parametrize(("values", "reason"), UNREACHABLE)
def test_transport_that_cannot_serve_is_an_error_and_not_replaced(
    camera: CameraNode, values: dict[str, object], reason: str
) -> None:
    assert configure(camera, **values) == TransitionCallbackReturn.FAILURE
    level, message = camera._health()
    assert level == DiagnosticStatus.ERROR
    assert reason in message
    assert camera.ring is None


def test_ring_that_lost_its_gpu_fails_the_node_and_hands_nothing_out(
    camera: CameraNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(camera, image_transport="raw")
    camera.trigger_activate()
    stream = LocalFrameStream(camera)
    camera._on_image(image(), {})
    held = stream.acquire_newest()
    assert held is not None
    held.release()

    def fail(_: HostMemory, slot: int, size_bytes: int, read_done: Sequence[ReadDone]) -> None:
        error = CudaError("CUDA failed while uploading", got="CUDA_ERROR_ILLEGAL_ADDRESS")
        error.sticky = True
        raise error

    monkeypatch.setattr(HostMemory, "commit", fail)
    camera._on_image(image(), {})
    level, message = camera._health()
    assert level == DiagnosticStatus.ERROR
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in message
    assert camera.ring is None
    assert stream.acquire_newest() is None
    assert camera.trigger_configure() == TransitionCallbackReturn.SUCCESS


def test_frame_whose_memory_cannot_be_opened_is_refused_told_and_given_back(
    camera: CameraNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(camera, share_frames=True, image_transport="raw")
    camera.trigger_activate()
    camera._on_image(image(), {})
    assert camera.ring is not None
    stream = RemoteFrameStream("camera/frames")
    stream._attach(camera.ring.descriptor(1))

    def fail(_: SharedMemoryTransport, exported: ExportedMemory) -> HostMemory:
        raise CudaError("CUDA failed while opening shared device memory")

    with monkeypatch.context() as patch:
        patch.setattr(SharedMemoryTransport, "open", fail)
        assert stream.acquire_newest() is None
    assert (stream.refused, stream.last_refusal) == (
        1,
        "CUDA failed while opening shared device memory",
    )
    stream._attach(camera.ring.descriptor(1))
    held = stream.acquire_newest()
    assert held is not None
    assert held.sequence == 1
    held.release()
    stream.stop()
    deadline = time.monotonic() + 10
    while camera.ring.counters.leases_held and time.monotonic() < deadline:
        time.sleep(0.01)
    assert camera.ring.counters.leases_held == 0


def test_handle_names_the_ring_and_keeps_the_header(graph: Any, ros: None) -> None:
    graph.start("camera", share_frames=True, autostart=True)
    handles = graph.listen(Image, "camera/frames")
    header = graph.send(picture(RED))
    handle = graph.answer_to(header, handles)
    described = from_frame_handle(handle)
    assert (handle.height, handle.width, handle.step) == (128, 128, len(described))
