"""The node runs whatever its manifest names: boxes of a query head, and classes of a classifier."""

from __future__ import annotations

from typing import Any

import pytest
from pictures import BLOCK_CENTRE, BLOCK_SIZE, GREEN, picture
from tiny_models import write_detector

pytest.importorskip("rclpy")
from sensor_msgs.msg import Image
from vision_msgs.msg import Classification, Detection2DArray


def test_query_head_publishes_detections(graph: Any) -> None:
    graph.start_container(write_detector(graph.folder / "model", "rtdetr"))
    heard = graph.listen(Detection2DArray, "detections")
    message = graph.answer_to(graph.send(picture(GREEN)), heard)
    (detection,) = message.detections
    assert detection.results[0].hypothesis.class_id == "green_block"
    centre = detection.bbox.center.position
    assert (centre.x, centre.y) == pytest.approx(BLOCK_CENTRE, abs=0.01)
    assert (detection.bbox.size_x, detection.bbox.size_y) == pytest.approx(BLOCK_SIZE, abs=0.01)


def test_classifier_publishes_classification(graph: Any) -> None:
    graph.start_container(write_detector(graph.folder / "model", "classifier"))
    heard = graph.listen(Classification, "classification")
    header = graph.send(picture(GREEN))
    message = graph.answer_to(header, heard)
    (best,) = message.results
    assert best.class_id == "green_block"
    assert best.score == pytest.approx(1, abs=0.01)
    drawn = graph.listen(Image, "detector/debug_image")
    assert graph.answer_to(graph.send(picture(GREEN)), drawn).encoding == "bgr8"
    assert graph.counters("detector")["processed"] >= 2
