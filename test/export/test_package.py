"""What is exported is checked: equal outputs, a head that fits, names that differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import CLASS_NAMES, SIDE_PX, output_shapes, write_model

from edge_perception.backends.onnxruntime import OnnxRuntimeBackend
from edge_perception.core.manifest import Preprocessing
from edge_perception.detection.detector import open_detector
from edge_perception.errors import EngineError, ManifestError
from edge_perception.export.package import (
    Export,
    Reference,
    distinct,
    largest_difference,
    write_package,
)

IMAGES = np.random.default_rng(0).random((1, 3, SIDE_PX, SIDE_PX), np.float32)


def export(head: str, class_names: tuple[str, ...] = CLASS_NAMES) -> Export:
    spec = Preprocessing(SIDE_PX, SIDE_PX)
    return Export("tiny", head, class_names, spec, "Apache-2.0", "a test", {"opset": 13})


def reference(model: Path) -> Reference:
    backend = OnnxRuntimeBackend(model)
    return Reference(IMAGES, [np.asarray(output) for output in backend.infer([IMAGES])])


@pytest.mark.parametrize("head", ["yolov8", "rtdetr"])
def test_package_opens_as_it_was_written(tmp_path: Path, head: str) -> None:
    graph, out = tmp_path / "graph.onnx", tmp_path / "a.onnx"
    write_model(graph, head)
    write_package(graph, export(head), reference(graph), out)
    detector = open_detector(tmp_path / "a.yaml")
    assert detector.manifest.provenance["difference_from_origin"] == 0
    assert {spec.name: spec.shape for spec in detector.manifest.outputs} == output_shapes(head)
    detector.close()


def test_graph_that_gives_something_else_is_refused(tmp_path: Path) -> None:
    graph, out = tmp_path / "graph.onnx", tmp_path / "a.onnx"
    write_model(graph, "yolov8")
    out.write_text("an export of before")
    wanted = reference(graph)
    wanted.outputs[0][0, 0, 0] += 1
    with pytest.raises(EngineError, match="does not give what its origin gives"):
        write_package(graph, export("yolov8"), wanted, out)
    assert out.read_text() == "an export of before"
    assert not (tmp_path / "a.yaml").exists()


def test_head_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    write_model(graph, "yolov8")
    with pytest.raises(ManifestError, match="2 class names"):
        write_package(graph, export("yolov8", ("a", "b")), reference(graph), tmp_path / "a.onnx")


ROWS = np.arange(12, dtype=np.float32).reshape(1, 3, 4)


@pytest.mark.parametrize(
    ("head", "found", "expected", "reason"),
    [
        ("yolov8", ROWS, 0.0, "equal"),
        ("yolov8", ROWS[:, ::-1], 8 / 11, "rows of a grid have their order"),
        ("detr", ROWS[:, ::-1], 0.0, "queries have none"),
        ("detr", ROWS + 0.11, 0.01, "a share of the largest value"),
        ("detr", ROWS[:, [0, 0, 0]], 8 / 11, "a query that is missing"),
        ("yolov8", ROWS[:, :2], np.inf, "another shape"),
        ("yolov8", ROWS * np.nan, np.inf, "no numbers"),
        ("detr", ROWS * np.nan, np.inf, "no numbers"),
    ],
)
def test_difference_of_known_cases(
    head: str, found: np.ndarray, expected: float, reason: str
) -> None:
    assert largest_difference(head, [found], [ROWS]) == pytest.approx(expected, rel=1e-5), reason


def test_queries_keep_their_boxes() -> None:
    boxes = ROWS / 12
    same = largest_difference("detr", [ROWS[:, ::-1], boxes[:, ::-1]], [ROWS, boxes])
    mixed = largest_difference("detr", [ROWS[:, ::-1], boxes], [ROWS, boxes])
    assert same == 0 < mixed


def test_repeated_names_are_told_apart() -> None:
    assert distinct(["a", "N/A", "b", "N/A", "N/A"]) == ("a", "N/A", "b", "N/A 3", "N/A 4")
