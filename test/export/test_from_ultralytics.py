"""Ultralytics' models from their .yaml (random weights) to detections, against its own NMS.

Ultralytics is licensed under the AGPL and no part of any requirement list: these tests are skipped
unless whoever runs them has installed it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edge_perception.cli import main
from edge_perception.core.boxes import cxcywh_to_xyxy
from edge_perception.core.image import ImageFormat
from edge_perception.core.latency import SpanRecorder
from edge_perception.detection.detector import DetectionSettings, open_detector
from edge_perception.gpu.preprocess import Preprocessor

SIDE = 160
FORMAT = ImageFormat.packed("rgb8", SIDE, SIDE)
PIXELS = np.random.default_rng(3).integers(0, 256, SIDE * SIDE * 3, np.uint8)


def export(tmp_path: Path, model: str) -> Path:
    out = tmp_path / "model.onnx"
    arguments = ["--size", str(SIDE), str(SIDE), "--python", sys.executable]
    assert main(["export", model, "--out", str(out), *arguments]) == 0
    return out.with_suffix(".yaml")


@pytest.mark.parametrize(
    ("model", "head"),
    [("yolov8n", "yolov8"), ("yolo11n", "yolov8"), ("yolo26n", "yolo_end_to_end")],
)
def test_detections_are_those_of_ultralytics(tmp_path: Path, model: str, head: str) -> None:
    pytest.importorskip("ultralytics", reason="Ultralytics is not installed (AGPL: never by us)")
    import torch
    from ultralytics.utils import nms

    detector = open_detector(export(tmp_path, f"{model}.yaml"), threads=1)
    assert detector.manifest.head == head
    assert detector.manifest.license.startswith("AGPL-3.0")
    tensor, _ = Preprocessor(detector.manifest.preprocessing)(PIXELS, FORMAT)
    raw = np.array(detector.backend.infer([tensor])[0])
    threshold = float(np.quantile(raw[0, :, 4] if head != "yolov8" else raw[0, 4:].max(0), 0.8))
    settings = DetectionSettings(score_threshold=threshold)
    found = detector.detect(PIXELS, FORMAT, settings, SpanRecorder())
    (theirs,) = nms.non_max_suppression(
        torch.from_numpy(cut_to_image(raw, head)), threshold, 0.65, end2end=head != "yolov8"
    )
    seen = theirs[(theirs[:, 2:4] > theirs[:, :2]).all(dim=1)].numpy()
    assert len(found) == len(seen) > 5
    assert found.boxes_xyxy == pytest.approx(seen[:, :4], abs=1e-3)
    assert found.scores == pytest.approx(seen[:, 4])
    assert found.class_ids.tolist() == seen[:, 5].astype(int).tolist()
    detector.close()


def cut_to_image(raw: np.ndarray, head: str) -> np.ndarray:
    """Cut boxes before suppression, as we do and Ultralytics does after it."""
    cut = raw.copy()
    if head != "yolov8":
        cut[..., :4] = cut[..., :4].clip(0, SIDE)
        return cut
    corners = cxcywh_to_xyxy(raw[0, :4].T).clip(0, SIDE)
    cut[0, :4] = np.concatenate(
        [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1
    ).T
    return cut


def test_interpreter_without_ultralytics_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.pt").write_bytes(b"never loaded here")
    arguments = ["--out", str(tmp_path / "a.onnx"), "--python", "/nothing/python"]
    assert main(["export", str(tmp_path / "model.pt"), *arguments]) == 2
    assert "cannot start '/nothing/python'" in capsys.readouterr().err


def test_failure_of_the_other_process_is_told_by_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho first >&2\necho 'No module named nothing' >&2\nexit 1\n")
    python.chmod(0o755)
    arguments = ["--out", str(tmp_path / "a.onnx"), "--python", str(python)]
    assert main(["export", "yolov8n.yaml", *arguments]) == 2
    told = capsys.readouterr().err
    assert "could not export 'yolov8n.yaml': No module named nothing" in told
    assert "name its interpreter by --python" in told
