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

Found = list[tuple[list[float], float, int]]


def corners(cx: float, cy: float, w: float, h: float) -> list[float]:
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def best_of(scores: list[float]) -> tuple[float, int]:
    best = max(range(len(scores)), key=lambda i: scores[i])
    return scores[best], best


def slow_yolov8(output: np.ndarray, threshold: float) -> Found:
    found = []
    for anchor in output[0].T.tolist():
        score, class_id = best_of(anchor[4:])
        if score >= threshold:
            found.append((corners(*anchor[:4]), score, class_id))
    return found


def slow_yolov5(output: np.ndarray, threshold: float) -> Found:
    found = []
    for row in output[0].tolist():
        class_score, class_id = best_of(row[5:])
        score = float(np.float32(row[4]) * np.float32(class_score))
        if score >= threshold:
            found.append((corners(*row[:4]), score, class_id))
    return found


def slow_yolox(output: np.ndarray, threshold: float) -> Found:
    found = []
    rows = iter(output[0].tolist())
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


def slow_end_to_end(output: np.ndarray, threshold: float) -> Found:
    return [(row[:4], row[4], int(row[5])) for row in output[0].tolist() if row[4] >= threshold]


SLOW: dict[str, Callable[[np.ndarray, float], Found]] = {
    "yolov8": slow_yolov8,
    "yolov5": slow_yolov5,
    "yolox": slow_yolox,
    "yolo_end_to_end": slow_end_to_end,
}


def random_output(head: str, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed)
    if head == "yolo_end_to_end":
        rows = noise.uniform(0, 1, (1, 40, 6)).astype(np.float32)
        rows[..., 5] = noise.integers(0, CLASSES, 40)
        return rows
    rows = noise.uniform(0, 1, (1, ANCHORS, 5 + CLASSES)).astype(np.float32)
    if head == "yolov8":
        return np.ascontiguousarray(np.delete(rows, 4, axis=2).transpose(0, 2, 1))
    return rows


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
    output = random_output(head, seed)
    found = as_found(DECODERS[head](output, INPUT, threshold))
    expected = SLOW[head](output, threshold)
    assert len(found) == len(expected)
    for (box, score, class_id), (slow_box, slow_score, slow_class) in zip(
        found, expected, strict=True
    ):
        assert box == pytest.approx(slow_box, rel=1e-5, abs=1e-4)
        assert (score, class_id) == (slow_score, slow_class)


@pytest.mark.parametrize("head", HEADS)
def test_nothing_above_the_threshold_gives_arrays_of_no_rows(head: str) -> None:
    found = DECODERS[head](np.zeros_like(random_output(head, 0)), INPUT, 0.5)
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.scores.shape == found.class_ids.shape == (0,)


@pytest.mark.parametrize("head", HEADS)
def test_nan_score_never_passes(head: str) -> None:
    output = np.full_like(random_output(head, 0), np.nan)
    assert as_found(DECODERS[head](output, INPUT, 0.0)) == []


def manifest(head: str, shape: tuple[int, ...], **changes: Any) -> Any:
    return parse_manifest({**manifest_mapping(head, shape), **changes})


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


def test_only_known_heads_are_exempt_from_suppression() -> None:
    assert SUPPRESSED_HEADS < set(DECODERS) == set(HEADS)
