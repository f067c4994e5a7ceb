"""The whole trust report, by the command, on models whose detections are known."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from known_detections import FRAMES
from tiny_models import write_detector

from edge_perception.cli import main
from edge_perception.core.latency import SAMPLES_NEEDED
from edge_perception.errors import ConfigError
from edge_perception.trust.report import load_sensitivity

pytest.importorskip("pycocotools")


def evaluate(tmp_path: Path, frames: Path, *more: str, int8: str = "rtdetr", **changes: Any) -> int:
    first = write_detector(tmp_path / "float", "yolov8")
    second = write_detector(tmp_path / "int8", int8, **changes)
    arguments = ["--float", str(first), "--int8", str(second), "--frames", str(frames)]
    return main(["evaluate", *arguments, "--out", str(tmp_path / "out"), "--worst", "2", *more])


def figures(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "trust.json").read_text())


def test_two_models_that_agree(tmp_path: Path, labelled_bag: Path) -> None:
    assert evaluate(tmp_path, labelled_bag, "--require-recall", "1.0") == 0
    report = figures(tmp_path)
    assert report["schema"] == "edge_perception/trust/1"
    for entry in report["agreement"].values():
        assert entry["recall"]["value"] == entry["precision"]["value"] == 1.0
        assert entry["recall"]["of"] == FRAMES
    assert report["source"] == {
        "name": "a.mcap",
        "topic": "/image/compressed",
        "images": FRAMES + 1,
        "evaluated": FRAMES,
        "unreadable": 1,
    }
    assert report["accuracy"]["drop"]["map50_95"] == 0.0
    assert report["accuracy"]["float"]["map50_95"] == 1.0
    assert report["drift"]["box_shift_px"]["max"] == pytest.approx(0, abs=1e-3)
    assert report["drift"]["box_shift_px"]["p99"] is None
    assert SAMPLES_NEEDED["p99"] > FRAMES
    assert report["infer_ms"]["int8"]["n"] == FRAMES


def test_model_that_finds_nothing_fails_the_required_recall(
    tmp_path: Path, labelled_folder: Path
) -> None:
    labels = ["--labels", str(labelled_folder / "instances.json")]
    # At this scale every picture is black to the second model.
    dark = {"preprocessing": {"height": 64, "width": 64, "scale": 1e-6}}
    status = evaluate(
        tmp_path, labelled_folder / "images", *labels, "--require-recall", "0.5", **dark
    )
    report = figures(tmp_path)
    assert status == 1
    assert report["agreement"]["0.50"]["recall"]["value"] == 0.0
    assert report["agreement"]["0.50"]["precision"]["value"] is None
    assert report["fates"]["float"] == {
        "kept": 0, "below_threshold": 0, "other_class": 0, "absent": FRAMES
    }  # fmt: skip
    assert report["accuracy"]["drop"]["map50_95"] == 1.0
    assert [frame["lost"] for frame in report["worst_frames"]] == [1, 1]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and not (value or "").startswith("data:"):
                self.outside.append(value or "")


def test_page_is_self_contained_escaped_and_shows_the_worst(
    tmp_path: Path, labelled_folder: Path
) -> None:
    sensitivity = tmp_path / "layers.json"
    sensitivity.write_text('{"sensitivity": [{"layer": "<b>conv</b>", "loss": 0.5}]}')
    evaluate(
        tmp_path,
        labelled_folder / "images",
        "--sensitivity",
        str(sensitivity),
        name="<script>alert(1)</script>",
    )
    text = (tmp_path / "out" / "trust.html").read_text()
    page = Page(text)
    assert page.outside == []
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text
    assert "&lt;b&gt;conv&lt;/b&gt;" in text
    assert page.tags.count("img") == 2
    assert "$" not in text


def test_other_classes_are_refused(tmp_path: Path, labelled_folder: Path, capsys: Any) -> None:
    status = evaluate(tmp_path, labelled_folder / "images", class_names=["a", "b", "c"])
    assert status == 2
    assert "tell different classes" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[1]", '[{"layer": "a"}]', '[{"loss": 1}]', "{}"])
def test_sensitivity_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "layers.json").write_text(content)
    with pytest.raises(ConfigError, match=r"sensitivity .* cannot be read"):
        load_sensitivity(tmp_path / "layers.json")


def test_threshold_below_what_is_told_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert evaluate(tmp_path, tmp_path, "--score", "0.001") == 2
    assert "score threshold: expected 0.01 to 1" in capsys.readouterr().err
