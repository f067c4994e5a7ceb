"""Detections of a model on a COCO folder, and their mAP with an interval by resampling images."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edge_perception.backends.onnxruntime import OnnxRuntimeBackend
from edge_perception.core.detections import Detections
from edge_perception.core.image import ImageFormat
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.manifest import Manifest
from edge_perception.detection.detector import DetectionSettings, Detector
from edge_perception.trust.frames import Frame

# As training/detector/evaluate.py counts.
_SETTINGS = DetectionSettings(score_threshold=0.001, nms_iou=0.65, max_detections=100)
_RESAMPLES = 300

Found = Mapping[int, Detections]


@dataclass(frozen=True)
class CocoFolder:
    """Images below ``images`` and their boxes in ``instances.json``; every ``step``-th image."""

    root: Path
    step: int = 1

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The images' records, by rising id."""
        images = json.loads((self.root / "instances.json").read_text())["images"]
        return sorted(images, key=lambda entry: entry["id"])[:: self.step]

    def frame(self, entry: Mapping[str, Any]) -> Frame:
        """An image as the detector takes it."""
        picture = cv2.imread(str(self.root / "images" / entry["file_name"]))
        image_format = ImageFormat.packed("bgr8", *picture.shape[:2])
        pixels = np.asarray(picture, np.uint8).reshape(-1)
        return Frame(entry["id"], entry["file_name"], pixels, image_format, None)


def detect(
    manifest: Manifest, model: Path, folder: CocoFolder, entries: Sequence[Mapping[str, Any]]
) -> dict[int, Detections]:
    """Return what a model finds in each image, by the image's id."""
    detector = Detector(manifest, OnnxRuntimeBackend(model))
    found = {}
    for entry in entries:
        frame, recorder = folder.frame(entry), SpanRecorder()
        found[entry["id"]] = detector.detect(frame.pixels, frame.format, _SETTINGS, recorder)
    detector.close()
    return found


def judge(found: Found, folder: CocoFolder, class_names: Sequence[str]) -> Any:
    """Return pycocotools' evaluation of all sizes together; crowds are ignored as COCO does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder.root / "instances.json"))
        ids = {entry["name"]: entry["id"] for entry in truth.dataset["categories"]}
        records = [
            {
                "image_id": image,
                "category_id": ids[class_names[label]],
                "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                "score": float(score),
            }
            for image, each in found.items()
            for (x1, y1, x2, y2), score, label in zip(
                each.boxes_xyxy, each.scores, each.class_ids, strict=True
            )
        ]
        evaluation = COCOeval(truth, truth.loadRes(records), "bbox")
        evaluation.params.imgIds = sorted(found)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
    return evaluation


def mean_ap(evaluation: Any, rows: npt.NDArray[np.intp] | None = None) -> float:
    """Return mAP50-95, 0..1, of all images or of ``rows`` of them, each as often as it is named."""
    images = len(evaluation.params.imgIds)
    rows = np.arange(images) if rows is None else rows
    drawn = copy.copy(evaluation)
    drawn.params = copy.copy(evaluation.params)
    drawn.params.imgIds = list(range(len(rows)))
    drawn._paramsEval = drawn.params
    classes = range(len(evaluation.params.catIds))
    drawn.evalImgs = [evaluation.evalImgs[k * images + row] for k in classes for row in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        drawn.accumulate()
    precision = drawn.eval["precision"]
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")


def intervals(float_side: Any, int8_side: Any, resamples: int = _RESAMPLES) -> dict[str, Any]:
    """Return 95% intervals of both mAPs and of the drop, in points, resampling images in pairs."""
    images = len(float_side.params.imgIds)
    draws = np.random.default_rng(0).integers(0, images, (resamples, images))
    maps = 100 * np.array(
        [[mean_ap(side, rows) for side in (float_side, int8_side)] for rows in draws]
    )
    columns = {"map_float": maps[:, 0], "map_int8": maps[:, 1], "drop": maps[:, 0] - maps[:, 1]}
    return {
        f"{name}_interval95": [round(float(x), 2) for x in np.nanpercentile(values, (2.5, 97.5))]
        for name, values in columns.items()
    }
