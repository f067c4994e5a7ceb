"""Runs two models over the same frames and keeps what a trust report needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from edge_perception.core.detections import Detections
from edge_perception.core.latency import LatencyWindow, SpanRecorder
from edge_perception.core.manifest import Manifest
from edge_perception.detection.detector import DetectionSettings, Detector, open_detector
from edge_perception.errors import ConfigError, ImageError, ManifestError
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.trust.figures import frame_cost
from edge_perception.trust.frames import Frame
from edge_perception.trust.matching import FrameComparison, compare_frame

# mAP wants the unsure too, and they explain what fell below the threshold.
SCORE_FLOOR = 0.01
SIDES = ("float", "int8")


@dataclass(frozen=True)
class EvaluationSettings:
    """``score_threshold`` (0.01..1) is the least score that a user acts on; ``nms_iou`` 0..1.

    ``worst`` frames are shown as pictures; ``threads`` 0 means one a physical core.
    """

    score_threshold: float = 0.3
    nms_iou: float = 0.65
    worst: int = 6
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not SCORE_FLOOR <= self.score_threshold <= 1:
            raise ConfigError(
                "score threshold", expected=f"{SCORE_FLOOR} to 1", got=self.score_threshold
            )
        if not 0 <= self.nms_iou <= 1 or self.worst < 0:
            raise ConfigError("nms_iou and worst", expected="0 to 1, and no negative number")


@dataclass(frozen=True)
class JudgedFrame:
    """A frame without its pixels: its index in the source and its name, and what was found in it.

    ``cost`` says how bad it is (``frame_cost``).
    """

    index: int
    name: str
    comparison: FrameComparison
    cost: float


@dataclass
class Evaluation:
    """What two models made of the same frames.

    The pairs are ``(truth, found)`` of the labelled frames; ``latency`` holds the inference of
    "float" and "int8"; ``unreadable`` counts frames whose bytes do not fit their size.
    """

    manifests: tuple[Manifest, Manifest]
    frames: list[JudgedFrame] = field(default_factory=list)
    float_pairs: list[tuple[LabelledBoxes, LabelledBoxes]] = field(default_factory=list)
    int8_pairs: list[tuple[LabelledBoxes, LabelledBoxes]] = field(default_factory=list)
    latency: LatencyWindow = field(default_factory=LatencyWindow)
    unreadable: int = 0

    @property
    def comparisons(self) -> list[FrameComparison]:
        """The comparison of each frame."""
        return [frame.comparison for frame in self.frames]

    def worst(self, count: int) -> list[JudgedFrame]:
        """Return the frames that differ most, worst first, but no two of the same scene.

        Neighbours of a bad frame are bad in the same way; frames are therefore a share of the
        recording apart.
        """
        apart = max(1, len(self.frames) // (4 * max(1, count)))
        chosen: list[JudgedFrame] = []
        for frame in sorted(self.frames, key=lambda frame: -frame.cost):
            if len(chosen) < count and all(abs(frame.index - c.index) >= apart for c in chosen):
                chosen.append(frame)
        return chosen


def evaluate_models(
    float_manifest: Path,
    int8_manifest: Path,
    frames: Iterable[Frame],
    settings: EvaluationSettings,
) -> Evaluation:
    """Run both models over all frames.

    Raises:
        ManifestError: a manifest is wrong, or the two tell different classes.
        EngineError: a model cannot be run here.
    """
    detectors = [open_detector(path, settings.threads) for path in (float_manifest, int8_manifest)]
    try:
        return _evaluate(detectors, frames, settings)
    finally:
        for detector in detectors:
            detector.close()


def _evaluate(
    detectors: list[Detector],
    frames: Iterable[Frame],
    settings: EvaluationSettings,
) -> Evaluation:
    first, second = (detector.manifest for detector in detectors)
    check_same_classes(first, second)
    result = Evaluation((first, second))
    told = DetectionSettings(score_threshold=SCORE_FLOOR, nms_iou=settings.nms_iou)
    for frame in frames:
        try:
            found = [
                _detect(detector, frame, told, result.latency, side)
                for detector, side in zip(detectors, SIDES, strict=True)
            ]
        except ImageError:  # a raw image whose bytes do not fit its size
            result.unreadable += 1
        else:
            comparison = compare_frame(found[0], found[1], settings.score_threshold)
            cost = frame_cost(comparison)
            result.frames.append(JudgedFrame(frame.index, frame.name, comparison, cost))
            _keep_pairs(result, frame.truth, found)
    return result


def check_same_classes(first: Manifest, second: Manifest) -> None:
    """Raise ``ManifestError`` where two models tell different classes."""
    if first.class_names != second.class_names:
        raise ManifestError(
            f"{first.name!r} and {second.name!r} tell different classes",
            expected=", ".join(first.class_names),
            got=", ".join(second.class_names),
        )


def _detect(
    detector: Detector, frame: Frame, told: DetectionSettings, latency: LatencyWindow, side: str
) -> Detections:
    recorder = SpanRecorder()
    found = detector.detect(frame.pixels, frame.format, told, recorder)
    for span in recorder.spans:
        if span.stage == "infer":
            latency.add(side, span.duration_ns)
    return found


def _keep_pairs(result: Evaluation, truth: LabelledBoxes | None, found: list[Detections]) -> None:
    if truth is not None:
        names = result.manifests[0].class_names
        result.float_pairs.append((truth, _named(found[0], names)))
        result.int8_pairs.append((truth, _named(found[1], names)))


def _named(found: Detections, class_names: tuple[str, ...]) -> LabelledBoxes:
    names = tuple(class_names[class_id] for class_id in found.class_ids)
    return LabelledBoxes(0, found.boxes_xyxy, found.scores, names)
