"""The graph on a real GPU: frames, JPEGs, preprocessing, engine and boxes, none of it on the host.

The engine is one CUDA kernel in the place of TensorRT, which computes what the tiny YOLOv8 does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("cuda.bindings.driver")
pytestmark = pytest.mark.gpu
from pictures import BLOCK_CENTRE, BLOCK_SIZE, BLUE, GREEN, RED, picture
from vision_msgs.msg import Detection2DArray

from edge_perception.errors import CudaError
from edge_perception.gpu.nvjpeg import load_library
from edge_perception.nodes.messages import from_detection2d_array

DATA = Path(__file__).resolve().parents[1] / "data"
ROOT = DATA.parents[1]
WAYS = [
    pytest.param("container", "cuda_in_process", id="threads, device memory"),
    pytest.param("container", "cuda_mapped", id="threads, mapped memory"),
    pytest.param("processes", "cuda_ipc", id="processes, device memory by CUDA IPC"),
    pytest.param("processes", "cuda_mapped", id="processes, mapped memory"),
]
SENT = [
    (picture(RED), "rgb8", 0),
    (picture(GREEN, 5, 6), "bgr8", 3),
    (picture(BLUE, 0, 7) | picture(RED, 7, 0), "nv12", 0),
    (picture(RED, 3, 3), "bayer_rggb8", 2),
    (picture((0, 0, 0)), "mono8", 1),
]


@pytest.fixture(autouse=True)
def kernel_for_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the node processes find the kernel when they import TensorRT."""
    here = [str(DATA / "gpu_tensorrt"), str(DATA), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*here, os.environ.get("PYTHONPATH", "")]))


def start(graph: Any, arrangement: str, manifest: Path, transport: str) -> None:
    graph.start_arrangement(
        arrangement,
        manifest,
        transport,
        detector__backend="tensorrt",
        detector__engine_store=str(graph.folder / "engines"),
    )


@pytest.fixture
def nvjpeg() -> None:
    try:
        load_library()
    except CudaError as error:
        pytest.skip(str(error))


def found_in(message: Detection2DArray) -> list[Any]:
    """What a message tells, in an order that equal scores do not change."""
    found: Any = from_detection2d_array(message)["detections"]
    return sorted(found, key=lambda one: (one["class"], one["xyxy"]))


@pytest.mark.parametrize(("arrangement", "transport"), WAYS)
def test_frames_stay_on_the_gpu_and_the_boxes_are_those_of_the_cpu(
    graph: Any, running: Any, manifest: Path, arrangement: str, transport: str
) -> None:
    start(graph, arrangement, manifest, transport)
    detections = graph.listen_to_detections()
    found = 0
    for image, encoding, padding in SENT:
        header = graph.send(image, encoding, padding)
        here = found_in(graph.answer_to(header, detections))
        running.send(image, encoding, padding, header=header)
        there = found_in(running.answer_to(header, running.detections))
        assert [one["class"] for one in here] == [one["class"] for one in there]
        for one, other in zip(here, there, strict=True):
            assert one["xyxy"] == pytest.approx(other["xyxy"], abs=0.01)
            assert one["score"] == pytest.approx(other["score"], abs=2 / 255)
        found += len(here)
    assert found >= 4
    camera, detector = graph.counters("camera"), graph.counters("detector")
    assert (camera["frame_transport"], detector["frame_transport"]) == (transport, transport)
    assert detector["frame_way"] == "gpu"
    assert detector["processed"] > len(SENT)


@pytest.mark.parametrize(
    ("arrangement", "transport"),
    [("container", "cuda_in_process"), ("processes", "cuda_ipc")],
)
def test_jpegs_are_decoded_on_the_gpu_and_found_there(
    nvjpeg: None, graph: Any, manifest: Path, arrangement: str, transport: str
) -> None:
    start(graph, arrangement, manifest, transport)
    detections = graph.listen_to_detections(graph.send_compressed)
    for colour, name in ((RED, "red_block"), (GREEN, "green_block"), (BLUE, "blue_block")):
        (one,) = graph.answer_to(graph.send_compressed(picture(colour)), detections).detections
        assert one.results[0].hypothesis.class_id == name
        assert one.results[0].hypothesis.score > 0.8
        centre = one.bbox.center.position
        assert (centre.x, centre.y) == pytest.approx(BLOCK_CENTRE, abs=0.01)
        assert (one.bbox.size_x, one.bbox.size_y) == pytest.approx(BLOCK_SIZE, abs=0.01)
    camera = graph.counters("camera")
    assert camera["jpeg_decoder"] == "nvjpeg"
    assert camera["jpegs_decoded_on_gpu"] == camera["ring_written"] > 3
    assert graph.counters("detector")["frame_way"] == "gpu"


def test_nodes_say_that_their_gpu_is_too_small_or_lost_and_hand_nothing_out(
    tmp_path: Path,
) -> None:
    run = subprocess.run(
        [sys.executable, str(DATA / "nodes_that_lose_their_gpu.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    told = {line["event"]: line for line in map(json.loads, run.stdout.splitlines())}
    assert "ended" in told, run.stdout + run.stderr
    level, message = told["exhausted"]["camera"]
    assert (level, told["exhausted"]["configured"]) == (2, False)
    assert "not enough memory for 4 slots of 1099511627776 bytes" in message
    assert told["well"]["found"] == [1]
    assert told["well"]["way"] == "gpu"
    for event, node in (("lost by the detector", "detector"), ("lost by the camera", "camera")):
        level, message = told[event][node]
        assert level == 2, told[event]
        assert "CUDA failed while" in message
        assert "process must be restarted" in message
    assert told["lost by the detector"]["found"] == [1]
    assert told["lost by the camera"]["handed_out"] is False
    assert told["again"]["configured"] is False
    assert "process must be restarted" in told["again"]["detector"][1]
    assert "Traceback" not in run.stderr
