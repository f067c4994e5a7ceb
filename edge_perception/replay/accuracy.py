"""Mean average precision of published detections against a bag's ground truth, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_perception.core.boxes import box_areas
from edge_perception.replay.messages import LabelledBoxes


@dataclass(frozen=True)
class Accuracy:
    """COCO's average precisions, 0..1; None where no true box of that kind exists.

    Small, medium and large are true boxes of less than 32x32, up to 96x96, and more pixels.
    ``images`` counts the images compared, ``truths`` their true boxes.
    """

    images: int
    truths: int
    map50_95: float | None
    map50: float | None
    map75: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    per_class: dict[str, float | None]


def measure_accuracy(pairs: Sequence[tuple[LabelledBoxes, LabelledBoxes]]) -> Accuracy:
    """Compare ``(truth, found)`` of each image.

    Classes are those of the truth; what is found of other classes does not count, as in COCO.
    """
    names = sorted({name for truth, _ in pairs for name in truth.class_names})
    truths = sum(len(truth.class_names) for truth, _ in pairs)
    if not truths:
        return Accuracy(len(pairs), 0, None, None, None, None, None, None, {})
    evaluation = evaluate_boxes(pairs, names)
    overall, at50, at75, small, medium, large = (told(value) for value in evaluation.stats[:6])
    per_class = _per_class(evaluation, names)
    return Accuracy(len(pairs), truths, overall, at50, at75, small, medium, large, per_class)


def evaluate_boxes(
    pairs: Sequence[tuple[LabelledBoxes, LabelledBoxes]], names: Sequence[str]
) -> Any:
    """Return pycocotools' ``COCOeval``, summarised, of ``(truth, found)`` of each image."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = {name: index + 1 for index, name in enumerate(names)}
    truth, found = COCO(), COCO()
    images = [{"id": index} for index in range(len(pairs))]
    categories = [{"id": index, "name": name} for name, index in ids.items()]
    for dataset, side in ((truth, 0), (found, 1)):
        annotations = [
            annotation
            for index, pair in enumerate(pairs)
            for annotation in _annotations(index, pair[side], ids)
        ]
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
        dataset.dataset = {"images": images, "categories": categories, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _annotations(image: int, boxes: LabelledBoxes, ids: dict[str, int]) -> list[dict[str, Any]]:
    areas = box_areas(boxes.boxes_xyxy)
    return [
        {
            "image_id": image,
            "category_id": ids[name],
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "area": float(area),
            "score": float(score),
            "iscrowd": 0,
        }
        for (x1, y1, x2, y2), area, score, name in zip(
            boxes.boxes_xyxy, areas, boxes.scores, boxes.class_names, strict=True
        )
        if name in ids
    ]


def _per_class(evaluation: Any, names: Sequence[str]) -> dict[str, float | None]:
    # precision: (IoU thresholds, recalls, classes, areas, detections an image); -1: no truth.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    means = {}
    for index, name in enumerate(names):
        values = precision[:, :, index]
        known = values[values > -1]
        means[name] = told(known.mean()) if known.size else None
    return means


def told(value: Any) -> float | None:
    """Round to what the figure means; COCO writes -1 for "no such box"."""
    return None if value < 0 or not np.isfinite(value) else round(float(value), 4)
