"""The figures of a trust report, from the comparisons of its frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_perception.core.latency import SAMPLES_NEEDED
from edge_perception.trust.matching import FATES, FrameComparison, Side

IOU_THRESHOLDS = (0.5, 0.75, 0.9)
_RESAMPLES = 1000
_PERCENTILES: Mapping[str, float] = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """How far K matched detections moved from float to INT8; each array ``(K,)``.

    ``score`` is float's, ``score_change`` INT8's minus it; ``shift_px`` the longest way that one of
    a box's four sides moved, in source pixels; ``iou`` the overlap of the two boxes.
    """

    class_ids: npt.NDArray[np.int32]
    score: Float64Array
    score_change: Float64Array
    shift_px: Float64Array
    iou: Float64Array

    @classmethod
    def of(cls, frames: Sequence[FrameComparison]) -> Drift:
        """Collect the matched pairs of all frames."""
        rows = [_frame_drift(frame) for frame in frames]
        columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
        class_ids, *values = columns or [np.zeros(0)] * 5
        return cls(class_ids.astype(np.int32), *values)

    def select(self, mask: npt.NDArray[np.bool_]) -> Drift:
        """Return the pairs that a mask names."""
        return Drift(
            self.class_ids[mask],
            self.score[mask],
            self.score_change[mask],
            self.shift_px[mask],
            self.iou[mask],
        )

    def figures(self) -> dict[str, Any]:
        """Return the distributions, each such that larger is worse, and the bias of the score."""
        count = len(self.score)
        return {
            "score_bias": round(float(self.score_change.mean()), 5) + 0.0 if count else None,
            "score_change": summarise(np.abs(self.score_change)),
            "box_shift_px": summarise(self.shift_px),
            "iou_loss": summarise(1 - self.iou),
        }


def _frame_drift(frame: FrameComparison) -> tuple[npt.NDArray[Any], ...]:
    mine, others = frame.float_side.detections, frame.int8_side.detections
    kept = np.flatnonzero(frame.float_side.partner >= 0)
    partner = frame.float_side.partner[kept]
    score = mine.scores[kept].astype(np.float64)
    shift = np.abs(others.boxes_xyxy[partner] - mine.boxes_xyxy[kept]).max(axis=1, initial=0.0)
    iou = frame.float_side.iou[kept]
    change = others.scores[partner] - score
    return mine.class_ids[kept], score, change, shift.astype(np.float64), iou.astype(np.float64)


def summarise(values: Float64Array) -> dict[str, float | int | None]:
    """Return ``n``, mean, percentiles and the largest; None where ``n`` is too small to tell.

    The rule is that of latencies: p90 needs 10 samples, p99 100, p99.9 10,000.
    """
    count = len(values)
    told: dict[str, float | int | None] = {"n": count}
    told["mean"] = round(float(values.mean()), 5) if count else None
    for name, percentile in _PERCENTILES.items():
        enough = count >= SAMPLES_NEEDED[name]
        told[name] = round(float(np.percentile(values, percentile)), 5) if enough else None
    told["max"] = round(float(values.max()), 5) if count else None
    return told


def agreement_figures(frames: Sequence[FrameComparison], seed: int) -> dict[str, Any]:
    """Return recall and precision of INT8 against float at each IoU, with 95% intervals.

    Recall is the share of float's detections that INT8 has, precision the share of INT8's that
    float has. Intervals come from resampling whole frames, since the boxes of one frame share its
    fate.
    """
    sides = {
        "recall": [frame.float_side for frame in frames],
        "precision": [frame.int8_side for frame in frames],
    }
    return {
        f"{threshold:.2f}": {name: _share(side, threshold, seed) for name, side in sides.items()}
        for threshold in IOU_THRESHOLDS
    }


def _share(sides: Sequence[Side], threshold: float, seed: int) -> dict[str, Any]:
    counts = np.array([len(side) for side in sides], np.float64)
    hits = np.array([(side.iou >= threshold).sum() for side in sides], np.float64)
    total = int(counts.sum())
    if not total:
        return {"value": None, "interval95": None, "hits": 0, "of": 0}
    draws = np.random.default_rng(seed).integers(0, len(sides), (_RESAMPLES, len(sides)))
    drawn = counts[draws].sum(axis=1)
    shares = hits[draws].sum(axis=1)[drawn > 0] / drawn[drawn > 0]
    return {
        "value": round(float(hits.sum()) / total, 5),
        "interval95": [round(float(x), 5) for x in np.percentile(shares, (2.5, 97.5))],
        "hits": int(hits.sum()),
        "of": total,
    }


def fate_figures(frames: Sequence[FrameComparison]) -> dict[str, dict[str, int]]:
    """Return how many detections of each side met each fate on the other."""
    return {
        "float": _count_fates([frame.float_side for frame in frames]),
        "int8": _count_fates([frame.int8_side for frame in frames]),
    }


def _count_fates(sides: Sequence[Side]) -> dict[str, int]:
    counts = np.zeros(len(FATES), np.int64)
    for side in sides:
        counts += np.bincount(side.fate, minlength=len(FATES))
    return dict(zip(FATES, counts.tolist(), strict=True))


def class_figures(
    frames: Sequence[FrameComparison], drift: Drift, class_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return, for each class that either model found, its counts, agreement and drift."""
    figures = {}
    for class_id, name in enumerate(class_names):
        recall, of_float = _class_share([frame.float_side for frame in frames], class_id)
        precision, of_int8 = _class_share([frame.int8_side for frame in frames], class_id)
        if of_float or of_int8:
            moved = drift.select(drift.class_ids == class_id)
            figures[name] = {
                "float_detections": of_float,
                "int8_detections": of_int8,
                "recall": recall,
                "precision": precision,
                **moved.figures(),
            }
    return figures


def _class_share(sides: Sequence[Side], class_id: int) -> tuple[dict[str, float | None], int]:
    overlaps = [side.iou[side.detections.class_ids == class_id] for side in sides]
    iou = np.concatenate(overlaps) if overlaps else np.zeros(0)
    shares = {
        f"{threshold:.2f}": round(float((iou >= threshold).mean()), 5) if len(iou) else None
        for threshold in IOU_THRESHOLDS
    }
    return shares, len(iou)


def frame_cost(frame: FrameComparison) -> float:
    """Return how bad a frame is: the scores of what is lost or new, and of kept boxes moved.

    A box counts with its score, so that what nobody would have acted on weighs little; a kept one
    with its score times the overlap it lost.
    """
    return _side_cost(frame.float_side) + _side_cost(frame.int8_side)


def _side_cost(side: Side) -> float:
    return float((side.detections.scores * (1 - side.iou)).sum())
