"""A GPU made of host memory, whose kernels are the real sources compiled for the CPU.

Device addresses are host addresses; what is queued on a stream happens at once. ``EmulatedRing`` is
frame memory that only a "GPU" may read, which notes who waited for what.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from kernel_emulation import by_reference, compile_for_cpu

from edge_perception.core.letterbox import Letterbox
from edge_perception.core.manifest import Preprocessing
from edge_perception.errors import FrameError
from edge_perception.gpu.head_layout import (
    DeviceDetections,
    HeadLayoutArgument,
    PlacementArgument,
)
from edge_perception.gpu.host_memory import HostMemory, InProcessTransport
from edge_perception.gpu.ledger import ReadDone
from edge_perception.gpu.preprocess_cuda import DeviceRegion, regions_argument, target_argument

KEPT = np.dtype([("box", np.float32, 4), ("score", np.float32), ("class_id", np.int32)])

FILL = """
extern "C" void fill(const Regions* regions, const Target* target) {
  const Dim grid = {(target->width + 31) / 32, (target->height + 7) / 8, target->batch};
  const Dim block = {32, 8, 1};
  FOR_EACH_THREAD(grid, block) preprocess(*regions, *target);
}
"""
FIND = """
extern "C" void find(const float* output, const HeadLayout* layout, const Placement* placement,
                     float threshold, float iou, int max_kept, Kept* kept, Counts* counts) {
  static Candidate candidates[kMaxCandidates], ranked[kMaxCandidates];
  const Dim anchors = {(layout->anchors + 127) / 128, 1, 1}, block = {128, 1, 1};
  FOR_EACH_THREAD(anchors, block)
    decode(output, *layout, *placement, threshold, candidates, counts);
  const Dim ranks = {kMaxCandidates / 128, 1, 1};
  FOR_EACH_THREAD(ranks, block) rank(candidates, counts, ranked);
  const Dim one = {1, 1, 1};
  FOR_EACH_THREAD(one, one) suppress(ranked, iou, max_kept, kept, counts);
}
"""


@cache
def _library(source: str, launcher: str) -> ctypes.CDLL:
    return compile_for_cpu(source, launcher, Path(tempfile.mkdtemp()))


class EmulatedPreprocessor:
    def __init__(self, spec: Preprocessing) -> None:
        self.spec = spec
        self.launches = 0

    def launch(
        self, regions: Sequence[DeviceRegion], tensor: int, stream: int
    ) -> Sequence[Letterbox]:
        self.launches += 1
        size = (self.spec.height, self.spec.width)
        boxes = [
            Letterbox.fit((r.format.height, r.format.width), size, self.spec.pad_align)
            for r in regions
        ]
        target = target_argument(self.spec, tensor, len(regions))
        _library("preprocess.cu", FILL).fill(
            *by_reference(regions_argument(regions, boxes), target)
        )
        return boxes


class EmulatedDecoder:
    def __init__(self, layout: HeadLayoutArgument, max_kept: int) -> None:
        self._layout = layout
        self._kept = np.zeros(max_kept, KEPT)
        self._counts = np.zeros(2, np.int32)
        self.launches = 0

    def launch(
        self,
        output: int,
        letterbox: Letterbox,
        score_threshold: float,
        nms_iou: float,
        stream: int,
    ) -> None:
        self.launches += 1
        self._counts[:] = 0
        _library("detections.cu", FIND).find(
            ctypes.c_void_p(output),
            *by_reference(self._layout, PlacementArgument.of(letterbox)),
            ctypes.c_float(score_threshold),
            ctypes.c_float(nms_iou),
            len(self._kept),
            self._kept.ctypes.data_as(ctypes.c_void_p),
            self._counts.ctypes.data_as(ctypes.c_void_p),
        )

    def collect(self) -> DeviceDetections:
        candidates, kept = self._counts.tolist()
        rows = self._kept[:kept]
        boxes, scores, class_ids = (rows[name].copy() for name in ("box", "score", "class_id"))
        return DeviceDetections(boxes, scores, class_ids, candidates)


class EmulatedClock:
    def __init__(self, marks: int) -> None:
        self._marks_ns = [0] * marks

    def mark(self, index: int) -> None:
        self._marks_ns[index] = time.monotonic_ns()

    def elapsed_ms(self) -> Sequence[float]:
        return (np.diff(self._marks_ns) / 1e6).tolist()


class EmulatedRing(HostMemory):
    """Slots that the host may only copy from; ``calls`` notes what streams were told."""

    dlpack_device = (2, 0)
    calls: list[tuple[str, int]]

    def fill_on_device(
        self, slot: int, read_done: Sequence[ReadDone], enqueue: Callable[[int, int], None]
    ) -> None:
        enqueue(self.device_pointer(slot), 5)

    def host_view(self, slot: int, size_bytes: int) -> np.ndarray:
        raise FrameError("the frame lives in device memory only")

    def download(self, slot: int, size_bytes: int) -> np.ndarray:
        self.calls.append(("download", slot))
        return self._view(slot, size_bytes).copy()

    def device_pointer(self, slot: int) -> int:
        return self._view(slot, 0).ctypes.data

    def wait_written(self, slot: int, stream: int) -> None:
        self.calls.append(("wait_written", stream))

    def record_read(self, slot: int, streams: Iterable[int]) -> ReadDone:
        self.calls.extend(("record_read", stream) for stream in streams)
        return ()


class EmulatedTransport(InProcessTransport):
    """Frames in the memory of a "GPU", for threads of this process."""

    name = "cuda_emulated"
    device_memory = True

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def allocate(self, slots: int, slot_bytes: int) -> HostMemory:
        memory = super().allocate(slots, slot_bytes)
        memory.__class__ = EmulatedRing
        memory.calls = self.calls  # type: ignore[attr-defined]
        return memory
