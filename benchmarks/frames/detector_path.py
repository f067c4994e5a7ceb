"""The whole detector path on the GPU: from a frame on the host to boxes on the host.

The network is the demo detector's architecture in FP16 by torch, replayed as a CUDA graph, with
random weights: its time does not depend on them, and its accuracy is measured elsewhere. The
threshold is set so that about 200 candidates reach suppression, a crowded scene.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.frames.device_buffers import device_memory, pinned_copy, upload
from benchmarks.frames.frame_source import FULL_HD, info, percentiles, random_frame
from edge_perception.core.boxes import box_areas
from edge_perception.core.letterbox import Letterbox
from edge_perception.core.manifest import Preprocessing
from edge_perception.detection.decoders import decode_yolox
from edge_perception.detection.detector import suppress
from edge_perception.gpu.cuda import Device, Event, Stream
from edge_perception.gpu.detections_cuda import CudaDecoder
from edge_perception.gpu.head_layout import GridLevel, head_layout
from edge_perception.gpu.preprocess_cuda import CudaPreprocessor, DeviceRegion
from edge_perception.gpu.ring import FrameRing, RingSpec
from edge_perception.gpu.transports import transport_named
from training.detector.evaluate import activate
from training.detector.model import STRIDES, ModelConfig, NanoDetector, fuse_batch_norm

CLASSES = tuple(f"class_{i}" for i in range(10))
SPEC = Preprocessing(480, 640, color="bgr", scale=1.0)
NMS_IOU = 0.65
CANDIDATES = 200
WARM_UP, RUNS = 50, 1000
STAGES = ("upload", "preprocess", "infer", "postprocess")


class Path:
    """Everything between a frame and its boxes, allocated once."""

    def __init__(self, device: Device) -> None:
        self.stream = Stream(device, high_priority=True)
        self._torch_stream = torch.cuda.ExternalStream(self.stream.handle)
        self._preprocess = CudaPreprocessor(SPEC)
        self.input = torch.zeros(SPEC.input_shape, device="cuda")
        self._graph, self.output = self._capture()
        rows = self.output.shape[1]
        self._decoder = CudaDecoder(head_layout("yolox", rows, len(CLASSES), grid_levels()))
        self.threshold = 0.5
        self._events = [Event(timed=True) for _ in range(len(STAGES) + 1)]

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        torch.manual_seed(0)
        model = NanoDetector(ModelConfig(CLASSES, SPEC.height, SPEC.width)).eval()
        model = fuse_batch_norm(model).cuda().requires_grad_(False)

        def forward() -> torch.Tensor:
            with torch.autocast("cuda", torch.float16):
                return activate(model(self.input)).float().contiguous()

        torch.cuda.synchronize()
        with torch.cuda.stream(self._torch_stream):
            for _ in range(3):
                forward()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._torch_stream):
            output = forward()
        return graph, output

    def run(self, place: Callable[[], AbstractContextManager[int]]) -> dict[str, float]:
        """Take one frame through; returns the time of each stage and of the whole in ms.

        ``place`` queues the upload and gives the frame's device address while it may be read.
        """
        began = time.perf_counter_ns()
        marks = iter(self._events)
        next(marks).record(self.stream.handle)
        with place() as pointer:
            next(marks).record(self.stream.handle)
            region = DeviceRegion(pointer, FULL_HD)
            (letterbox,) = self._preprocess.launch(
                [region], self.input.data_ptr(), self.stream.handle
            )
        next(marks).record(self.stream.handle)
        with torch.cuda.stream(self._torch_stream):
            self._graph.replay()
        next(marks).record(self.stream.handle)
        handle = self.stream.handle
        self._decoder.launch(self.output.data_ptr(), letterbox, self.threshold, NMS_IOU, handle)
        next(marks).record(self.stream.handle)
        self.stream.synchronize()
        self.found = self._decoder.collect()
        whole = (time.perf_counter_ns() - began) / 1e6
        pairs = zip(self._events, self._events[1:], strict=False)
        stages = [after.elapsed_ms(before) for before, after in pairs]
        return {**dict(zip(STAGES, stages, strict=True)), "whole": whole}

    def set_threshold(self) -> None:
        """Let about ``CANDIDATES`` of the last output pass, and prove the kernels on it."""
        output = self.output.cpu().numpy()
        scores = (output[0, :, 4:5] * output[0, :, 5:]).max(axis=1)
        self.threshold = float(np.sort(scores)[-CANDIDATES])

    def check_against_cpu(self) -> dict[str, Any]:
        """Compare the last detections with the CPU's decoding of the same output."""
        found = decode_yolox([self.output.cpu().numpy()], SPEC, np.float32(self.threshold))
        source = (FULL_HD.height, FULL_HD.width)
        letterbox = Letterbox.fit(source, (SPEC.height, SPEC.width), SPEC.pad_align)
        found = replace(found, boxes_xyxy=letterbox.to_source(found.boxes_xyxy))
        found = found.select(box_areas(found.boxes_xyxy) > 0)
        order = np.argsort(-found.scores, kind="stable")
        found = found.select(order)
        kept = suppress(found, NMS_IOU)[:300]
        same = np.array_equal(self.found.class_ids, found.class_ids[kept])
        apart = np.abs(self.found.boxes_xyxy - found.boxes_xyxy[kept]).max() if same else np.inf
        if not same or apart > 1e-2 or self.found.candidates != len(order):
            raise SystemExit(
                f"decoding differs: {self.found.candidates} candidates and {len(kept)} kept on the "
                f"GPU, {len(order)} candidates on the CPU; same classes: {same}; {apart} px apart"
            )
        return {"candidates": len(order), "kept": len(kept), "worst_box_px": float(apart)}


