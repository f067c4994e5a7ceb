"""Two classifiers compared: figures by hand, and the whole report by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_detections import FRAMES
from tiny_models import write_detector

from edge_perception.cli import main
from edge_perception.trust.classification import classification_figures, divergence

NAMES = ("cat", "dog", "cup", "can", "box", "ball", "cone")


def rows(*likeliest: int, share: float = 0.4) -> np.ndarray:
    """Probabilities of which one class has ``share`` and the others the rest, evenly."""
    result = np.full((len(likeliest), len(NAMES)), (1 - share) / (len(NAMES) - 1))
    result[np.arange(len(likeliest)), likeliest] = share
    return result


def test_divergence_is_the_textbooks_and_never_negative() -> None:
    first, second = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    assert divergence(first, second) == pytest.approx(np.log(2) / 2 + np.log(2 / 3) / 2)
    assert divergence(first, first) == 0
    assert np.isfinite(divergence(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))).all()


def test_changed_names_are_counted_and_told_most_frequent_first() -> None:
    first, second = rows(0, 0, 0, 1, 2), rows(1, 1, 0, 2, 2)
    told = classification_figures(first, second, NAMES, seed=0)
    top1 = told["agreement"]["top1"]
    assert (top1["value"], top1["hits"], top1["of"]) == (0.4, 2, 5)
    assert top1["interval95"][0] < 0.4 < top1["interval95"][1]
    assert told["changes"] == [
        {"float": "cat", "int8": "dog", "images": 2},
        {"float": "dog", "int8": "cup", "images": 1},
    ]
    assert told["per_class"]["cat"] == {"images": 3, "kept": 1}
    assert told["score_change"]["max"] == pytest.approx(0.3)


def test_top5_asks_whether_floats_class_is_among_int8s_five() -> None:
    first = rows(0, 0)
    second = np.array([[0.0, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2], [0.3, 0.4, 0.3, 0, 0, 0, 0]])
    assert classification_figures(first, second, NAMES, seed=0)["agreement"]["top5"]["hits"] == 1


def test_no_frames_give_no_figures() -> None:
    told = classification_figures(rows(), rows(), NAMES, seed=0)
    assert told["agreement"]["top1"]["value"] is None
    assert told["kl"]["n"] == 0


def evaluate(tmp_path: Path, frames: Path, *more: str, head: str = "classifier", **changes: Any):
    first = write_detector(tmp_path / "float", "classifier", name="<b>float</b>")
    second = write_detector(tmp_path / "int8", head, **changes)
    arguments = ["--float", str(first), "--int8", str(second), "--frames", str(frames)]
    return main(["evaluate", *arguments, "--out", str(tmp_path / "out"), "--worst", "2", *more])


def test_same_model_twice_agrees_in_json_and_page(tmp_path: Path, labelled_bag: Path) -> None:
    assert evaluate(tmp_path, labelled_bag, "--require-recall", "1.0") == 0
    report = json.loads((tmp_path / "out" / "trust.json").read_text())
    assert report["schema"] == "edge_perception/trust_classification/1"
    assert report["agreement"]["top1"] == {
        "value": 1.0, "interval95": [1.0, 1.0], "hits": FRAMES, "of": FRAMES
    }  # fmt: skip
    assert report["source"]["unreadable"] == 1
    assert report["kl"]["max"] == 0
    assert report["infer_ms"]["int8"]["n"] == FRAMES
    page = (tmp_path / "out" / "trust.html").read_text()
    assert page.count("<figure>") == 2
    assert "&lt;b&gt;float" in page
    assert "$" not in page


def test_model_that_takes_red_for_blue_fails_the_required_agreement(
    tmp_path: Path, labelled_folder: Path
) -> None:
    swapped = {"preprocessing": {"height": 64, "width": 64, "color": "bgr"}}
    frames = labelled_folder / "images"  # every other one shows a red block, the others a green one
    assert evaluate(tmp_path, frames, "--require-recall", "0.9", **swapped) == 1
    report = json.loads((tmp_path / "out" / "trust.json").read_text())
    assert report["agreement"]["top1"]["hits"] == FRAMES // 2
    (change,) = report["changes"]
    assert change["images"] == FRAMES // 2
    worst = report["worst_frames"]
    assert worst[0]["kl"] >= worst[1]["kl"] > 0


def test_classifier_against_detector_is_refused(
    tmp_path: Path, labelled_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, labelled_folder / "images", head="yolov8") == 2
    assert "does not fit the model's output" in capsys.readouterr().err
