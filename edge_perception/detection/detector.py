"""One image in, detections in source pixels out, with the time each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from edge_perception.backends.base import Backend
from edge_perception.backends.engine_store import Progress, tell_nobody
from edge_perception.backends.store import load_manifest
from edge_perception.core.boxes import box_areas
from edge_perception.core.detections import Detections
from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.letterbox import Letterbox
from edge_perception.core.manifest import Manifest
from edge_perception.detection.decoders import (
    DECODERS,
    SUPPRESSED_HEADS,
    Candidates,
    Outputs,
    check_head,
)
from edge_perception.detection.device_backend import DeviceBackend
from edge_perception.detection.device_path import MAX_KEPT, DevicePath
from edge_perception.detection.network import Network
from edge_perception.detection.runtimes import RuntimeChoice, open_backend
from edge_perception.gpu.head_layout import DeviceDetections
from edge_perception.gpu.lease import FrameLease

# More candidates than this are junk of a threshold near 0; suppression is quadratic in them.
_MAX_CANDIDATES = 5000

Model = TypeVar("Model")


@dataclass(frozen=True)
class DetectionSettings:
    """What may change between two images.

    ``score_threshold`` and ``nms_iou`` lie in 0..1; ``class_ids`` None keeps every class;
    ``max_detections`` keeps the best.
    """

    score_threshold: float = 0.3
    nms_iou: float = 0.65
    class_ids: frozenset[int] | None = None
    max_detections: int = 300


class Detector(Network):
    """A detector of any head family that the manifest may name; owned by one thread."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        """Check that manifest and model agree.

        Raises:
            ManifestError: names, shapes or dtypes of tensors differ, or the head does not fit.
        """
        super().__init__(manifest, backend)
        check_head(manifest)
        # Frames that lie on the GPU go to an engine without coming to the host.
        self._device_path = (
            DevicePath(manifest, backend) if isinstance(backend, DeviceBackend) else None
        )

    @property
    def reads_device_frames(self) -> bool:
        """Whether a frame in device memory is read there, and not copied to the host first."""
        return self._device_path is not None

    def detect_frame(
        self,
        lease: FrameLease,
        settings: DetectionSettings,
        recorder: SpanRecorder,
        after_inference: Callable[[], None] = lambda: None,
    ) -> Detections:
        """Find objects in a frame of a ring, where it lies if the model can read it there.

        Spans and errors are those of ``detect``; times on the GPU are the GPU's own. The lease
        must be held until the return.

        Raises:
            FrameError: the lease was released.
            CudaError: the GPU failed.
        """
        if self._device_path is None or not lease.on_gpu:
            pixels = lease.to_host()
            return self.detect(pixels, lease.info.format, settings, recorder, after_inference)
        result = self._device_path.run(lease, settings.score_threshold, settings.nms_iou, recorder)
        after_inference()
        found = result.found
        if found is None or not _enough(found, settings):
            detections = self._postprocess(self._device_path.outputs(), result.letterbox, settings)
        else:
            detections = _filter(found, settings)
        recorder.add("postprocess", result.inferred_ns, time.monotonic_ns())
        return detections

    def detect(
        self,
        pixels: UInt8Array,
        image_format: ImageFormat,
        settings: DetectionSettings,
        recorder: SpanRecorder,
        after_inference: Callable[[], None] = lambda: None,
    ) -> Detections:
        """Find objects.

        Args:
            pixels: uint8 ``(n,)``, the bytes of the image as ``image_format`` says.
            image_format: encoding and geometry.
            settings: thresholds and filters for this image.
            recorder: gets the spans "preprocess", "infer" and "postprocess".
            after_inference: called once the model is free again; must return at once.

        Raises:
            ImageError: the bytes do not fit the format.
            EngineError: the model failed.
        """
        outputs, letterbox = self._run(pixels, image_format, recorder, after_inference)
        with recorder.stage("postprocess"):
            return self._postprocess(outputs, letterbox, settings)

    def _postprocess(
        self, outputs: Outputs, letterbox: Letterbox, settings: DetectionSettings
    ) -> Detections:
        decode = DECODERS[self.manifest.head]
        found = decode(outputs, self.manifest.preprocessing, settings.score_threshold)
        found = found.select(_sound(found, len(self.manifest.class_names)))
        if settings.class_ids is not None:
            found = found.select(np.isin(found.class_ids, list(settings.class_ids)))
        # In source pixels from here on: what lies outside the image suppresses nothing inside.
        found = replace(found, boxes_xyxy=letterbox.to_source(found.boxes_xyxy))
        found = found.select(box_areas(found.boxes_xyxy) > 0)
        found = found.select(np.argsort(-found.scores, kind="stable")[:_MAX_CANDIDATES])
        if self.manifest.head not in SUPPRESSED_HEADS:
            found = found.select(suppress(found, settings.nms_iou))
        best = found.select(np.s_[: settings.max_detections])
        return Detections(best.boxes_xyxy, np.minimum(best.scores, 1), best.class_ids)


def _enough(found: DeviceDetections, settings: DetectionSettings) -> bool:
    """Tell whether the kernels kept all that the settings can ask for."""
    if len(found.scores) < MAX_KEPT:
        return found.complete
    return found.complete and settings.class_ids is None and settings.max_detections <= MAX_KEPT


def _filter(found: DeviceDetections, settings: DetectionSettings) -> Detections:
    """Leave the classes asked for, and the best; classes do not suppress one another."""
    best = Candidates(found.boxes_xyxy, found.scores, found.class_ids)
    best = best.select(best.scores > 0)  # as OpenCV's suppression does on the CPU
    if settings.class_ids is not None:
        best = best.select(np.isin(best.class_ids, list(settings.class_ids)))
    best = best.select(np.s_[: settings.max_detections])
    return Detections(best.boxes_xyxy, np.minimum(best.scores, 1), best.class_ids)


def suppress(found: Candidates, nms_iou: float) -> npt.NDArray[np.intp]:
    """Greedy non-maximum suppression within each class.

    Boxes must not be negative: OpenCV keeps the classes apart by moving each class's boxes past
    the largest coordinate. Returns the kept indices, rising.
    """
    boxes = found.boxes_xyxy
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(
        corner_and_size.tolist(), found.scores.tolist(), found.class_ids.tolist(), 0.0, nms_iou
    )
    return np.sort(np.asarray(kept, np.intp).reshape(-1))


def _sound(found: Candidates, class_count: int) -> npt.NDArray[np.bool_]:
    """Mask of the candidates with finite, ordered boxes and a class that exists."""
    boxes = found.boxes_xyxy
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(found.scores)
    with np.errstate(invalid="ignore"):  # NaN compares false, which is what is wanted
        ordered = (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)
    known = (found.class_ids >= 0) & (found.class_ids < class_count)
    sound: npt.NDArray[np.bool_] = finite & ordered & known
    return sound


def open_detector(manifest_path: Path, threads: int = 0) -> Detector:
    """Load the model that a manifest names on the CPU, and warm it up. The caller closes it.

    Raises:
        ManifestError: the manifest is malformed or disagrees with its model.
        EngineError: the model cannot be loaded.
    """
    return open_detector_by(manifest_path, RuntimeChoice(threads=threads))


def open_detector_by(
    manifest_path: Path, choice: RuntimeChoice, on_progress: Progress = tell_nobody
) -> Detector:
    """Load the detector that a manifest names in the runtime of choice; see ``open_by``."""
    return open_by(Detector, manifest_path, choice, on_progress)


def open_by(
    make: Callable[[Manifest, Backend], Model],
    manifest_path: Path,
    choice: RuntimeChoice,
    on_progress: Progress = tell_nobody,
) -> Model:
    """Load the model that a manifest names in the runtime of choice. The caller closes it.

    Args:
        make: turns manifest and backend into what is returned, which then owns the backend.
        manifest_path: of the model.
        choice: of the runtime, and whether it may build an engine.
        on_progress: told how far a build is.

    Raises:
        ManifestError: the manifest is malformed or disagrees with its model.
        EngineError: the model cannot be loaded, or its engine is missing and not to be built.
        CudaError: a GPU was asked for that is not there or full.
    """
    manifest, model = load_manifest(manifest_path)
    backend = open_backend(manifest_path, manifest, model, choice, on_progress)
    try:
        return make(manifest, backend)
    except BaseException:
        backend.close()
        raise
