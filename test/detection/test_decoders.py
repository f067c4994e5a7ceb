"""Every head family's decoder against one anchor at a time in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import HEADS, manifest_mapping

from edge_perception.core.manifest import Preprocessing, parse_manifest
from edge_perception.detection.decoders import DECODERS, SUPPRESSED_HEADS, Candidates, check_head
from edge_perception.errors import ManifestError

INPUT = Preprocessing(64, 96)
CLASSES = 3
ANCHORS = 8 * 12 + 4 * 6 + 2 * 3

Outputs = list[np.ndarray]
Found = list[tuple[list[float], float, int]]


def corners(cx: float, cy: float, w: float, h: float) -> list[float]:
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def best_of(scores: list[float]) -> tuple[float, int]:
    best = max(range(len(scores)), key=lambda i: scores[i])
    return scores[best], best


def slow_yolov8(outputs: Outputs, threshold: float) -> Found:
    found = []
    for anchor in outputs[0][0].T.tolist():
        score, class_id = best_of(anchor[4:])
        if score >= threshold:
            found.append((corners(*anchor[:4]), score, class_id))
    return found


def slow_yolov5(outputs: Outputs, threshold: float) -> Found:
    found = []
    for row in outputs[0][0].tolist():
        class_score, class_id = best_of(row[5:])
        score = float(np.float32(row[4]) * np.float32(class_score))
        if score >= threshold:
            found.append((corners(*row[:4]), score, class_id))
    return found


def slow_yolox(outputs: Outputs, threshold: float) -> Found:
    found = []
    rows = iter(outputs[0][0].tolist())
    for stride in (8, 16, 32):
        for y in range(INPUT.height // stride):
            for x in range(INPUT.width // stride):
                row = next(rows)
                class_score, class_id = best_of(row[5:])
                score = float(np.float32(row[4]) * np.float32(class_score))
                if score >= threshold:
                    centre = ((row[0] + x) * stride, (row[1] + y) * stride)
                    size = (math.exp(row[2]) * stride, math.exp(row[3]) * stride)
                    found.append((corners(*centre, *size), score, class_id))
    return found


def slow_end_to_end(outputs: Outputs, threshold: float) -> Found:
    rows = outputs[0][0].tolist()
    return [(row[:4], row[4], int(row[5])) for row in rows if row[4] >= threshold]


def to_pixels(box: list[float]) -> list[float]:
    x, y, w, h = box
    return corners(x * INPUT.width, y * INPUT.height, w * INPUT.width, h * INPUT.height)


def slow_rtdetr(outputs: Outputs, threshold: float) -> Found:
    logits, boxes = (output[0].tolist() for output in outputs)
    pairs = [
        (to_pixels(box), 1 / (1 + math.exp(-logit)), class_id)
        for box, row in zip(boxes, logits, strict=True)
        for class_id, logit in enumerate(row)
    ]
    found = [pair for pair in pairs if pair[1] >= threshold]
    return sorted(found, key=lambda pair: -pair[1])[: len(boxes)]


def slow_detr(outputs: Outputs, threshold: float) -> Found:
    found = []
    for logits, box in zip(*(output[0].tolist() for output in outputs), strict=True):
        powers = [math.exp(logit) for logit in logits]
        score, class_id = best_of([power / sum(powers) for power in powers[:-1]])
        if score >= threshold:
            found.append((to_pixels(box), score, class_id))
    return found


SLOW: dict[str, Callable[[Outputs, float], Found]] = {
    "yolov8": slow_yolov8,
    "yolov5": slow_yolov5,
    "yolox": slow_yolox,
    "yolo_end_to_end": slow_end_to_end,
    "rtdetr": slow_rtdetr,
    "detr": slow_detr,
}


def random_outputs(head: str, seed: int) -> Outputs:
    noise = np.random.default_rng(seed)
    if head in ("rtdetr", "detr"):
        logits = noise.normal(0, 3, (1, 40, CLASSES + (head == "detr"))).astype(np.float32)
        return [logits, noise.uniform(0, 1, (1, 40, 4)).astype(np.float32)]
    if head == "yolo_end_to_end":
        rows = noise.uniform(0, 1, (1, 40, 6)).astype(np.float32)
        rows[..., 5] = noise.integers(0, CLASSES, 40)
        return [rows]
    rows = noise.uniform(0, 1, (1, ANCHORS, 5 + CLASSES)).astype(np.float32)
    if head == "yolov8":
        return [np.ascontiguousarray(np.delete(rows, 4, axis=2).transpose(0, 2, 1))]
    return [rows]


def as_found(candidates: Candidates) -> Found:
    return list(
        zip(
            candidates.boxes_xyxy.tolist(),
            candidates.scores.tolist(),
            candidates.class_ids.tolist(),
            strict=True,
        )
    )


@pytest.mark.parametrize("head", HEADS)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([0.0, 0.25, 0.9, 1.0]))
def test_decoder_finds_what_the_slow_one_finds(head: str, seed: int, threshold: float) -> None:
    outputs = random_outputs(head, seed)
    found = as_found(DECODERS[head](outputs, INPUT, threshold))
    expected = SLOW[head](outputs, threshold)
    assert len(found) == len(expected)
    for (box, score, class_id), (slow_box, slow_score, slow_class) in zip(
        found, expected, strict=True
    ):
        assert box == pytest.approx(slow_box, rel=1e-5, abs=1e-4)
        # float32 against float64 where there is an exponential, else the very same number.
        assert score == pytest.approx(slow_score, rel=1e-6 if "detr" in head else 0)
        assert class_id == slow_class


@pytest.mark.parametrize("head", HEADS)
def test_nothing_above_the_threshold_gives_arrays_of_no_rows(head: str) -> None:
    outputs = [np.full_like(output, -9 * (head == "rtdetr")) for output in random_outputs(head, 0)]
    found = DECODERS[head](outputs, INPUT, 0.5)
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.scores.shape == found.class_ids.shape == (0,)


@pytest.mark.parametrize("head", HEADS)
def test_nan_score_never_passes(head: str) -> None:
    outputs = [np.full_like(output, np.nan) for output in random_outputs(head, 0)]
    assert as_found(DECODERS[head](outputs, INPUT, 0.0)) == []


def test_query_may_stand_for_several_classes_under_sigmoids_only() -> None:
    logits = np.array([[[3, 5, -9], [-9, -9, -9]]], np.float32)
    boxes = np.full((1, 2, 4), 0.5, np.float32)
    assert DECODERS["rtdetr"]([logits, boxes], INPUT, 0.1).class_ids.tolist() == [1, 0]
    nothing = np.full((1, 2, 1), -9, np.float32)
    with_nothing = np.concatenate([logits, nothing], axis=2)
    assert DECODERS["detr"]([with_nothing, boxes], INPUT, 0.4).class_ids.tolist() == [1]


def test_no_more_pairs_are_told_than_there_are_queries() -> None:
    outputs = random_outputs("rtdetr", 0)
    assert len(DECODERS["rtdetr"](outputs, INPUT, 0.0).scores) == 40


def manifest(head: str, *shapes: tuple[int, ...], **changes: Any) -> Any:
    outputs = {f"output{i}": shape for i, shape in enumerate(shapes)}
    return parse_manifest({**manifest_mapping(head, outputs), **changes})


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        ("yolov8", (1, 7, 1)),
        ("yolov8", (1, 7, 8400)),
        ("yolov5", (1, 25200, 8)),
        ("yolox", (1, 64 + 16 + 4, 8)),
        ("yolox", (1, 256 + 64 + 16 + 4, 8)),
        ("yolo_end_to_end", (1, 300, 6)),
    ],
)
def test_output_that_fits_the_head_is_taken(head: str, shape: tuple[int, ...]) -> None:
    check_head(manifest(head, shape))


@pytest.mark.parametrize(
    ("head", "shape", "told"),
    [
        ("yolov8", (1, 8, 64), r"3 class names.*\(1, 7, None\).*\(1, 8, 64\)"),
        ("yolov8", (1, 64, 7), "does not fit"),
        ("yolov8", (2, 7, 64), "does not fit"),
        ("yolov8", (7, 64), "does not fit"),
        ("yolov5", (1, 64, 9), r"3 class names.*\(1, None, 8\)"),
        ("yolox", (1, 84, 85), "does not fit"),
        ("yolox", (1, 83, 8), "no known set of strides gives 83 anchors"),
        ("yolo_end_to_end", (1, 300, 7), r"\(1, None, 6\)"),
    ],
)
def test_output_that_does_not_fit_the_head_is_told(
    head: str, shape: tuple[int, ...], told: str
) -> None:
    with pytest.raises(ManifestError, match=told):
        check_head(manifest(head, shape))


@pytest.mark.parametrize("shapes", [[(1, 300, 3), (1, 300, 4)], [(1, 5, 3), (1, 5, 4), (7,)]])
def test_logits_and_boxes_that_fit_are_taken(shapes: list[tuple[int, ...]]) -> None:
    check_head(manifest("rtdetr", *shapes))


@pytest.mark.parametrize(
    ("head", "shapes", "told"),
    [
        ("rtdetr", [(1, 300, 3)], "does not fit"),
        ("rtdetr", [(1, 300, 4), (1, 300, 4)], r"3 class names.*\(1, None, 3\)"),
        ("detr", [(1, 300, 3), (1, 300, 4)], r"3 class names.*\(1, None, 4\)"),
        ("detr", [(1, 300, 4), (1, 299, 4)], "different numbers of queries"),
        ("classifier", [(1, 3)], "finds no boxes.*'classifier'"),
    ],
)
def test_logits_and_boxes_that_do_not_fit_are_told(
    head: str, shapes: list[tuple[int, ...]], told: str
) -> None:
    with pytest.raises(ManifestError, match=told):
        check_head(manifest(head, *shapes))


def test_only_known_heads_are_exempt_from_suppression() -> None:
    assert SUPPRESSED_HEADS < set(DECODERS) == set(HEADS)
