"""A detector at a steady rate: the product's path from the frame ring to boxes on the host.

One thread writes frames into the ring at set times, another takes the newest and detects, as the
camera and the detector node do. A frame's latency runs from the moment its pixels are complete in
the ring's staging buffer, its upload still to come, to its boxes on the host. The network is
YOLOX-S's size in FP16 by torch, replayed as a CUDA graph on a stream of high priority, with random
weights: its time does not depend on them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from benchmarks.frames.detector_path import (
    CLASSES,
    HEIGHT,
    NMS_IOU,
    WIDTH,
    TorchEngine,
    network_manifest,
)
from benchmarks.frames.frame_source import FULL_HD, info, random_frame
from benchmarks.vlm.corun_process import Run, serve_runs, sleep_until
from edge_perception.core.frame import FrameInfo
from edge_perception.core.latency import SpanRecorder
from edge_perception.detection.device_backend import DeviceBackend
from edge_perception.detection.device_path import DevicePath
from edge_perception.gpu.cuda import get_device
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import transport_named
from edge_perception.gpu.workspace import Workspace
from training.detector.blocks import ConvBlock
from training.detector.config import ModelConfig
from training.detector.model import NanoDetector, fuse_batch_norm

_SMALL = ModelConfig(
    CLASSES, HEIGHT, WIDTH, widths=(32, 64, 128, 256, 512), depths=(1, 3, 3, 1), head_width=128
)
_CANDIDATES = 200


class SmallEngine(TorchEngine):
    """The same engine around a larger network; convolutions hold FP16, so nothing is cast."""

    def make_model(self) -> torch.nn.Module:
        """The network on the GPU; see ``TorchEngine``."""
        model = fuse_batch_norm(NanoDetector(_SMALL).eval()).cuda().requires_grad_(False)
        for block in model.modules():
            if isinstance(block, ConvBlock):
                block.half()
        return model.to(memory_format=torch.channels_last)


class Detector:
    """The detector of a setting, and its camera. ``on_ready`` and ``on_done`` tell of its turns."""

    def __init__(self) -> None:
        get_device().make_current()
        self._manifest = network_manifest()
        engine = SmallEngine(self._manifest)
        self._backend = DeviceBackend("torch", engine, Workspace(), cuda_graph=False)
        self._path = DevicePath(self._manifest, self._backend)
        spec = RingSpec("corun", slots=4, slot_bytes=FULL_HD.size_bytes)
        self._ring = FrameRing.create(spec, transport_named("cuda_in_process"))
        self._frames = [random_frame(seed) for seed in range(8)]
        self._sequence = self._seen = 0
        self._threshold = 0.5
        self.on_ready: Callable[[], None] = lambda: None
        self.on_done: Callable[[], None] = lambda: None
        for _ in range(50):
            self._write()
            self._detect()
        rows = self._path.outputs()[0][0]
        scores = torch.from_numpy(rows[:, 4:5] * rows[:, 5:]).amax(dim=1)
        self._threshold = float(scores.sort().values[-_CANDIDATES])

    def run(self, rate_hz: float, frames: int) -> Run:
        """Detect on ``frames`` frames that come at ``rate_hz``."""
        self._came, self._ended = threading.Event(), threading.Event()
        latencies: list[float] = []
        first = self._sequence
        thread = threading.Thread(target=self._take_all, args=(latencies,), name="detector")
        thread.start()
        start_s = time.perf_counter() + 0.05
        for number in range(frames):
            sleep_until(start_s + number / rate_hz)
            self._write()
            self.on_ready()
            self._came.set()
        time.sleep(0.05)
        self._ended.set()
        self._came.set()
        thread.join()
        return Run(latencies, self._sequence - first - len(latencies))

    def close(self) -> None:
        """Free everything."""
        self._ring.close()
        self._backend.close()

    def _write(self) -> None:
        """Publish a frame that lies in pinned memory, as a driver or a decoder leaves it there."""
        self._sequence += 1
        if self._sequence <= len(self._frames):
            self._ring.write(self._frames[self._sequence - 1], info(self._sequence))
        else:
            self._ring.write_by(FULL_HD, lambda _: info(self._sequence))

    def _take_all(self, latencies: list[float]) -> None:
        get_device().make_current()
        while not self._ended.is_set():
            self._came.wait()
            self._came.clear()
            frame = self._detect()
            if frame is not None:
                latencies.append((time.monotonic_ns() - frame.decoded_ns) / 1e6)
            self.on_done()

    def _detect(self) -> FrameInfo | None:
        lease = self._ring.acquire_newest(self._seen)
        if lease is None:
            return None
        with lease:
            self._path.run(lease, self._threshold, NMS_IOU, SpanRecorder())
        self._seen = lease.sequence
        return lease.info


def main() -> None:
    """A detector's process; see ``corun_process``."""
    detector = Detector()
    serve_runs(detector.run)
    detector.close()


if __name__ == "__main__":
    main()
