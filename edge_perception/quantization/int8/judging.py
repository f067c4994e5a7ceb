"""What a candidate costs against the float model, on frames that it was not calibrated with.

Two questions need two measures. *Is it good enough?* is asked of the finished model, in points a
user understands: mAP lost where the frames have labels, else the share of detections (score 0.3)
that float and INT8 do not have in common at IoU 0.75. *Which layer hurts most?* is asked of models
with one INT8 layer, which hardly ever lose a detection: there the distance is how far boxes and
scores moved. A model that finds nothing (random weights) or is no detector is judged by its raw
outputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from edge_perception.backends.onnxruntime import OnnxRuntimeBackend
from edge_perception.core.detections import Detections
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.manifest import Manifest
from edge_perception.detection.decoders import DECODERS
from edge_perception.detection.detector import DetectionSettings, Detector
from edge_perception.quantization.int8.collection import open_session
from edge_perception.quantization.int8.frames import input_tensors
from edge_perception.quantization.int8.graph import Array
from edge_perception.trust.accuracy import Pair, collect_matches, mean_ap
from edge_perception.trust.frames import Frame
from edge_perception.trust.matching import Side, compare_frame

SCORE_THRESHOLD = 0.3
SAME_BOX_IOU = 0.75
# Down to here the sweep looks: a score that moves from 0.32 to 0.28 is no lost detection to it.
_SWEEP_THRESHOLD = 0.1
_SCORE_FLOOR = 0.05


class Judge(Protocol):
    """Tells what candidates cost.

    ``unit`` says what ``loss`` counts, ``tolerance`` the most of it that a user accepts who names
    no bound.
    """

    unit: str
    tolerance: float

    def loss(self, model: onnx.ModelProto) -> float:
        """Return the loss of a finished candidate, in points (hundredths)."""

    def distance(self, model: onnx.ModelProto) -> float:
        """Return how far a candidate's answers are from the float model's; 0 for none."""


def make_judge(manifest: Manifest, model: onnx.ModelProto, frames: Sequence[Frame]) -> Judge:
    """Return the judge that fits a float model and frames: by labels, detections or outputs."""
    if manifest.head in DECODERS:
        found = _detect(manifest, model, frames)
        if any((each.scores >= SCORE_THRESHOLD).any() for each in found):
            if all(frame.truth is not None for frame in frames):
                return LabelJudge(manifest, frames, found)
            return DetectionJudge(manifest, frames, found)
    return OutputJudge(manifest, model, frames)


class DetectionJudge:
    """By agreement with the float model's detections."""

    unit = "points of F1 between float's and INT8's detections, score 0.3, IoU 0.75"
    tolerance = 5.0

    def __init__(
        self, manifest: Manifest, frames: Sequence[Frame], found: Sequence[Detections]
    ) -> None:
        self._manifest = manifest
        self._frames = frames
        self._found = found

    def loss(self, model: onnx.ModelProto) -> float:
        """See ``Judge``."""
        kept = told = 0
        for side in self._sides(self._detect(model), SCORE_THRESHOLD):
            kept += int((side.iou >= SAME_BOX_IOU).sum())
            told += len(side)
        return 100 * (1 - kept / told)

    def distance(self, model: onnx.ModelProto) -> float:
        """See ``Judge``: 1 - IoU x (1 - change of score), 1 for a lost one, weighted by score."""
        cost = weight = 0.0
        sides = self._sides(self._detect(model), _SWEEP_THRESHOLD)
        for side, other in zip(sides[::2], sides[1::2], strict=True):
            for one, partners in ((side, other), (other, side)):
                scores = one.detections.scores.astype(np.float64)
                change = np.abs(scores - _partner_scores(one, partners))
                cost += float(scores @ (1 - one.iou * (1 - change)))
                weight += float(scores.sum())
        return cost / weight

    def _detect(self, model: onnx.ModelProto) -> list[Detections]:
        return _detect(self._manifest, model, self._frames)

    def _sides(self, found: Sequence[Detections], threshold: float) -> list[Side]:
        """Both sides of every frame, float's first."""
        compared = [
            compare_frame(float_found, int8_found, threshold)
            for float_found, int8_found in zip(self._found, found, strict=True)
        ]
        return [side for each in compared for side in (each.float_side, each.int8_side)]


class LabelJudge(DetectionJudge):
    """By mAP against labels; the sweep is by agreement still, which is less noisy.

    The default bound is what 32 frames can tell apart from chance; a tighter one needs more.
    """

    unit = "points of mAP50-95"
    tolerance = 1.0

    def __init__(
        self, manifest: Manifest, frames: Sequence[Frame], found: Sequence[Detections]
    ) -> None:
        super().__init__(manifest, frames, found)
        self._float_map = self._mean_ap(found)

    def loss(self, model: onnx.ModelProto) -> float:
        """See ``Judge``; negative where INT8 is better by chance."""
        return 100 * (self._float_map - self._mean_ap(self._detect(model)))

    def _mean_ap(self, found: Sequence[Detections]) -> float:
        pairs = [self._pair(frame, each) for frame, each in zip(self._frames, found, strict=True)]
        names = sorted({name for truth, _ in pairs for name in truth.class_names})
        return mean_ap(collect_matches(pairs, names), np.ones(len(pairs)))

    def _pair(self, frame: Frame, found: Detections) -> Pair:
        assert frame.truth is not None  # what make_judge chose this judge by
        names = tuple(self._manifest.class_names[class_id] for class_id in found.class_ids)
        told = replace(
            frame.truth, boxes_xyxy=found.boxes_xyxy, scores=found.scores, class_names=names
        )
        return frame.truth, told


class OutputJudge:
    """By the relative distance of the raw outputs."""

    unit = "per cent of the raw outputs' length"
    tolerance = 10.0

    def __init__(self, manifest: Manifest, model: onnx.ModelProto, frames: Sequence[Frame]) -> None:
        self._tensors = [tensor.copy() for tensor in input_tensors(frames, manifest.preprocessing)]
        self._outputs = self._run(model)

    def loss(self, model: onnx.ModelProto) -> float:
        """See ``Judge``."""
        return 100 * self.distance(model)

    def distance(self, model: onnx.ModelProto) -> float:
        """See ``Judge``: the mean of each output's relative L2 distance."""
        pairs = zip(self._outputs, self._run(model), strict=True)
        lengths = [
            np.linalg.norm(candidate - wanted) / max(float(np.linalg.norm(wanted)), 1e-12)
            for wanted, candidate in pairs
        ]
        return float(np.mean(lengths))

    def _run(self, model: onnx.ModelProto) -> list[Array]:
        session, name = open_session(model), model.graph.input[0].name
        rows = [session.run(None, {name: tensor}) for tensor in self._tensors]
        return [np.stack(output) for output in zip(*rows, strict=True)]


def _partner_scores(side: Side, other: Side) -> Array:
    """The scores of each one's partner; its own where it has none."""
    scores = side.detections.scores.astype(np.float64)
    kept = side.partner >= 0
    scores[kept] = other.detections.scores[side.partner[kept]]
    return scores


def _detect(
    manifest: Manifest, model: onnx.ModelProto, frames: Sequence[Frame]
) -> list[Detections]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        path.write_bytes(model.SerializeToString())
        detector = Detector(manifest, OnnxRuntimeBackend(path))
    settings, recorder = DetectionSettings(score_threshold=_SCORE_FLOOR), SpanRecorder()
    return [detector.detect(frame.pixels, frame.format, settings, recorder) for frame in frames]
