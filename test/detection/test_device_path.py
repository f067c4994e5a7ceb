"""Frames that lie on a GPU, from there to boxes: the same answers, and nothing goes over the host.

The GPU is made of host memory here, and its kernels are the real ones compiled for the CPU.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_gpu import EmulatedTransport
from fake_tensorrt import FakeWorkspace
from tiny_models import HEADS, write_detector

from edge_perception.backends.base import Backend
from edge_perception.backends.store import load_manifest
from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.manifest import TensorSpec
from edge_perception.detection.detector import DetectionSettings, Detector, open_detector
from edge_perception.detection.device_backend import DeviceBackend
from edge_perception.errors import EngineError, FrameError
from edge_perception.gpu.head_layout import DECODABLE_HEADS
from edge_perception.gpu.lease import FrameLease
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec

SETTINGS = DetectionSettings()
STREAM = FakeWorkspace.stream


class CpuEngine:
    """An engine whose "GPU" computes with ONNX Runtime where the addresses say."""

    def __init__(self, runtime: Backend) -> None:
        self.inputs: tuple[TensorSpec, ...] = runtime.inputs
        self.outputs: tuple[TensorSpec, ...] = runtime.outputs
        self._runtime = runtime
        self._addresses: dict[str, int] = {}

    def bind(self, addresses: dict[str, int]) -> None:
        self._addresses.update(addresses)

    def enqueue(self, stream: int) -> None:
        assert stream == STREAM
        tensors = [np.empty(spec.shape, spec.dtype) for spec in self.inputs]
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            ctypes.memmove(tensor.ctypes.data, self._addresses[spec.name], tensor.nbytes)
        for spec, result in zip(self.outputs, self._runtime.infer(tensors), strict=True):
            packed = np.ascontiguousarray(result)
            ctypes.memmove(self._addresses[spec.name], packed.ctypes.data, packed.nbytes)

    def can_be_captured(self, stream: int) -> bool:
        return True

    def close(self) -> None:
        self._runtime.close()


class Setup:
    """A detector on the "GPU", its twin on the CPU, and a ring in the "GPU's" memory."""

    def __init__(self, folder: Path, head: str) -> None:
        path = write_detector(folder, head)
        self.on_cpu = open_detector(path)
        self.workspace = FakeWorkspace()
        engine: Any = CpuEngine(open_detector(path).backend)
        backend = DeviceBackend("fake", engine, self.workspace)  # type: ignore[arg-type]
        self.on_gpu = Detector(load_manifest(path)[0], backend)
        self.workspace.uploads = self.workspace.downloads = self.workspace.synchronizations = 0
        self.transport = EmulatedTransport()
        self.ring = FrameRing.create(RingSpec("test"), self.transport)
        self._sequence = 0

    def put(self, pixels: np.ndarray, image_format: ImageFormat) -> FrameLease:
        self._sequence += 1
        now_ns = time.monotonic_ns()
        self.ring.write(
            pixels, FrameInfo(self._sequence, 1, "camera", image_format, now_ns, 0, now_ns)
        )
        lease = self.ring.acquire_newest(self._sequence - 1)
        assert lease is not None
        return lease


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Setup]]:
    made: list[Setup] = []

    def setup(head: str) -> Setup:
        made.append(Setup(tmp_path / head, head))
        return made[-1]

    yield setup
    for setup_ in made:
        setup_.ring.close()
        setup_.on_gpu.close()
        setup_.on_cpu.close()


def blocks(seed: int, image_format: ImageFormat) -> np.ndarray:
    """Bright blocks of all colours on black, in any packed encoding; scores all differ."""
    rng = np.random.default_rng(seed)
    image = np.zeros((image_format.height, image_format.step), np.uint8)
    cell = image_format.height // 6
    for row, column in zip(rng.permutation(6), rng.permutation(8)[:6], strict=True):
        place = np.s_[row * cell : (row + 1) * cell, column * cell * 3 : (column + 1) * cell * 3]
        image[place] = np.tile(rng.integers(60, 256, 3, np.uint8), cell)
    return image.reshape(-1)


VGA = ImageFormat.packed("rgb8", 480, 640)
PADDED = ImageFormat("bgr8", 240, 320, 1000)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("image_format", [VGA, PADDED], ids=["rgb8", "bgr8 with padding"])
def test_answers_are_those_of_the_cpu_and_nothing_is_uploaded(
    make: Callable[[str], Setup], head: str, image_format: ImageFormat
) -> None:
    setup = make(head)
    for seed in range(3):
        pixels = blocks(seed, image_format)
        expected = setup.on_cpu.detect(pixels, image_format, SETTINGS, SpanRecorder())
        with setup.put(pixels, image_format) as lease:
            found = setup.on_gpu.detect_frame(lease, SETTINGS, SpanRecorder())
        assert len(expected.scores) > 0
        assert found.class_ids.tolist() == expected.class_ids.tolist()
        np.testing.assert_allclose(found.scores, expected.scores, atol=1 / 255)
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-3)
    assert setup.workspace.uploads == 0
    outputs = len(setup.on_gpu.backend.outputs)
    assert setup.workspace.downloads == (0 if head in DECODABLE_HEADS else 3 * outputs)


def test_stream_waits_for_the_frame_and_its_end_is_marked_on_it(
    make: Callable[[str], Setup],
) -> None:
    setup = make("yolov8")
    with setup.put(blocks(0, VGA), VGA) as lease:
        setup.on_gpu.detect_frame(lease, SETTINGS, SpanRecorder())
    assert setup.transport.calls == [("wait_written", STREAM), ("record_read", STREAM)]
    assert setup.workspace.synchronizations == 1
    assert setup.ring.counters.leases_held == 0


@pytest.mark.parametrize("head", ["yolov8", "detr"])
def test_stages_follow_one_another_without_a_gap(make: Callable[[str], Setup], head: str) -> None:
    setup = make(head)
    recorder = SpanRecorder()
    asked: list[int] = []
    with setup.put(blocks(0, VGA), VGA) as lease:
        began_ns = time.monotonic_ns()
        setup.on_gpu.detect_frame(lease, SETTINGS, recorder, lambda: asked.append(1))
        ended_ns = time.monotonic_ns()
    assert [span.stage for span in recorder.spans] == ["preprocess", "infer", "postprocess"]
    first, infer, last = recorder.spans
    assert began_ns <= first.start_ns <= first.end_ns == infer.start_ns
    assert infer.end_ns == last.start_ns <= last.end_ns <= ended_ns
    assert asked == [1]


@pytest.mark.parametrize(
    "changes",
    [
        {"class_ids": frozenset({0, 2})},
        {"class_ids": frozenset()},
        {"max_detections": 2},
        {"score_threshold": 0.9},
        {"nms_iou": 0.0},
        {"score_threshold": 0.0, "nms_iou": 1.0},
    ],
)
def test_settings_mean_the_same(make: Callable[[str], Setup], changes: dict[str, Any]) -> None:
    setup = make("yolov5")
    wanted, pixels = replace(SETTINGS, **changes), blocks(7, VGA)
    expected = setup.on_cpu.detect(pixels, VGA, wanted, SpanRecorder())
    with setup.put(pixels, VGA) as lease:
        found = setup.on_gpu.detect_frame(lease, wanted, SpanRecorder())
    assert sorted(found.class_ids.tolist()) == sorted(expected.class_ids.tolist())
    np.testing.assert_allclose(found.scores, expected.scores, atol=1 / 255)


def test_more_boxes_than_the_kernels_keep_are_decoded_on_the_host(
    make: Callable[[str], Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_perception.detection.detector.MAX_KEPT", 1)
    setup = make("yolov8")
    only_red = replace(SETTINGS, class_ids=frozenset({0}))
    with setup.put(blocks(1, VGA), VGA) as lease:
        found = setup.on_gpu.detect_frame(lease, only_red, SpanRecorder())
    expected = setup.on_cpu.detect(blocks(1, VGA), VGA, only_red, SpanRecorder())
    assert found.class_ids.tolist() == expected.class_ids.tolist()
    assert setup.workspace.downloads == 1


def test_model_on_the_cpu_reads_a_copy_of_a_frame_on_the_gpu(make: Callable[[str], Setup]) -> None:
    setup = make("yolov8")
    pixels = blocks(2, VGA)
    with setup.put(pixels, VGA) as lease:
        found = setup.on_cpu.detect_frame(lease, SETTINGS, SpanRecorder())
    expected = setup.on_cpu.detect(pixels, VGA, SETTINGS, SpanRecorder())
    assert found.scores.tolist() == expected.scores.tolist()
    assert [call for call, _ in setup.transport.calls] == ["download"]
    assert (setup.on_gpu.reads_device_frames, setup.on_cpu.reads_device_frames) == (True, False)


def test_model_on_the_gpu_takes_a_frame_of_host_memory_over_the_host(
    make: Callable[[str], Setup],
) -> None:
    setup = make("yolov8")
    pixels = blocks(3, VGA)
    with FrameRing.create(RingSpec("host")) as ring:
        ring.write(pixels, FrameInfo(1, 1, "camera", VGA, 0, 0, 0))
        with ring.acquire_newest() as lease:  # type: ignore[union-attr]
            found = setup.on_gpu.detect_frame(lease, SETTINGS, SpanRecorder())
    expected = setup.on_cpu.detect(pixels, VGA, SETTINGS, SpanRecorder())
    assert found.class_ids.tolist() == expected.class_ids.tolist()
    assert setup.workspace.uploads == 1


def test_released_frame_and_closed_model_are_refused(make: Callable[[str], Setup]) -> None:
    setup = make("yolov8")
    lease = setup.put(blocks(0, VGA), VGA)
    lease.release()
    with pytest.raises(FrameError, match="already released"):
        setup.on_gpu.detect_frame(lease, SETTINGS, SpanRecorder())
    setup.on_gpu.close()
    with (
        setup.put(blocks(0, VGA), VGA) as held,
        pytest.raises(EngineError, match="closed"),
    ):
        setup.on_gpu.detect_frame(held, SETTINGS, SpanRecorder())
