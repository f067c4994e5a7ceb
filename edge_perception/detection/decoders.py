"""From raw network outputs to candidate boxes, one function a head family.

Each decoder gets the network's outputs, the manifest's preprocessing and the score threshold, and
returns the candidates at or above it in network pixels. Comparisons are written so that NaN never
passes. Most of the N anchors are background: every decoder first finds the few that count, and
computes on those alone.

Sources: Ultralytics' export documentation (yolov5, yolov8, end-to-end), YOLOX's ONNX demo (yolox),
``post_process_object_detection`` of transformers (rtdetr, detr).
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


Outputs = Sequence[Float32Array]
Decoder = Callable[[Outputs, Preprocessing, float], Candidates]


def decode_yolov8(outputs: Outputs, _: Preprocessing, threshold: float) -> Candidates:
    """YOLOv8 and YOLO11, raw: ``(1, 4 + C, N)`` of centre, size and C class scores."""
    boxes, class_scores = outputs[0][0, :4], outputs[0][0, 4:]
    best = class_scores.max(axis=0)
    kept = np.flatnonzero(best >= threshold)
    class_ids = class_scores[:, kept].argmax(axis=0)
    return Candidates(cxcywh_to_xyxy(boxes[:, kept].T), best[kept], class_ids.astype(np.int32))


def decode_yolov5(outputs: Outputs, _: Preprocessing, threshold: float) -> Candidates:
    """YOLOv5, raw: ``(1, N, 5 + C)`` of centre, size, objectness and C class scores."""
    rows = outputs[0][0]
    kept, scores, class_ids = _objectness_times_class(rows, threshold)
    return Candidates(cxcywh_to_xyxy(rows[kept, :4]), scores, class_ids)


def decode_yolox(outputs: Outputs, preprocessing: Preprocessing, threshold: float) -> Candidates:
    """YOLOX, raw grid: ``(1, N, 5 + C)``; centres as offsets in cells, sizes as log of strides."""
    rows = outputs[0][0]
    cells, strides = _grid(preprocessing.height, preprocessing.width, len(rows))
    kept, scores, class_ids = _objectness_times_class(rows, threshold)
    stride = strides[kept, None]
    centres = (rows[kept, :2] + cells[kept]) * stride
    with np.errstate(over="ignore"):  # an absurd log size becomes inf and is dropped later
        sizes = np.exp(rows[kept, 2:4]) * stride
    return Candidates(cxcywh_to_xyxy(np.concatenate([centres, sizes], axis=1)), scores, class_ids)


def decode_end_to_end(outputs: Outputs, _: Preprocessing, threshold: float) -> Candidates:
    """YOLOv10 and YOLO26: ``(1, N, 6)`` of corners, score, class; already suppressed."""
    kept = outputs[0][0, outputs[0][0, :, 4] >= threshold]
    return Candidates(kept[:, :4], kept[:, 4], _to_class_ids(kept[:, 5]))


def decode_rtdetr(outputs: Outputs, preprocessing: Preprocessing, threshold: float) -> Candidates:
    """RT-DETR and Deformable DETR: logits ``(1, N, C)``, boxes ``(1, N, 4)``, a sigmoid a class.

    A query may stand for several classes; the N best pairs of query and class are told.
    """
    scores = _sigmoid(outputs[0][0])
    queries, class_ids = np.nonzero(scores >= threshold)
    best = np.argsort(-scores[queries, class_ids], kind="stable")[: len(scores)]
    queries, class_ids = queries[best], class_ids[best]
    boxes = _from_normalised(outputs[1][0, queries], preprocessing)
    return Candidates(boxes, scores[queries, class_ids], class_ids.astype(np.int32))


def decode_detr(outputs: Outputs, preprocessing: Preprocessing, threshold: float) -> Candidates:
    """DETR and YOLOS: logits ``(1, N, C + 1)``, boxes ``(1, N, 4)``; the last class is "nothing".

    A query stands for its best class.
    """
    scores = softmax(outputs[0][0])[:, :-1]
    best = scores.max(axis=1)
    kept = np.flatnonzero(best >= threshold)
    boxes = _from_normalised(outputs[1][0, kept], preprocessing)
    return Candidates(boxes, best[kept], scores[kept].argmax(axis=1).astype(np.int32))


DECODERS: Mapping[str, Decoder] = {
    "yolov5": decode_yolov5,
    "yolov8": decode_yolov8,
    "yolox": decode_yolox,
    "yolo_end_to_end": decode_end_to_end,
    "rtdetr": decode_rtdetr,
    "detr": decode_detr,
}
# Heads whose boxes need no suppression.
SUPPRESSED_HEADS = frozenset({"yolo_end_to_end", "rtdetr", "detr"})

Shape = tuple[int | None, ...]


def check_head(manifest: Manifest) -> None:
    """Raise ``ManifestError`` unless the outputs have room for exactly the manifest's classes.

    Outputs beyond those that the head reads may have any shape.
    """
    if manifest.head not in DECODERS:
        raise ManifestError(
            f"model {manifest.name!r} finds no boxes",
            expected=f"a head of {', '.join(DECODERS)}",
            got=manifest.head,
        )
    expected = output_shapes(manifest)
    found = tuple(spec.shape for spec in manifest.outputs[: len(expected)])
    if len(found) < len(expected) or not all(map(_fits, expected, found)):
        raise ManifestError(
            f"head {manifest.head!r} with {len(manifest.class_names)} class names"
            " does not fit the model's output",
            expected=f"shapes {expected} with any number for None",
            got=found,
        )
    if manifest.head == "yolox":
        _grid(manifest.preprocessing.height, manifest.preprocessing.width, found[0][1])
    if len({shape[1] for shape in found}) > 1:
        raise ManifestError("logits and boxes are of different numbers of queries", got=found)


def output_shapes(manifest: Manifest) -> tuple[Shape, ...]:
    """Return what the head's decoder reads, in the order of the outputs; None for any number."""
    classes = len(manifest.class_names)
    match manifest.head:
        case "yolov8":
            return ((1, 4 + classes, None),)
        case "yolo_end_to_end":
            return ((1, None, 6),)
        case "rtdetr":
            return ((1, None, classes), (1, None, 4))
        case "detr":
            return ((1, None, classes + 1), (1, None, 4))
        case _:
            return ((1, None, 5 + classes),)


