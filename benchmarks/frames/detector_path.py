"""The whole detector path on the GPU: from a frame on the host to boxes on the host.

What runs is the product: ring, ``DevicePath``, its kernels and events. The network here is the demo
detector's architecture in FP16 by torch, replayed as a CUDA graph, with random weights: its time
does not depend on them, and its accuracy is measured elsewhere; tensorrt_path.py has the trained
one in INT8. The threshold is set so that about 200 candidates reach suppression, a crowded scene.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.frames.frame_source import FULL_HD, info, percentiles, random_frame
from edge_perception.core.boxes import box_areas
from edge_perception.core.frame import FrameInfo
from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.manifest import Manifest, TensorSpec, parse_manifest
from edge_perception.detection.decoders import decode_yolox
from edge_perception.detection.detector import suppress
from edge_perception.detection.device_backend import DeviceBackend
from edge_perception.detection.device_path import DEVICE_STAGES, DevicePath, DeviceResult
from edge_perception.gpu.decode_image import choose_jpeg_decoder, decode_into
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import transport_named
from edge_perception.gpu.workspace import Workspace
from training.detector.config import STRIDES, ModelConfig
from training.detector.evaluate import activate
from training.detector.model import NanoDetector, fuse_batch_norm

CLASSES = tuple(f"class_{i}" for i in range(10))
HEIGHT, WIDTH = 480, 640
NMS_IOU = 0.65
CANDIDATES = 200
WARM_UP, RUNS = 50, 1000
CAMERA = ImageFormat.packed("bgr8", FULL_HD.height, FULL_HD.width)

Write = Callable[[FrameRing, int], object]


class _At:
    """Device memory as torch reads it."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        data = {"shape": shape, "data": (address, False)}
        self.__cuda_array_interface__ = {"version": 3, "typestr": "<f4", **data}


class TorchEngine:
    """A ``DeviceEngine`` by torch, captured at its first use."""

    def __init__(self, manifest: Manifest) -> None:
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        torch.manual_seed(0)
        self._model = self.make_model()
        self._graph: torch.cuda.CUDAGraph | None = None

    def make_model(self) -> torch.nn.Module:
        """The network on the GPU, from images to raw outputs."""
        model = NanoDetector(ModelConfig(CLASSES, HEIGHT, WIDTH)).eval()
        return fuse_batch_norm(model).cuda().requires_grad_(False)

    def bind(self, addresses: Mapping[str, int]) -> None:
        """View the tensors where they are."""
        views = [
            torch.as_tensor(_At(addresses[spec.name], spec.shape), device="cuda")
            for spec in (*self.inputs, *self.outputs)
        ]
        self._input, self._output = views

    def enqueue(self, stream: int) -> None:
        """Replay the network on a stream."""
        external = torch.cuda.ExternalStream(stream)
        if self._graph is None:
            self._graph = self._capture(external)
        with torch.cuda.stream(external):
            self._graph.replay()

    def can_be_captured(self, stream: int) -> bool:
        """A graph of torch's does not go into another."""
        return False

    def close(self) -> None:
        """Free the graph."""
        self._graph = None

    def _capture(self, stream: torch.cuda.ExternalStream) -> torch.cuda.CUDAGraph:
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._forward()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._forward()
        return graph

    def _forward(self) -> None:
        with torch.autocast("cuda", torch.float16):
            self._output.copy_(activate(self._model(self._input)).float())


