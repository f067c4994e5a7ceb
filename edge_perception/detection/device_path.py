"""From a frame in device memory to boxes on the host, on one stream, without a copy in between.

The stream waits for the frame's upload, fills the engine's input from the ring's slot, runs the
engine, decodes and suppresses where the head is raw, and brings a few kilobytes to the host, for
which the CPU waits once. What happens where is said by the manifest alone: its ``preprocessing``
the kernel that fills the input, its ``head`` whether the output is decoded here (those of
``DECODABLE_HEADS`` with float32 outputs) or comes to the host (heads that need no suppression,
whose outputs are small).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from edge_perception.backends.base import Tensor
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.letterbox import Letterbox
from edge_perception.core.manifest import Manifest, Preprocessing
from edge_perception.detection.decoders import grid_strides
from edge_perception.detection.device_backend import DeviceBackend, DeviceWorkspace
from edge_perception.gpu.head_layout import (
    DECODABLE_HEADS,
    DeviceDetections,
    GridLevel,
    HeadLayoutArgument,
    head_layout,
)
from edge_perception.gpu.lease import FrameLease
from edge_perception.gpu.preprocess_cuda import DeviceRegion

MAX_KEPT = 1024
"""Boxes that come to the host. Of a frame with more, the outputs do."""

DEVICE_STAGES = ("upload", "fill", "infer", "decode")
"""What the stream does, in order; "upload" is how long it waits for the frame to be complete."""


class Filling(Protocol):
    """What is asked of the kernel before the engine; ``gpu.CudaPreprocessor`` is one."""

    def launch(
        self, regions: Sequence[DeviceRegion], tensor: int, stream: int
    ) -> Sequence[Letterbox]:
        """Queue the filling of a tensor."""


class Decoding(Protocol):
    """What is asked of the kernels behind it; ``gpu.CudaDecoder`` is one."""

    def launch(
        self,
        output: int,
        letterbox: Letterbox,
        score_threshold: float,
        nms_iou: float,
        stream: int,
    ) -> None:
        """Queue decoding, suppression and the copy to the host."""

    def collect(self) -> DeviceDetections:
        """Return what came to the host."""


class Clock(Protocol):
    """What is asked of the stream's clock; ``gpu.workspace.StageClock`` is one."""

    def mark(self, index: int) -> None:
        """Mark the end of the work queued so far."""

    def elapsed_ms(self) -> Sequence[float]:
        """Return the times from each mark to the next."""


class KernelWorkspace(DeviceWorkspace, Protocol):
    """A workspace that also makes kernels; ``gpu.workspace.Workspace`` is one."""

    def preprocessor(self, spec: Preprocessing) -> Filling:
        """Return the kernel that fills input tensors."""

    def decoder(self, layout: HeadLayoutArgument, max_kept: int) -> Decoding:
        """Return the kernels that turn a raw head's output into boxes."""

    def stage_clock(self, marks: int) -> Clock:
        """Return a clock of the stream's work."""


@dataclass(frozen=True)
class DeviceResult:
    """How the frame went in, what was found, and when inference ended (``time.monotonic_ns``).

    ``found`` is None where the head is decoded on the host. ``stages_ms`` are the GPU's own times
    of ``DEVICE_STAGES``.
    """

    letterbox: Letterbox
    found: DeviceDetections | None
    inferred_ns: int
    stages_ms: Mapping[str, float]


class DevicePath:
    """The kernels around one engine; owned by the thread that owns the backend."""

    def __init__(self, manifest: Manifest, backend: DeviceBackend) -> None:
        """Compile and allocate; the backend's workspace gives all of it back.

        Raises:
            CudaError: the compiler refused, or the GPU's memory is full.
        """
        workspace = cast(KernelWorkspace, backend.workspace)
        backend.make_ready()
        self._backend, self._stream = backend, workspace.stream
        self._preprocess = workspace.preprocessor(manifest.preprocessing)
        layout = layout_of(manifest)
        self._decoder = None if layout is None else workspace.decoder(layout, MAX_KEPT)
        self._clock = workspace.stage_clock(len(DEVICE_STAGES) + 1)
        self._input = backend.address(backend.inputs[0].name)
        self._output = backend.address(backend.outputs[0].name)

    def run(
        self, lease: FrameLease, score_threshold: float, nms_iou: float, recorder: SpanRecorder
    ) -> DeviceResult:
        """Take one frame through; ``recorder`` gets the spans "preprocess" and "infer".

        Raises:
            ImageError: the kernel cannot read such an image.
            FrameError: the lease was released, or the GPU cannot read the frame.
            EngineError, CudaError: the GPU failed.
        """
        began_ns = time.monotonic_ns()
        self._backend.make_ready()
        self._clock.mark(0)
        image = lease.on_device(self._stream)
        self._clock.mark(1)
        region = DeviceRegion(image.pointer, image.format)
        (letterbox,) = self._preprocess.launch([region], self._input, self._stream)
        self._clock.mark(2)
        self._backend.enqueue()
        self._clock.mark(3)
        if self._decoder is not None:
            args = (self._output, letterbox, score_threshold, nms_iou, self._stream)
            self._decoder.launch(*args)
        self._clock.mark(4)
        self._backend.workspace.synchronize()
        stages_ms = dict(zip(DEVICE_STAGES, self._clock.elapsed_ms(), strict=True))
        inferred_ns = _tell_stages(recorder, began_ns, stages_ms)
        found = None if self._decoder is None else self._decoder.collect()
        return DeviceResult(letterbox, found, inferred_ns, stages_ms)

    def outputs(self) -> Sequence[Tensor]:
        """Bring the last run's raw outputs to the host."""
        return self._backend.download()


def _tell_stages(recorder: SpanRecorder, began_ns: int, stages_ms: Mapping[str, float]) -> int:
    """Lay the GPU's times back from now; waiting and launching count as preprocessing."""
    inferred_ns = time.monotonic_ns() - round(stages_ms["decode"] * 1e6)
    filled_ns = inferred_ns - round(stages_ms["infer"] * 1e6)
    recorder.add("preprocess", began_ns, filled_ns)
    recorder.add("infer", filled_ns, inferred_ns)
    return inferred_ns


def layout_of(manifest: Manifest) -> HeadLayoutArgument | None:
    """Lay a head out for the kernels; None where its output is decoded on the host."""
    output, spec = manifest.outputs[0], manifest.preprocessing
    if manifest.head not in DECODABLE_HEADS or output.dtype != "float32":
        return None
    anchors = output.shape[2 if manifest.head == "yolov8" else 1]
    levels: list[GridLevel] = []
    first = 0
    for stride in (
        grid_strides(spec.height, spec.width, anchors) if manifest.head == "yolox" else ()
    ):
        levels.append(GridLevel(stride, spec.width // stride, first))
        first += (spec.width // stride) * (spec.height // stride)
    return head_layout(manifest.head, anchors, len(manifest.class_names), levels)
