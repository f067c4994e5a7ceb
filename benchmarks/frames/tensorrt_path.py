"""The detector path with its real network: the demo detector in INT8 by TensorRT 8.5 on an H100.

    python -m benchmarks.frames.tensorrt_path STORE MODEL PICTURES --out FILE.json

STORE holds the plan that benchmarks/int8/tensorrt_h100.py built of MODEL (the Q/DQ ONNX graph),
PICTURES the ``codes`` that oracle.py packed: uint8 (N, 1, 3, H, W), the network's own input, BGR.
What runs is the product: ring, ``DevicePath`` and ``backends.tensorrt.Engine`` in a CUDA graph,
over tensorrt_runtime.py in place of TensorRT's own Python, which says what it needs.

First the answers: what the path finds in each picture is compared with the same graph run by ONNX
Runtime on the CPU from the same bytes. Then detector_path.py's clock.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.frames import tensorrt_runtime
from benchmarks.frames.detector_path import NMS_IOU, measure_path
from benchmarks.frames.detector_path import Path as DetectorPath
from benchmarks.frames.frame_source import info, provenance
from edge_perception.backends.onnxruntime import OnnxRuntimeBackend
from edge_perception.backends.store import sha256_of
from edge_perception.backends.tensorrt import Engine
from edge_perception.core.boxes import iou_matrix
from edge_perception.core.detections import Detections
from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.manifest import Manifest, parse_manifest
from edge_perception.detection.detector import DetectionSettings, Detector
from edge_perception.detection.device_backend import DeviceBackend
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import transport_named
from edge_perception.gpu.workspace import Workspace

DEMO_MANIFEST = Path("engines/demo_yolox_nano.yaml")
SETTINGS = DetectionSettings(score_threshold=0.3, nms_iou=NMS_IOU)
_SAME_IOU = 0.9
_LEAST_RATE = 0.85  # INT8 rounds differently in two runtimes, and moves weak boxes over the bar


@dataclass
class Agreement:
    """How many boxes two runtimes found, and how many of them are the same."""

    tensorrt: int = 0
    onnxruntime: int = 0
    same: int = 0
    worst_score: float = 0.0

    def add(self, ours: Detections, theirs: Detections) -> None:
        """Count one picture: the same is the same class at an IoU of 0.9 or more."""
        self.tensorrt += len(ours.scores)
        self.onnxruntime += len(theirs.scores)
        ious = iou_matrix(ours.boxes_xyxy, theirs.boxes_xyxy)
        ious[ours.class_ids[:, None] != theirs.class_ids[None, :]] = 0
        for row in ious:
            if len(row) and row.max() >= _SAME_IOU:
                self.same += 1
        pairs = np.argwhere(ious >= _SAME_IOU)
        apart = np.abs(ours.scores[pairs[:, 0]] - theirs.scores[pairs[:, 1]])
        self.worst_score = max(self.worst_score, float(apart.max(initial=0)))

    @property
    def rate(self) -> float:
        """Twice the same boxes over all."""
        return 2 * self.same / max(1, self.tensorrt + self.onnxruntime)


def quantised_manifest(model: Path) -> Manifest:
    """The demo detector's manifest, with the quantised graph in the place of its own."""
    mapping = yaml.safe_load(DEMO_MANIFEST.read_text(encoding="utf-8"))
    return parse_manifest({**mapping, "model": model.name, "sha256": sha256_of(model)})


def find_plan(store: Path, model: Path) -> bytes:
    """Return the INT8 plan that was built of a graph."""
    for file in store.glob("*.yaml"):
        record = json.loads(file.read_text())
        spec = record["spec"]
        if spec["onnx_sha256"] == sha256_of(model) and spec["precision"] == "int8":
            return Path(store, record["plan"]).read_bytes()
    raise SystemExit(f"{store} holds no INT8 plan of {model}")


def compare(
    detector: Detector, oracle: Detector, pictures: UInt8Array, ring: FrameRing
) -> dict[str, Any]:
    """Compare what TensorRT finds in a ring's frames with what ONNX Runtime does in the same bytes.

    Raises:
        SystemExit: too few boxes are the same.
    """
    agreement = Agreement()
    for sequence, picture in enumerate(pictures, start=1):
        pixels = np.ascontiguousarray(picture[0].transpose(1, 2, 0))
        image_format = ImageFormat.packed("bgr8", *pixels.shape[:2])
        frame = pixels.reshape(-1)
        ring.write(frame, info(sequence, image_format))
        with ring.acquire_newest(sequence - 1) as lease:  # type: ignore[union-attr]
            found = detector.detect_frame(lease, SETTINGS, SpanRecorder())
        agreement.add(found, oracle.detect(frame, image_format, SETTINGS, SpanRecorder()))
    figures = {**asdict(agreement), "rate": round(agreement.rate, 4), "pictures": len(pictures)}
    if agreement.rate < _LEAST_RATE:
        raise SystemExit(f"TensorRT and ONNX Runtime disagree: {figures}")
    return figures


def measure(plan: bytes, model: Path, pictures: UInt8Array) -> dict[str, Any]:
    """Compare, then measure; see ``measure_path``."""
    manifest = quantised_manifest(model)
    engine = Engine(tensorrt_runtime, plan)
    backend = DeviceBackend("tensorrt", engine, Workspace())
    spec = RingSpec("pictures", slots=4, slot_bytes=pictures[0].nbytes)
    with FrameRing.create(spec, transport_named("cuda_in_process")) as ring:
        oracle = Detector(manifest, OnnxRuntimeBackend(model, threads=4))
        agreement = compare(Detector(manifest, backend), oracle, pictures, ring)
    print(f"agreement: {json.dumps(agreement)}", flush=True)
    return {
        **measure_path(DetectorPath(manifest, backend)),
        "network": "demo detector, 640x480, INT8, TensorRT 8.5.3, CUDA graph",
        "cuda_graph": backend.replays_graph,
        "against_onnxruntime": agreement,
        "plan_bytes": len(plan),
    }


def main() -> None:
    """Compare, measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("store", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default="")
    arguments = parser.parse_args()
    with np.load(arguments.pictures) as file:
        pictures = file["codes"]
    plan = find_plan(arguments.store, arguments.model)
    figures = measure(plan, arguments.model, pictures)
    print(json.dumps(figures), flush=True)
    report = {"schema": 1, **provenance(arguments.commit), "detector_path_tensorrt": figures}
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