def grid_levels() -> list[GridLevel]:
    """The levels of ``SPEC``'s YOLOX grid."""
    levels, first = [], 0
    for stride in STRIDES:
        levels.append(GridLevel(stride, SPEC.width // stride, first))
        first += (SPEC.width // stride) * (SPEC.height // stride)
    return levels


def measure_detector_path(device: Device) -> dict[str, Any]:
    """From pinned frames directly, and through the ring (which adds its copy into staging)."""
    path = Path(device)
    with ExitStack() as stack:
        size = FULL_HD.size_bytes
        frames = [stack.enter_context(pinned_copy(random_frame(seed))) for seed in range(8)]
        target = stack.enter_context(device_memory(size))
        spec = RingSpec("path", slots=4, slot_bytes=size)
        ring = stack.enter_context(FrameRing.create(spec, transport_named("cuda_in_process")))
        turn = iter(range(1, 10**9))

        @contextmanager
        def direct() -> Iterator[int]:
            upload(target, frames[next(turn) % 8], path.stream)
            yield target

        @contextmanager
        def through_ring() -> Iterator[int]:
            sequence = next(turn)
            ring.write(frames[sequence % 8], info(sequence))
            lease = ring.acquire_newest()
            assert lease is not None
            with lease:
                yield lease.on_device(path.stream.handle).pointer

        path.run(direct)
        path.set_threshold()
        path.run(direct)
        equality = path.check_against_cpu()
        pinned, ring_path = _measure(path, direct), _measure(path, through_ring)
    return {
        **pinned,
        "through_ring": ring_path,
        "equality": equality,
        "network": "demo detector architecture, 640x480, FP16 torch, CUDA graph, random weights",
        "frame": "1920x1080 rgb8",
    }


def _measure(path: Path, place: Callable[[], AbstractContextManager[int]]) -> dict[str, Any]:
    gc.collect()
    gc.disable()
    try:
        rows = [path.run(place) for _ in range(WARM_UP + RUNS)][WARM_UP:]
    finally:
        gc.enable()
    stages = {stage: percentiles([row[stage] for row in rows]) for stage in STAGES}
    return {**percentiles([row["whole"] for row in rows]), "stages": stages}