class Path:
    """The product's path around a network, and a ring on the GPU."""

    def __init__(self, manifest: Manifest, backend: DeviceBackend) -> None:
        self.manifest, self._backend = manifest, backend
        self._path = DevicePath(manifest, backend)
        spec = RingSpec("path", slots=4, slot_bytes=FULL_HD.size_bytes)
        self.ring = FrameRing.create(spec, transport_named("cuda_in_process"))
        self._sequence = 0
        self.threshold = 0.5

    @classmethod
    def by_torch(cls) -> Path:
        """Around the demo architecture, by torch."""
        manifest = network_manifest()
        backend = DeviceBackend("torch", TorchEngine(manifest), Workspace(), cuda_graph=False)
        return cls(manifest, backend)

    def run(self, write: Write) -> tuple[DeviceResult, dict[str, float]]:
        """Take one frame through; returns what came and the times in ms.

        ``write`` puts a frame of the sequence given into the ring.
        """
        self._sequence += 1
        began = time.perf_counter_ns()
        write(self.ring, self._sequence)
        written = time.perf_counter_ns()
        with self.ring.acquire_newest(self._sequence - 1) as lease:  # type: ignore[union-attr]
            result = self._path.run(lease, self.threshold, NMS_IOU, SpanRecorder())
        ended = time.perf_counter_ns()
        times = {"write": (written - began) / 1e6, "whole": (ended - began) / 1e6}
        return result, {**times, **result.stages_ms}

    def set_threshold(self) -> None:
        """Let about ``CANDIDATES`` of the last output pass."""
        rows = self._path.outputs()[0][0]
        self.threshold = float(np.sort((rows[:, 4:5] * rows[:, 5:]).max(axis=1))[-CANDIDATES])

    def check_against_cpu(self, result: DeviceResult) -> dict[str, Any]:
        """Compare the last detections with the CPU's decoding of the same output."""
        got = result.found
        assert got is not None
        outputs = self._path.outputs()
        found = decode_yolox(outputs, self.manifest.preprocessing, np.float32(self.threshold))
        found = replace(found, boxes_xyxy=result.letterbox.to_source(found.boxes_xyxy))
        found = found.select(box_areas(found.boxes_xyxy) > 0)
        order = np.argsort(-found.scores, kind="stable")
        found = found.select(order)
        kept = suppress(found, NMS_IOU)
        same = np.array_equal(got.class_ids, found.class_ids[kept])
        apart = np.abs(got.boxes_xyxy - found.boxes_xyxy[kept]).max() if same else np.inf
        if not same or apart > 1e-2 or got.candidates != len(order):
            raise SystemExit(
                f"decoding differs: {got.candidates} candidates and {len(got.scores)} kept on the "
                f"GPU, {len(order)} and {len(kept)} on the CPU; {apart} px apart"
            )
        return {"candidates": len(order), "kept": len(kept), "worst_box_px": float(apart)}

    def close(self) -> None:
        """Free everything."""
        self.ring.close()
        self._backend.close()


