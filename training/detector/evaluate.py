"""Mean average precision of a checkpoint or an exported model on a COCO folder.

    python -m training.detector.evaluate --weights FILE --data FOLDER [--out metrics.json]

Scores are objectness x class, one class a cell, floor 0.001, class-wise NMS at IoU 0.65, at most
100 boxes an image, counted by pycocotools; ``iscrowd`` regions are ignored. An ``.onnx`` file
runs in ONNX Runtime on the CPU, a ``.safetensors`` file in torch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor

from training.detector.boxes import decode
from training.detector.checkpoint import load_checkpoint
from training.detector.dataset import FrameStore, load_frames
from training.detector.model import NanoDetector, grid_cells

if TYPE_CHECKING:
    from collections.abc import Callable

    Predictor = Callable[[Tensor], Tensor]

_SCORE_FLOOR = 0.001
_NMS_IOU = 0.65
_CANDIDATES = 1000
_BATCH = 50
_METRICS = ("map50_95", "map50", "map75", "map_small", "map_medium", "map_large")


def torch_predictor(model: NanoDetector) -> Predictor:
    """Wrap an eval-mode model: uint8 (B, H, W, 3) BGR to activated outputs (B, cells, 5 + C)."""

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float()
        return activate(model(pixels.contiguous(memory_format=torch.channels_last)))

    return predict


def onnx_predictor(path: Path) -> Predictor:
    """Wrap an exported model of batch 1 in ONNX Runtime on the CPU; same contract as above."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float().cpu().numpy()
        rows = [session.run(None, {"images": pixels[i : i + 1]})[0] for i in range(len(pixels))]
        return torch.from_numpy(np.concatenate(rows)).to(images.device)

    return predict


def activate(outputs: Tensor) -> Tensor:
    """Put objectness and classes through the sigmoid, as the exported graph does."""
    return torch.cat((outputs[..., :4], outputs[..., 4:].sigmoid()), dim=-1)


def detect(predict: Predictor, store: FrameStore) -> list[dict[str, Any]]:
    """Detections on every frame of ``store`` as COCO result records."""
    cells = grid_cells(*store.size).to(store.images.device)
    records: list[dict[str, Any]] = []
    for start in range(0, len(store), _BATCH):
        outputs = predict(store.images[start : start + _BATCH])
        boxes = decode(outputs, cells)
        scores, labels = (outputs[..., 4:5] * outputs[..., 5:]).max(dim=-1)
        scores, order = scores.topk(min(_CANDIDATES, scores.shape[1]), dim=1)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4)).cpu()
        labels, scores = labels.gather(1, order).cpu(), scores.cpu()
        for i, image_id in enumerate(store.image_ids[start : start + _BATCH]):
            kept = suppress(boxes[i], scores[i], labels[i])
            records += _records(image_id, boxes[i, kept], scores[i, kept], labels[i, kept], store)
    return records


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Indices that survive class-wise NMS: at most 100, best first."""
    corners = boxes.numpy()
    rectangles = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1)
    kept = cv2.dnn.NMSBoxesBatched(
        rectangles.astype(np.float64).tolist(),
        scores.tolist(),
        labels.int().tolist(),
        _SCORE_FLOOR,
        _NMS_IOU,
    )
    return torch.as_tensor(np.asarray(kept, dtype=np.int64).reshape(-1)[:100])


def _records(
    image_id: int, boxes: Tensor, scores: Tensor, labels: Tensor, store: FrameStore
) -> list[dict[str, Any]]:
    limit = torch.tensor((store.size[1], store.size[0]) * 2)
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    sides = boxes[:, 2:] - boxes[:, :2]
    return [
        {
            "image_id": image_id,
            "category_id": store.category_ids[label],
            "bbox": [*box[:2], *side],
            "score": score,
        }
        for box, side, score, label in zip(
            boxes.tolist(), sides.tolist(), scores.tolist(), labels.tolist(), strict=True
        )
    ]


def score(truth_path: Path, records: list[dict[str, Any]], image_ids: list[int]) -> dict[str, Any]:
    """COCO metrics of result records: the mAPs, by size, and the AP of every class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not records:
        return dict.fromkeys(_METRICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_path))
        evaluation = COCOeval(truth, truth.loadRes(records), "bbox")
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics: dict[str, Any] = dict(
        zip(_METRICS, (round(float(v), 4) for v in evaluation.stats[:6]), strict=True)
    )
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    for i, category in enumerate(truth.loadCats(evaluation.params.catIds)):
        valid = precision[:, :, i][precision[:, :, i] > -1]
        metrics.setdefault("per_class", {})[category["name"]] = (
            round(float(valid.mean()), 4) if valid.size else None
        )
    return metrics


def describe_exam(truth_path: Path) -> dict[str, Any]:
    """How hard a set is: boxes, share occluded by a quarter or more, median share of the image."""
    truth = json.loads(truth_path.read_text())
    counted = [a for a in truth["annotations"] if not a.get("iscrowd", 0)]
    pixels = truth["images"][0]["width"] * truth["images"][0]["height"]
    shares = [a["bbox"][2] * a["bbox"][3] / pixels for a in counted]
    occluded = [a.get("occlusion", 0.0) >= 0.25 for a in counted]
    return {
        "frames": len(truth["images"]),
        "boxes": len(counted),
        "occluded_share": round(statistics.fmean(occluded), 4),
        "median_box_share": round(statistics.median(shares), 5),
    }


def evaluate(predict: Predictor, store: FrameStore, truth_path: Path) -> dict[str, Any]:
    """Detect on all frames of ``store`` and score the result."""
    return score(truth_path, detect(predict, store), list(store.image_ids))


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="mAP of a detector on a COCO folder")
    parser.add_argument("--weights", type=Path, required=True, help=".onnx or .safetensors")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="write the metrics as JSON too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    store = load_frames([args.data], device)
    if args.weights.suffix == ".onnx":
        predict = onnx_predictor(args.weights)
    else:
        predict = torch_predictor(load_checkpoint(args.weights).to(device))
    truth_path = args.data / "instances.json"
    metrics = evaluate(predict, store, truth_path) | {"exam": describe_exam(truth_path)}
    text = json.dumps(metrics, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