def _fits(expected: Shape, shape: tuple[int, ...]) -> bool:
    return len(expected) == len(shape) and all(
        wanted in (None, side) for wanted, side in zip(expected, shape)
    )


def softmax(logits: Float32Array) -> Float32Array:
    """Return probabilities along the last axis; NaN where a row holds no finite maximum."""
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares: Float32Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _sigmoid(logits: Float32Array) -> Float32Array:
    with np.errstate(over="ignore"):  # far below zero exp becomes inf, and the score 0
        scores: Float32Array = np.reciprocal(np.exp(-logits) + np.float32(1))
    return scores


def _from_normalised(boxes_cxcywh: Float32Array, preprocessing: Preprocessing) -> Float32Array:
    """Turn centre and size, as shares of the network's input, into corners in its pixels."""
    sides = np.array([preprocessing.width, preprocessing.height] * 2, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return cxcywh_to_xyxy(boxes_cxcywh) * sides


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
    strides = grid_strides(height, width, anchors)
    sizes = [(height // stride, width // stride) for stride in strides]
    return _cells(sizes), np.repeat(strides, [r * c for r, c in sizes]).astype(np.float32)


def grid_strides(height: int, width: int, anchors: int) -> tuple[int, ...]:
    """Return the strides of the levels of YOLOX's grid, finest first.

    Raises:
        ManifestError: no strides that are in use give so many anchors.
    """
    for strides in ((8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (4, 8, 16)):
        if sum((height // stride) * (width // stride) for stride in strides) == anchors:
            return strides
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
