"""The carried ViT detector, INT8: its manifest opens it, and it finds what the bag shows."""

from __future__ import annotations

from itertools import islice

import pytest

pytest.importorskip("cv2")
pytest.importorskip("pycocotools")
from edge_perception.backends.onnxruntime import OnnxRuntimeBackend
from edge_perception.backends.store import load_manifest
from edge_perception.core.latency import SpanRecorder
from edge_perception.detection.detector import DetectionSettings, Detector
from edge_perception.embedded import carried_file
from edge_perception.replay.accuracy import measure_accuracy
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.trust.frames import Frames

APART = 60  # frames


def test_carried_vit_detector_finds_what_the_bag_shows() -> None:
    manifest, model = load_manifest(carried_file("engines/demo_vit.int8.yaml"))
    detector = Detector(manifest, OnnxRuntimeBackend(model, threads=2))
    pairs = []
    for frame in islice(Frames(str(carried_file("demo/demo.mcap"))), 0, None, APART):
        assert frame.truth is not None
        found = detector.detect(frame.pixels, frame.format, DetectionSettings(), SpanRecorder())
        names = tuple(manifest.class_names[index] for index in found.class_ids)
        boxes = LabelledBoxes(0, found.boxes_xyxy, found.scores, names)
        pairs.append((frame.truth, boxes))
    accuracy = measure_accuracy(pairs)
    assert accuracy.images == 5
    assert accuracy.map50 is not None
    assert accuracy.map50 > 0.6  # the held-out exam: 0.85