def network_manifest() -> Manifest:
    """What the engine takes and gives, and how pictures go in."""
    rows = sum((HEIGHT // stride) * (WIDTH // stride) for stride in STRIDES)
    tensors = (
        TensorSpec("images", (1, 3, HEIGHT, WIDTH)),
        TensorSpec("output", (1, rows, 5 + len(CLASSES))),
    )
    return parse_manifest(
        {
            "schema": 1,
            "name": "demo architecture",
            "model": "model.onnx",
            "sha256": "0" * 64,
            "license": "Apache-2.0",
            "source": "random weights",
            "head": "yolox",
            "class_names": list(CLASSES),
            "inputs": [{"name": tensors[0].name, "shape": list(tensors[0].shape)}],
            "outputs": [{"name": tensors[1].name, "shape": list(tensors[1].shape)}],
            "preprocessing": {"height": HEIGHT, "width": WIDTH, "color": "bgr", "scale": 1.0},
        }
    )


def measure_detector_path() -> dict[str, Any]:
    """Measure the path around the demo architecture by torch."""
    network = "demo detector's architecture, 640x480, FP16 torch, CUDA graph"
    return {**measure_path(Path.by_torch()), "network": network}


def measure_path(path: Path) -> dict[str, Any]:
    """From a frame in pinned memory, from one elsewhere (a copy more), and from a JPEG.

    Closes the path.
    """
    frames = [random_frame(seed) for seed in range(8)]

    def copied(ring: FrameRing, sequence: int) -> object:
        return ring.write(frames[sequence % 8], info(sequence))

    def in_place(ring: FrameRing, sequence: int) -> object:
        # The pinned staging buffer holds a frame already: a driver was handed it to fill.
        return ring.write_by(FULL_HD, lambda _: info(sequence))

    try:
        path.run(copied)
        path.set_threshold()
        equality = path.check_against_cpu(path.run(copied)[0])
        for _ in range(8):
            path.run(copied)  # so that every staging buffer holds a frame
        return {
            **_measure(path, in_place),
            "through_copy": _measure(path, copied),
            "from_jpeg": _measure_jpeg(path),
            "equality": equality,
            "frame": "1920x1080 rgb8",
        }
    finally:
        path.close()


def _measure_jpeg(path: Path) -> dict[str, Any]:
    """From a JPEG of 1080p on the host to boxes, decoded by each of the two."""
    choice = choose_jpeg_decoder(device_memory=True)
    files = [camera_jpeg(seed) for seed in range(4)]

    def on_cpu(ring: FrameRing, sequence: int) -> object:
        def fill(target: UInt8Array) -> FrameInfo:
            decode_into(target, files[sequence % 4], CAMERA)
            return info(sequence, CAMERA)

        return ring.write_by(CAMERA, fill)

    def on_gpu(ring: FrameRing, sequence: int) -> object:
        def enqueue(pointer: int, stream: int) -> FrameInfo:
            assert choice.on_gpu is not None
            choice.on_gpu.enqueue(files[sequence % 4], CAMERA, pointer, stream)
            return info(sequence, CAMERA)

        return ring.write_on_device(CAMERA, enqueue)

    result: dict[str, Any] = {"file_bytes": int(np.mean([file.size for file in files]))}
    result["simplejpeg"] = _measure(path, on_cpu, 300)
    result["choice"] = f"{choice.name}: {choice.why}"
    if choice.on_gpu is not None:
        result["nvjpeg"] = _measure(path, on_gpu, 300)
        result["nvjpeg"]["equality"] = _compare_pictures(path, on_gpu, on_cpu)
        choice.on_gpu.close()
    return result


def camera_jpeg(seed: int) -> UInt8Array:
    """A 1080p picture with smooth colours, edges and sensor noise, at quality 90."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (45, 80, 3), np.uint8)
    smooth = cv2.resize(coarse, (FULL_HD.width, FULL_HD.height), interpolation=cv2.INTER_CUBIC)
    noisy = np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return np.asarray(data, np.uint8).reshape(-1)


def _compare_pictures(path: Path, one: Write, other: Write) -> dict[str, float]:
    """How far the same file's pictures lie apart, in levels of 255."""
    pictures = []
    for write in (one, other):
        path._sequence += 4 - path._sequence % 4  # the same file for both
        write(path.ring, path._sequence)
        with path.ring.acquire_newest(path._sequence - 1) as lease:  # type: ignore[union-attr]
            pictures.append(lease.to_host().astype(np.int16))
    apart = np.abs(pictures[0] - pictures[1])
    mean, most = round(float(apart.mean()), 4), int(apart.max())
    return {"mean_levels": mean, "p99_9_levels": float(np.percentile(apart, 99.9)), "max": most}


def _measure(path: Path, write: Write, runs: int = RUNS) -> dict[str, Any]:
    path.run(write)
    path.set_threshold()  # on this picture, so that the same work is left after the network
    found = path.run(write)[0].found
    assert found is not None
    gc.collect()
    gc.disable()
    try:
        rows = [path.run(write)[1] for _ in range(WARM_UP + runs)][WARM_UP:]
    finally:
        gc.enable()
    names = ("write", *DEVICE_STAGES)
    stages = {name: percentiles([row[name] for row in rows]) for name in names}
    whole = percentiles([row["whole"] for row in rows])
    return {**whole, "candidates": found.candidates, "stages": stages}
