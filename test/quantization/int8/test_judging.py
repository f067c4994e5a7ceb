"""What a candidate costs: nothing if it is the float model, more the more it differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import write_conv_detector

from edge_perception.backends.store import load_manifest
from edge_perception.core.manifest import Manifest
from edge_perception.quantization.int8.judging import (
    DetectionJudge,
    Judge,
    LabelJudge,
    OutputJudge,
    make_judge,
)
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.trust.frames import Frame, Frames


def model_of(path: Path) -> tuple[Manifest, onnx.ModelProto]:
    manifest, model = load_manifest(path)
    return manifest, onnx.load(model)


def with_weaker_scores(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The same detector, ``factor`` times as sure of everything."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    last = [node for node in changed.graph.node if node.op_type == "Conv"][-1]
    for tensor in changed.graph.initializer:
        if tensor.name == last.input[1]:
            tensor.CopyFrom(
                numpy_helper.from_array(
                    numpy_helper.to_array(tensor) * np.float32(factor), tensor.name
                )
            )
    return changed


def labelled(frame: Frame) -> Frame:
    """A frame with a truth that no detector would find: a box in a corner."""
    box = np.array([[0, 0, 9, 9]], np.float32)
    truth = LabelledBoxes(0, box, np.ones(1, np.float32), ("red_block",))
    return replace(frame, truth=truth)


@pytest.fixture
def frames(image_folder: Path) -> list[Frame]:
    return list(Frames(str(image_folder)))[:4]


@pytest.fixture
def judge(conv_detector: Path, frames: list[Frame]) -> Judge:
    return make_judge(*model_of(conv_detector), frames)


def test_float_model_costs_nothing(judge: Judge, conv_detector: Path) -> None:
    _, model = model_of(conv_detector)
    assert isinstance(judge, DetectionJudge)
    assert judge.loss(model) == 0
    assert judge.distance(model) == pytest.approx(0, abs=1e-6)


def test_model_that_finds_nothing_loses_all(judge: Judge, conv_detector: Path) -> None:
    blind = with_weaker_scores(model_of(conv_detector)[1], 0.0)
    assert judge.loss(blind) == 100
    assert judge.distance(blind) == 1


def test_scores_that_move_without_a_loss_are_a_distance_only(
    judge: Judge, conv_detector: Path
) -> None:
    model = model_of(conv_detector)[1]
    slight, more = (with_weaker_scores(model, factor) for factor in (0.95, 0.7))
    assert judge.loss(more) == 0
    assert 0 < judge.distance(slight) < judge.distance(more) < 0.5


def test_labels_judge_where_every_frame_has_them(conv_detector: Path, frames: list[Frame]) -> None:
    manifest, model = model_of(conv_detector)
    mixed = make_judge(manifest, model, [labelled(frames[0]), frames[1]])
    judge = make_judge(manifest, model, [labelled(frame) for frame in frames])
    assert not isinstance(mixed, LabelJudge)
    assert isinstance(judge, LabelJudge)
    assert "mAP" in judge.unit
    assert judge.loss(model) == 0


def test_map_lost_is_told_in_points(conv_detector: Path, frames: list[Frame]) -> None:
    manifest, model = model_of(conv_detector)
    # What the float model finds in a frame is made its truth: float has mAP 1.
    true = [replace(f, truth=known_truth(i)) for i, f in enumerate(frames)]
    judge = make_judge(manifest, model, true)
    assert judge.loss(with_weaker_scores(model, 0.0)) == pytest.approx(100, abs=1)


def known_truth(index: int) -> LabelledBoxes:
    """The block of the ``image_folder``'s frame, as the detector tells it: twice its size."""
    left, top = index % 8 * 16 + 8, index // 3 * 16 + 8
    box = np.array([[left - 16, top - 16, left + 16, top + 16]], np.float32).clip(0)
    name = ("red_block", "green_block", "blue_block")[index % 3]
    return LabelledBoxes(0, box, np.ones(1, np.float32), (name,))


def test_model_that_finds_nothing_even_in_float_is_judged_by_its_outputs(
    tmp_path: Path, frames: list[Frame]
) -> None:
    manifest, model = model_of(write_conv_detector(tmp_path))
    unsure = with_weaker_scores(model, 0.1)
    judge = make_judge(manifest, unsure, frames)
    assert isinstance(judge, OutputJudge)
    assert judge.loss(unsure) == 0
    assert (
        judge.loss(with_weaker_scores(model, 0.2)) > judge.loss(with_weaker_scores(model, 0.15)) > 0
    )
