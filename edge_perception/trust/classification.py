"""What an INT8 classifier changes against float, on frames without labels.

The question is the detectors', the figures are simpler: an image has one answer. Float stands for
the truth, so top-1 agreement takes the place of recall, and the Kullback-Leibler divergence of all
probabilities shows what moved below the first place, where a later frame may tip over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_perception.core.image import UInt8Array
from edge_perception.core.latency import LatencyWindow, SpanRecorder
from edge_perception.core.manifest import Manifest
from edge_perception.detection.classifier import Classifier
from edge_perception.detection.detector import DetectionSettings, open_by
from edge_perception.detection.runtimes import RuntimeChoice
from edge_perception.errors import ImageError
from edge_perception.gpu.preprocess import to_bgr
from edge_perception.replay.pictures import draw_caption
from edge_perception.trust.evaluation import SIDES, EvaluationSettings, check_same_classes
from edge_perception.trust.figures import summarise
from edge_perception.trust.frames import Frame

Probabilities = npt.NDArray[np.float64]

FEW = 5  # of top-5
_LEAST = 1e-12
_RESAMPLES = 1000
_MOST_CHANGES = 10


@dataclass
class ClassifierEvaluation:
    """What two classifiers made of the same frames.

    ``places`` are the index and name of each frame, ``rows`` its probabilities ``(2, C)``, float's
    first. ``latency`` holds the inference of both; ``unreadable`` counts images that are damaged.
    """

    manifests: tuple[Manifest, Manifest]
    places: list[tuple[int, str]] = field(default_factory=list)
    rows: list[Probabilities] = field(default_factory=list)
    latency: LatencyWindow = field(default_factory=LatencyWindow)
    unreadable: int = 0

    @property
    def probabilities(self) -> tuple[Probabilities, Probabilities]:
        """Float's and INT8's, ``(N, C)``."""
        classes = len(self.manifests[0].class_names)
        both = np.stack(self.rows, axis=1) if self.rows else np.zeros((2, 0, classes))
        return both[0], both[1]

    def worst(self, count: int) -> list[int]:
        """Return the rows whose divergence is largest, worst first."""
        order: list[int] = np.argsort(-divergence(*self.probabilities), kind="stable").tolist()
        return order[:count]


def evaluate_classifiers(
    float_manifest: Path, int8_manifest: Path, frames: Iterable[Frame], settings: EvaluationSettings
) -> ClassifierEvaluation:
    """Run both models over all frames; of the settings, those about boxes play no part.

    Raises:
        ManifestError: a manifest is wrong or none of a classifier, or the classes differ.
        EngineError: a model cannot be run here.
    """
    choice = RuntimeChoice(threads=settings.threads)
    models = [open_by(Classifier, path, choice) for path in (float_manifest, int8_manifest)]
    try:
        return _evaluate(models, frames)
    finally:
        for model in models:
            model.close()


def _evaluate(models: Sequence[Classifier], frames: Iterable[Frame]) -> ClassifierEvaluation:
    first, second = (model.manifest for model in models)
    check_same_classes(first, second)
    result = ClassifierEvaluation((first, second))
    for frame in frames:
        try:
            pair = [
                _classify(model, frame, result.latency, side)
                for model, side in zip(models, SIDES, strict=True)
            ]
        except ImageError:  # a raw image whose bytes do not fit its size
            result.unreadable += 1
        else:
            result.places.append((frame.index, frame.name))
            result.rows.append(np.stack(pair))
    return result


def _classify(model: Classifier, frame: Frame, latency: LatencyWindow, side: str) -> Probabilities:
    """Return the probabilities ``(C,)``; zeros where logits hold NaN."""
    probabilities = np.zeros(len(model.manifest.class_names))
    everything = DetectionSettings(score_threshold=0.0, max_detections=len(probabilities))
    recorder = SpanRecorder()
    found = model.classify(frame.pixels, frame.format, everything, recorder)
    probabilities[found.class_ids] = found.scores
    for span in recorder.spans:
        if span.stage == "infer":
            latency.add(side, span.duration_ns)
    return probabilities


def divergence(first: Probabilities, second: Probabilities) -> Probabilities:
    """Return KL(first || second) of each row, in nats; never negative."""
    ratio = np.log(np.maximum(first, _LEAST)) - np.log(np.maximum(second, _LEAST))
    return np.maximum((first * ratio).sum(axis=1), 0.0)


def classification_figures(
    first: Probabilities, second: Probabilities, class_names: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return agreement, divergence and drift; ``first`` ``(N, C)`` is float's.

    ``changes`` are the pairs of names, most frequent first, where the likeliest class changed.
    """
    rows, named, renamed = np.arange(len(first)), first.argmax(axis=1), second.argmax(axis=1)
    few = np.argsort(-second, axis=1, kind="stable")[:, :FEW]
    moved = second[rows, named] - first[rows, named]
    pairs = Counter(
        (class_names[a], class_names[b]) for a, b in zip(named, renamed, strict=True) if a != b
    )
    return {
        "agreement": {
            "top1": _share(named == renamed, seed),
            "top5": _share((few == named[:, None]).any(axis=1), seed),
        },
        "kl": summarise(divergence(first, second)),
        "score_bias": round(float(moved.mean()), 5) if len(moved) else None,
        "score_change": summarise(np.abs(moved)),
        "per_class": {
            class_names[label]: {
                "images": int((named == label).sum()),
                "kept": int((renamed[named == label] == label).sum()),
            }
            for label in np.unique(named).tolist()
        },
        "changes": [
            {"float": a, "int8": b, "images": count}
            for (a, b), count in pairs.most_common(_MOST_CHANGES)
        ],
    }


def _share(hits: npt.NDArray[np.bool_], seed: int) -> dict[str, Any]:
    """A share with its 95% interval from resampling images, as ``agreement_figures`` tells it."""
    count = len(hits)
    if not count:
        return {"value": None, "interval95": None, "hits": 0, "of": 0}
    drawn = np.random.default_rng(seed).binomial(count, hits.mean(), _RESAMPLES) / count
    return {
        "value": round(float(hits.mean()), 5),
        "interval95": [round(float(x), 5) for x in np.percentile(drawn, (2.5, 97.5))],
        "hits": int(hits.sum()),
        "of": count,
    }


def draw_answers(frame: Frame, words: str) -> UInt8Array:
    """Return the frame, uint8 BGR, with what both models say of it."""
    canvas = to_bgr(frame.pixels, frame.format).copy()
    draw_caption(canvas, words, 1)
    return canvas
