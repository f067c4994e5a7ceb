"""From raw network outputs to candidate boxes, one function a head family.

Each decoder gets the network's output, the manifest's preprocessing and the score threshold, and
returns the candidates at or above it in network pixels. Comparisons are written so that NaN never
passes. Most of the N anchors are background: every decoder first finds the few that count, and
computes on those alone.

Sources: Ultralytics' export documentation (yolov5, yolov8, end-to-end), YOLOX's ONNX demo (yolox).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edge_perception.core.boxes import cxcywh_to_xyxy
from edge_perception.core.detections import Float32Array, Int32Array
from edge_perception.core.manifest import Manifest, Preprocessing
from edge_perception.errors import ManifestError


@dataclass(frozen=True)
class Candidates:
    """Boxes before suppression, not yet to be trusted: ``(N, 4)``, ``(N,)``, ``(N,)``.

    Decoders give them in network pixels.
    """

    boxes_xyxy: Float32Array
    scores: Float32Array
    class_ids: Int32Array

    def select(self, index: npt.NDArray[np.bool_] | npt.NDArray[np.intp] | slice) -> Candidates:
        """Return the candidates that a mask, an index array or a slice names."""
        return Candidates(self.boxes_xyxy[index], self.scores[index], self.class_ids[index])


Decoder = Callable[[Float32Array, Preprocessing, float], Candidates]


def decode_yolov8(output: Float32Array, _: Preprocessing, threshold: float) -> Candidates:
    """YOLOv8 and YOLO11, raw: ``(1, 4 + C, N)`` of centre, size and C class scores."""
    boxes, class_scores = output[0, :4], output[0, 4:]
    best = class_scores.max(axis=0)
    kept = np.flatnonzero(best >= threshold)
    class_ids = class_scores[:, kept].argmax(axis=0)
    return Candidates(cxcywh_to_xyxy(boxes[:, kept].T), best[kept], class_ids.astype(np.int32))


def decode_yolov5(output: Float32Array, _: Preprocessing, threshold: float) -> Candidates:
    """YOLOv5, raw: ``(1, N, 5 + C)`` of centre, size, objectness and C class scores."""
    kept, scores, class_ids = _objectness_times_class(output[0], threshold)
    return Candidates(cxcywh_to_xyxy(output[0, kept, :4]), scores, class_ids)


def decode_yolox(
    output: Float32Array, preprocessing: Preprocessing, threshold: float
) -> Candidates:
    """YOLOX, raw grid: ``(1, N, 5 + C)``; centres as offsets in cells, sizes as log of strides."""
    cells, strides = _grid(preprocessing.height, preprocessing.width, output.shape[1])
    kept, scores, class_ids = _objectness_times_class(output[0], threshold)
    stride = strides[kept, None]
    centres = (output[0, kept, :2] + cells[kept]) * stride
    with np.errstate(over="ignore"):  # an absurd log size becomes inf and is dropped later
        sizes = np.exp(output[0, kept, 2:4]) * stride
    return Candidates(cxcywh_to_xyxy(np.concatenate([centres, sizes], axis=1)), scores, class_ids)


def decode_end_to_end(output: Float32Array, _: Preprocessing, threshold: float) -> Candidates:
    """YOLOv10 and YOLO26: ``(1, N, 6)`` of corners, score, class; already suppressed."""
    kept = output[0, output[0, :, 4] >= threshold]
    return Candidates(kept[:, :4], kept[:, 4], _to_class_ids(kept[:, 5]))


DECODERS: Mapping[str, Decoder] = {
    "yolov5": decode_yolov5,
    "yolov8": decode_yolov8,
    "yolox": decode_yolox,
    "yolo_end_to_end": decode_end_to_end,
}
# Heads whose boxes need no suppression.
SUPPRESSED_HEADS = frozenset({"yolo_end_to_end"})


def check_head(manifest: Manifest) -> None:
    """Raise ``ManifestError`` unless the output has room for exactly the manifest's classes."""
    expected = _output_shape(manifest)
    shape = manifest.outputs[0].shape
    fits = len(shape) == 3 and all(e in (None, s) for e, s in zip(expected, shape, strict=True))
    if not fits:
        raise ManifestError(
            f"head {manifest.head!r} with {len(manifest.class_names)} class names"
            " does not fit the model's output",
            expected=f"shape {expected} with any number for None",
            got=shape,
        )
    if manifest.head == "yolox":
        _grid(manifest.preprocessing.height, manifest.preprocessing.width, shape[1])


def _output_shape(manifest: Manifest) -> tuple[int | None, ...]:
    classes = len(manifest.class_names)
    match manifest.head:
        case "yolov8":
            return (1, 4 + classes, None)
        case "yolo_end_to_end":
            return (1, None, 6)
        case _:
            return (1, None, 5 + classes)


def _objectness_times_class(
    rows: Float32Array, threshold: float
) -> tuple[npt.NDArray[np.intp], Float32Array, Int32Array]:
    """Return index, score and class of the rows whose objectness times best class passes."""
    # A class score is at most 1, so an objectness below the threshold can never pass.
    likely = np.flatnonzero(rows[:, 4] >= threshold)
    class_scores = rows[likely, 5:]
    class_ids = class_scores.argmax(axis=1)
    scores = rows[likely, 4] * class_scores[np.arange(len(likely)), class_ids]
    passed = scores >= threshold
    return likely[passed], scores[passed], class_ids[passed].astype(np.int32)


def _to_class_ids(values: Float32Array) -> Int32Array:
    """Class ids sent as floats; those that are no number become -1, which no class has."""
    return np.where(np.isfinite(values), values, -1).astype(np.int32)


@lru_cache(maxsize=8)
def _grid(height: int, width: int, anchors: int) -> tuple[Float32Array, Float32Array]:
    """Return cell coordinates ``(N, 2)`` and strides ``(N,)`` of YOLOX's anchor-free grid."""
    for strides in ((8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (4, 8, 16)):
        sizes = [(height // stride, width // stride) for stride in strides]
        if sum(rows * columns for rows, columns in sizes) == anchors:
            return _cells(sizes), np.repeat(strides, [r * c for r, c in sizes]).astype(np.float32)
    raise ManifestError(
        f"no known set of strides gives {anchors} anchors for a {height}x{width} px input",
        mend="Check preprocessing.height and width against the model's export size.",
    )


def _cells(sizes: Sequence[tuple[int, int]]) -> Float32Array:
    levels = []
    for rows, columns in sizes:
        y, x = np.mgrid[:rows, :columns]
        levels.append(np.stack([x.ravel(), y.ravel()], axis=1))
    return np.concatenate(levels).astype(np.float32)
