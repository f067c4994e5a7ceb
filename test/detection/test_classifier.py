"""The classifier end to end, and with outputs gone wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import BLUE, GREEN, picture
from tiny_models import CLASS_NAMES, write_detector

from edge_perception.core.classification import Classification
from edge_perception.core.image import ImageFormat
from edge_perception.core.latency import SpanRecorder
from edge_perception.detection.classifier import Classifier, decode_logits, make_model
from edge_perception.detection.detector import DetectionSettings, Detector, open_by, open_detector
from edge_perception.detection.drawing import draw_result
from edge_perception.detection.runtimes import RuntimeChoice
from edge_perception.errors import ManifestError

FORMAT = ImageFormat.packed("rgb8", 128, 128)


def open_model(manifest: Path) -> Detector | Classifier:
    return open_by(make_model, manifest, RuntimeChoice(threads=1))


@pytest.mark.parametrize(("colour", "name"), [(GREEN, "green_block"), (BLUE, "blue_block")])
def test_picture_is_named(tmp_path: Path, colour: tuple[int, int, int], name: str) -> None:
    model = open_model(write_detector(tmp_path, "classifier"))
    assert isinstance(model, Classifier)
    recorder, free = SpanRecorder(), []
    pixels = picture(colour).reshape(-1)
    found = model.classify(
        pixels, FORMAT, DetectionSettings(), recorder, lambda: free.append(len(recorder.spans))
    )
    assert [CLASS_NAMES[i] for i in found.class_ids] == [name]
    assert found.scores[0] > 0.99
    assert [span.stage for span in recorder.spans] == ["preprocess", "infer", "postprocess"]
    assert free == [2], "the model is free once it has inferred"
    model.close()


def test_manifest_alone_tells_the_kind_of_model(tmp_path: Path) -> None:
    model = open_model(write_detector(tmp_path, "yolov8"))
    assert isinstance(model, Detector)
    model.close()


def test_classifier_is_no_detector(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="finds no boxes"):
        open_detector(write_detector(tmp_path, "classifier"))


def test_class_names_must_fit_the_logits(tmp_path: Path) -> None:
    manifest = write_detector(tmp_path, "classifier", class_names=["a", "b"])
    with pytest.raises(ManifestError, match=r"2 class names.*\(1, 2\).*\(1, 3\)"):
        open_model(manifest)


def test_settings_filter_and_cut() -> None:
    logits = np.log(np.array([[0.5, 0.1, 0.4]], np.float32))
    every = DetectionSettings(score_threshold=0.05)
    assert decode_logits(logits, every).class_ids.tolist() == [0, 2, 1]
    assert decode_logits(logits, DetectionSettings(0.3)).class_ids.tolist() == [0, 2]
    assert decode_logits(logits, DetectionSettings(0.05, max_detections=1)).class_ids == [0]
    only = DetectionSettings(0.05, class_ids=frozenset({1, 2}))
    assert decode_logits(logits, only).class_ids.tolist() == [2, 1]


@given(
    st.lists(
        st.sampled_from([np.nan, np.inf, -np.inf, 0, 1, -1, 3e38, -3e38]), min_size=1, max_size=6
    )
)
def test_whatever_the_network_says_the_result_is_sound(logits: list[float]) -> None:
    # Classification itself refuses NaN, scores out of range and scores that rise.
    found = decode_logits(np.array([logits], np.float32), DetectionSettings(0.0))
    if np.isfinite(logits).all():
        assert len(found) == len(logits)


def test_classification_refuses_what_makes_no_sense() -> None:
    ids = np.arange(2, dtype=np.int32)
    for scores in ([0.1, 0.2], [np.nan, 0.1], [1.5, 0.1], [0.5]):
        with pytest.raises(ValueError, match=r"scores|class_ids"):
            Classification(ids, np.array(scores, np.float32))


def test_classes_are_drawn_into_a_copy() -> None:
    image = np.zeros((64, 200, 3), np.uint8)
    found = Classification(np.array([1], np.int32), np.array([0.9], np.float32))
    drawn = draw_result(image, found, CLASS_NAMES)
    assert drawn.any()
    assert not image.any()
