"""Mean average precision of both models against labels, with intervals by resampling frames.

pycocotools matches boxes and gives the figures; it cannot resample. A bootstrap needs the same
sum a thousand times with other weights on the frames, so the matches are taken from it once, and
the precision-recall curve is summed here, vectorised. With every weight 1 the sum is pycocotools'
own, which a test holds.

The interval that matters is that of the *drop*: both models see the same resampled frames, so
what makes a frame hard for both cancels out, and the drop is known far better than either mAP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_perception.replay.accuracy import evaluate_boxes, measure_accuracy
from edge_perception.replay.messages import LabelledBoxes

RESAMPLES = 300

Pair = tuple[LabelledBoxes, LabelledBoxes]
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassMatches:
    """One class's D detections of all frames, best score first, as COCO judged them.

    ``frame`` ``(D,)`` is each one's frame, ``hit`` bool ``(T, D)`` whether it is true at each of
    COCO's T thresholds, ``truths`` ``(F,)`` the number of true boxes of each frame.
    """

    frame: npt.NDArray[np.intp]
    hit: npt.NDArray[np.bool_]
    truths: npt.NDArray[np.float64]


def accuracy_figures(
    float_pairs: Sequence[Pair], int8_pairs: Sequence[Pair], seed: int
) -> dict[str, Any] | None:
    """Return COCO's figures of both models and of the drop; None without any true box.

    Args:
        float_pairs: ``(truth, found)`` of each labelled frame.
        int8_pairs: the same frames, in the same order.
        seed: of the resampling.
    """
    names = sorted({name for truth, _ in float_pairs for name in truth.class_names})
    if not names:
        return None
    models = [collect_matches(pairs, names) for pairs in (float_pairs, int8_pairs)]
    draws = np.random.default_rng(seed).multinomial(
        len(float_pairs), [1 / len(float_pairs)] * len(float_pairs), RESAMPLES
    )
    maps = np.array([[mean_ap(model, draw.astype(float)) for model in models] for draw in draws])
    first, second = (asdict(measure_accuracy(pairs)) for pairs in (float_pairs, int8_pairs))
    drop = first["map50_95"] - second["map50_95"]
    return {
        "float": {**first, "map50_95_interval95": _interval(maps[:, 0])},
        "int8": {**second, "map50_95_interval95": _interval(maps[:, 1])},
        "drop": {
            "map50_95": round(drop, 4),
            "interval95": _interval(maps[:, 0] - maps[:, 1]),
        },
    }


def collect_matches(pairs: Sequence[Pair], names: Sequence[str]) -> list[ClassMatches]:
    """Match boxes by pycocotools; one entry a class."""
    evaluation = evaluate_boxes(pairs, names)
    frames, areas = len(pairs), len(evaluation.params.areaRng)
    blocks = [
        evaluation.evalImgs[index * areas * frames : index * areas * frames + frames]
        for index in range(len(names))  # the first area is "all"
    ]
    return [_collect(block, len(evaluation.params.iouThrs)) for block in blocks]


def _collect(judged: Sequence[Any], thresholds: int) -> ClassMatches:
    """Take what pycocotools says of each frame; None where a frame holds nothing of the class."""
    scores, frame = [np.zeros(0)], [np.zeros(0, np.intp)]
    hits = [np.zeros((thresholds, 0), bool)]
    truths = np.zeros(len(judged))
    for index, entry in enumerate(judged):
        if entry is not None:
            scores.append(np.asarray(entry["dtScores"]))
            frame.append(np.full(len(entry["dtScores"]), index, np.intp))
            hits.append(np.asarray(entry["dtMatches"]) != 0)
            truths[index] = len(entry["gtIds"])
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.concatenate(hits, axis=1)[:, order]
    return ClassMatches(np.concatenate(frame)[order], hit, truths)


def mean_ap(classes: Sequence[ClassMatches], weights: Weights) -> float:
    """Return mAP50-95 with frame ``i`` counted ``weights[i]`` times; NaN without any true box."""
    known = [c for c in classes if (c.truths * weights).sum() > 0]
    if not known:
        return float("nan")
    return float(np.mean([_average_precision(c, weights) for c in known]))


def _average_precision(matches: ClassMatches, weights: Weights) -> float:
    """Mean over thresholds of the interpolated precision at COCO's 101 recalls."""
    weight = weights[matches.frame]
    true = np.cumsum(matches.hit * weight, axis=1)
    found = np.cumsum(weight)
    precision = true / np.maximum(found, np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true / (matches.truths * weights).sum()
    padded = np.pad(envelope, ((0, 0), (0, 1)))
    wanted = np.linspace(0, 1, 101)
    return float(
        np.mean([row[np.searchsorted(r, wanted)] for row, r in zip(padded, recall, strict=True)])
    )


def _interval(values: npt.NDArray[np.float64]) -> list[float]:
    return [round(float(x), 4) for x in np.nanpercentile(values, (2.5, 97.5))]
