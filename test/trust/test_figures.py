"""The report's figures: known cases, honest percentiles, and mAP as pycocotools has it."""

from __future__ import annotations

import numpy as np
import pytest
from known_detections import detections, random_detections

from edge_perception.replay.accuracy import measure_accuracy
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.trust.accuracy import accuracy_figures, collect_matches, mean_ap
from edge_perception.trust.figures import (
    Drift,
    agreement_figures,
    class_figures,
    fate_figures,
    frame_cost,
    summarise,
)
from edge_perception.trust.matching import compare_frame

pytest.importorskip("pycocotools")

FLOAT = detections((10, 10, 60, 60, 0.9, 0), (100, 10, 150, 60, 0.8, 1))
INT8 = detections((13, 10, 60, 60, 0.7, 0), (200, 10, 250, 60, 0.5, 1))
FRAME = compare_frame(FLOAT, INT8, 0.3)


def test_agreement_counts_both_sides() -> None:
    agreement = agreement_figures([FRAME, compare_frame(FLOAT, FLOAT, 0.3)], seed=0)
    assert agreement["0.50"]["recall"]["value"] == 0.75
    assert agreement["0.90"]["recall"]["hits"] == 3  # the moved one overlaps by 0.94
    assert agreement["0.75"]["precision"] == agreement["0.75"]["recall"]
    low, high = agreement["0.75"]["recall"]["interval95"]
    assert 0.5 <= low <= 0.75 <= high <= 1


def test_without_detections_nothing_is_claimed() -> None:
    nothing = compare_frame(detections(), detections(), 0.3)
    for frames in ([], [nothing]):
        entry = agreement_figures(frames, seed=0)["0.50"]["recall"]
        assert entry == {"value": None, "interval95": None, "hits": 0, "of": 0}
        drift = Drift.of(frames)
        assert drift.figures()["score_bias"] is None
        assert drift.figures()["box_shift_px"]["n"] == 0
        assert class_figures(frames, drift, ["a", "b"]) == {}


def test_drift_is_that_of_kept_detections() -> None:
    figures = Drift.of([FRAME]).figures()
    assert figures["score_bias"] == pytest.approx(-0.2, abs=1e-5)
    assert figures["score_change"]["max"] == pytest.approx(0.2, abs=1e-5)
    assert figures["box_shift_px"]["max"] == 3.0
    assert figures["iou_loss"]["p50"] == pytest.approx(0.06, abs=1e-5)


@pytest.mark.parametrize(
    ("count", "unknown"),
    [
        (0, {"mean", "p50", "p90", "p99", "p99_9", "max"}),
        (9, {"p90", "p99", "p99_9"}),
        (99, {"p99", "p99_9"}),
        (9999, {"p99_9"}),
        (10000, set()),
    ],
)
def test_percentiles_that_too_few_carry_are_null(count: int, unknown: set[str]) -> None:
    summary = summarise(np.linspace(0, 1, count))
    assert {name for name, value in summary.items() if value is None} == unknown


def test_fates_and_classes_add_up() -> None:
    fates = fate_figures([FRAME])
    expected = {"kept": 1, "below_threshold": 0, "other_class": 0, "absent": 1}
    assert fates == {"float": expected, "int8": expected}
    classes = class_figures([FRAME], Drift.of([FRAME]), ["a", "b", "c"])
    assert set(classes) == {"a", "b"}
    assert classes["a"]["recall"]["0.75"] == 1.0
    assert classes["b"]["recall"]["0.50"] == 0.0


def test_worse_frames_cost_more() -> None:
    same, gone = compare_frame(FLOAT, FLOAT, 0.3), compare_frame(FLOAT, detections(), 0.3)
    assert frame_cost(same) == 0 < frame_cost(FRAME) < frame_cost(gone) + frame_cost(FRAME)
    assert frame_cost(gone) == pytest.approx(1.7)


# Accuracy.


def labelled(seed: int) -> LabelledBoxes:
    found = random_detections(seed)
    names = tuple("abc"[class_id] for class_id in found.class_ids)
    return LabelledBoxes(0, found.boxes_xyxy * 4, found.scores, names)


def nudged(boxes: LabelledBoxes, seed: int) -> LabelledBoxes:
    noise = np.random.default_rng(seed).normal(0, 3, boxes.boxes_xyxy.shape)
    moved = np.sort((boxes.boxes_xyxy + noise).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    return LabelledBoxes(0, moved.astype(np.float32), boxes.scores, boxes.class_names)


PAIRS = [(labelled(seed), nudged(labelled(seed), seed)) for seed in range(20)]


def test_map_of_equal_weights_is_that_of_pycocotools() -> None:
    ours = mean_ap(collect_matches(PAIRS, list("abc")), np.ones(len(PAIRS)))
    assert ours == pytest.approx(measure_accuracy(PAIRS).map50_95, abs=1e-4)


def test_map_of_a_frame_counted_twice_is_that_of_two_such_frames() -> None:
    weights = np.ones(len(PAIRS))
    weights[3], weights[5] = 2, 0
    repeated = [*PAIRS[:5], *PAIRS[6:], PAIRS[3]]
    ours = mean_ap(collect_matches(PAIRS, list("abc")), weights)
    assert ours == pytest.approx(measure_accuracy(repeated).map50_95, abs=1e-4)


def test_drop_is_known_better_than_either_map() -> None:
    worse = [(truth, nudged(found, 7)) for truth, found in PAIRS]
    figures = accuracy_figures(PAIRS, worse, seed=0)
    assert figures is not None
    drop, (low, high) = figures["drop"]["map50_95"], figures["drop"]["interval95"]
    assert 0 < low <= drop <= high
    alone = figures["float"]["map50_95_interval95"]
    assert high - low < alone[1] - alone[0]


def test_model_loses_nothing_against_itself() -> None:
    figures = accuracy_figures(PAIRS, PAIRS, seed=0)
    assert figures is not None
    assert figures["drop"] == {"map50_95": 0.0, "interval95": [0.0, 0.0]}


def test_without_truth_there_is_no_accuracy() -> None:
    empty = LabelledBoxes(0, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), ())
    assert accuracy_figures([(empty, PAIRS[0][1])], [(empty, PAIRS[0][1])], seed=0) is None
    assert accuracy_figures([], [], seed=0) is None
