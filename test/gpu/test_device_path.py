"""The whole detector on a GPU: a torch network as the engine, against itself on the CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.driver")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu

from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.manifest import TensorSpec, parse_manifest
from edge_perception.detection.detector import DetectionSettings, Detector
from edge_perception.detection.device_backend import DeviceBackend
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import transport_named
from edge_perception.gpu.workspace import Workspace

torch.set_num_threads(1)  # many would wait for one another longer than they compute
SIDE, CELLS = 64, 64
INPUTS = (TensorSpec("images", (1, 3, SIDE, SIDE)),)
SHAPES = {"yolov5": (1, CELLS, 8), "yolov8": (1, 7, CELLS), "yolo_end_to_end": (1, CELLS, 6)}


def network(head: str, images: Any) -> Any:
    """Scores are the mean colours of 8x8 px cells, boxes twice a cell around its centre."""
    scores = torch.nn.functional.avg_pool2d(images, 8).reshape(1, 3, CELLS)
    at = torch.arange(CELLS, device=images.device)
    centres = torch.stack([at % 8, at // 8]).float().mul(8).add(4)
    sizes = torch.full((2, CELLS), 16.0, device=images.device)
    if head == "yolov8":
        return torch.cat([torch.cat([centres, sizes])[None], scores], 1)
    if head == "yolov5":
        rows = torch.cat([centres, sizes, torch.ones((1, CELLS), device=images.device)])
        return torch.cat([rows[None], scores], 1).transpose(1, 2).contiguous()
    best, which = scores.max(1)
    corners = torch.cat([centres - 8, centres + 8])[None]
    return torch.cat([corners, best[None], which[None].float()], 1).transpose(1, 2).contiguous()


class OnCpu:
    name, on_cpu, inputs = "torch", True, INPUTS

    def __init__(self, head: str) -> None:
        self._head = head
        self.outputs = (TensorSpec("output", SHAPES[head]),)

    def infer(self, tensors: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return [network(self._head, torch.from_numpy(tensors[0].copy())).numpy()]

    def close(self) -> None:
        pass


class _At:
    """Device memory as torch reads it."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "version": 3, "typestr": "<f4", "shape": shape, "data": (address, False)
        }  # fmt: skip


class TorchEngine:
    """``DeviceEngine`` by torch, on the tensors and the stream that it is given."""

    inputs = INPUTS

    def __init__(self, head: str) -> None:
        self._head = head
        self.outputs = (TensorSpec("output", SHAPES[head]),)
        self._tensors: dict[str, Any] = {}

    def bind(self, addresses: Mapping[str, int]) -> None:
        for spec in (*self.inputs, *self.outputs):
            view = torch.as_tensor(_At(addresses[spec.name], spec.shape), device="cuda")
            self._tensors[spec.name] = view

    def enqueue(self, stream: int) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            self._tensors["output"].copy_(network(self._head, self._tensors["images"]))

    def can_be_captured(self, stream: int) -> bool:
        return False

    def close(self) -> None:
        self._tensors.clear()


class Pair:
    def __init__(self, head: str) -> None:
        manifest = parse_manifest(
            {
                "schema": 1,
                "name": head,
                "model": "model.onnx",
                "sha256": "0" * 64,
                "license": "Apache-2.0",
                "source": "built by a test",
                "head": head,
                "class_names": ["red", "green", "blue"],
                "inputs": [{"name": "images", "shape": [1, 3, SIDE, SIDE]}],
                "outputs": [{"name": "output", "shape": list(SHAPES[head])}],
                "preprocessing": {"height": SIDE, "width": SIDE, "pad_value": 0},
            }
        )
        self.on_cpu = Detector(manifest, OnCpu(head))
        backend = DeviceBackend("torch", TorchEngine(head), Workspace(), cuda_graph=False)
        self.on_gpu = Detector(manifest, backend)


@pytest.fixture(params=list(SHAPES))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.on_gpu.close()


def scene(seed: int, image_format: ImageFormat) -> np.ndarray:
    """Coloured cells on black."""
    rng = np.random.default_rng(seed)
    image = np.zeros((image_format.height, image_format.width, 3), np.uint8)
    cell = image_format.height // 6
    for row, column in zip(rng.permutation(6), rng.permutation(8)[:6], strict=True):
        image[row * cell : row * cell + cell, column * cell : column * cell + cell] = rng.integers(
            60, 256, 3, np.uint8
        )
    return image.reshape(-1)


@pytest.mark.parametrize("transport", ["cuda_in_process", "cuda_ipc", "cuda_mapped"])
def test_boxes_are_those_of_the_cpu(pair: Pair, transport: str) -> None:
    image_format = ImageFormat.packed("rgb8", 480, 640)
    spec = RingSpec("test", slot_bytes=image_format.size_bytes)
    with FrameRing.create(spec, transport_named(transport)) as ring:
        for sequence in range(1, 9):
            pixels = scene(sequence, image_format)
            now_ns = time.monotonic_ns()
            ring.write(pixels, FrameInfo(sequence, 1, "c", image_format, now_ns, 0, now_ns))
            recorder = SpanRecorder()
            for settings in (DetectionSettings(), replace(DetectionSettings(), nms_iou=0.2)):
                expected = pair.on_cpu.detect(pixels, image_format, settings, SpanRecorder())
                with ring.acquire_newest(sequence - 1) as lease:  # type: ignore[union-attr]
                    found = pair.on_gpu.detect_frame(lease, settings, recorder)
                assert len(expected.scores) > 0
                assert found.class_ids.tolist() == expected.class_ids.tolist()
                np.testing.assert_allclose(found.scores, expected.scores, atol=1 / 255)
                np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-2)
            spans = recorder.spans[:3]
            assert [span.stage for span in spans] == ["preprocess", "infer", "postprocess"]
            assert all(span.duration_ns >= 0 for span in spans)


def test_frame_is_read_only_once_its_upload_is_done(pair: Pair) -> None:
    """Frames of one colour, read at once: a kernel that did not wait would see the one before."""
    image_format = ImageFormat.packed("rgb8", 1080, 1920)
    spec = RingSpec("test", slots=4, slot_bytes=image_format.size_bytes)
    frames = [np.full(image_format.size_bytes, value, np.uint8) for value in (30, 255)]
    with FrameRing.create(spec, transport_named("cuda_in_process")) as ring:
        for sequence in range(1, 40):
            ring.write(frames[sequence % 2], FrameInfo(sequence, 1, "c", image_format, 0, 0, 0))
            with ring.acquire_newest(sequence - 1) as lease:  # type: ignore[union-attr]
                found = pair.on_gpu.detect_frame(lease, DetectionSettings(), SpanRecorder())
            assert (len(found.scores) > 0) == bool(sequence % 2)
