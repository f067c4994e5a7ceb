"""From a detector and frames to an INT8 detector that the node runs unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from small_graphs import write_conv_detector
from tiny_models import write_detector

from edge_perception.backends.store import load_manifest, sha256_of
from edge_perception.core.latency import SpanRecorder
from edge_perception.detection.detector import DetectionSettings, open_detector
from edge_perception.errors import ConfigError, ManifestError, QuantizationError
from edge_perception.quantization.int8 import job
from edge_perception.quantization.int8.job import find_manifest, quantize_detector
from edge_perception.quantization.int8.macs import share_in_int8
from edge_perception.quantization.int8.recipe import Recipe
from edge_perception.trust.frames import Frame, Frames

# The tiny detector's edges are most of its arithmetic.
ALL = Recipe(frames=8, judging=4, least_share=0.0, edges=True)


@pytest.fixture
def frames(image_folder: Path) -> Frames:
    return Frames(str(image_folder))


def found_by(manifest: Path, frames: Frames) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    detector, settings = open_detector(manifest, threads=1), DetectionSettings()
    try:
        found = [detector.detect(f.pixels, f.format, settings, SpanRecorder()) for f in frames]
    finally:
        detector.close()
    return [(each.boxes_xyxy, each.scores, each.class_ids) for each in found]


def test_int8_detector_finds_what_float_finds(conv_detector: Path, frames: Frames) -> None:
    outcome = quantize_detector(conv_detector, frames, ALL)
    assert outcome.within_bounds
    assert outcome.report["int8_mac_share"] == 1.0
    for first, second in zip(
        found_by(conv_detector, frames), found_by(outcome.manifest, frames), strict=True
    ):
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_allclose(first[1], second[1], atol=0.03)
        np.testing.assert_array_equal(first[2], second[2])


def test_manifest_is_the_float_models_but_for_what_differs(
    conv_detector: Path, frames: Frames
) -> None:
    outcome = quantize_detector(conv_detector.with_name("model.onnx"), frames, ALL)
    assert outcome.model == conv_detector.with_name("model.int8.onnx")
    float_manifest, _ = load_manifest(conv_detector)
    manifest, model = load_manifest(outcome.manifest)
    assert model == outcome.model.resolve()
    assert manifest.precision == "int8"
    for same in ("head", "class_names", "inputs", "outputs", "preprocessing", "license", "source"):
        assert getattr(manifest, same) == getattr(float_manifest, same)
    assert manifest.provenance["quantised_from"] == float_manifest.sha256
    told = manifest.provenance["int8"]
    assert told["calibration_set"] == outcome.report["calibration_set"]["sha256"]
    assert told["calibration_frames"] == 8


def test_report_tells_the_share_that_the_written_model_has(
    conv_detector: Path, frames: Frames
) -> None:
    recipe = Recipe(frames=4, judging=2, exclude=("conv0", "conv[5-9]"), edges=True, max_drop=100)
    report = quantize_detector(conv_detector, frames, recipe).report
    model = onnx.load(conv_detector.with_name("model.int8.onnx"))
    assert report["int8_mac_share"] == pytest.approx(share_in_int8(model), abs=1e-5)
    assert {(e["layer"], e["why"]) for e in report["float_layers"]} == {
        ("conv0", "excluded"),
        ("conv6", "excluded"),
    }


@pytest.mark.parametrize("compact", [False, True])
def test_same_command_writes_the_same_bytes(
    compact: bool, conv_detector: Path, frames: Frames, tmp_path: Path
) -> None:
    recipe = Recipe(frames=5, judging=3, seed=3, compact=compact, max_drop=100)
    outs = [tmp_path / name / "model.onnx" for name in ("one", "two")]
    for out in outs:
        quantize_detector(conv_detector, frames, recipe, out)
    for suffix in (".onnx", ".yaml", ".json"):
        first, second = (out.with_suffix(suffix).read_bytes() for out in outs)
        assert first == second


def test_edges_stay_float_as_far_as_the_share_allows(conv_detector: Path, frames: Frames) -> None:
    def edges(least_share: float) -> set[str]:
        recipe = Recipe(frames=2, judging=1, max_drop=100, least_share=least_share)
        report = quantize_detector(conv_detector, frames, recipe).report
        return {entry["layer"] for entry in report["float_layers"] if entry["why"] == "edge"}

    assert edges(0.0) == {"conv0", "conv6"}
    assert edges(0.9) == {"conv6"}  # the first layer works on every pixel
    assert edges(1.0) == set()


class Clumsy:
    """A judge to whom only some layers matter, and who keeps count."""

    unit, tolerance = "points", 1.0

    def __init__(self, costs: dict[str, float], stop_after: int = 10**6) -> None:
        self.costs, self.measured, self.stop_after = costs, 0, stop_after

    def loss(self, model: onnx.ModelProto) -> float:
        return sum(cost for name, cost in self.costs.items() if name in int8_layers(model))

    def distance(self, model: onnx.ModelProto) -> float:
        if self.measured == self.stop_after:
            raise KeyboardInterrupt
        self.measured += 1
        return self.loss(model)


def int8_layers(model: onnx.ModelProto) -> set[str]:
    return {
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[0].endswith(":dq")
    }


@pytest.fixture
def judged_by(monkeypatch: pytest.MonkeyPatch):
    def judged_by(judge: Clumsy) -> Clumsy:
        monkeypatch.setattr(job, "make_judge", lambda *_: judge)
        return judge

    return judged_by


def test_worst_layers_go_back_to_float_until_the_loss_is_small_enough(
    judged_by, conv_detector: Path, frames: Frames
) -> None:
    judged_by(Clumsy({"conv3": 5.0, "conv2": 3.0, "conv0": 0.5}))
    outcome = quantize_detector(conv_detector, frames, ALL)
    floats = [(entry["layer"], entry["why"]) for entry in outcome.report["float_layers"]]
    assert floats == [("conv3", "restored"), ("conv2", "restored")]
    assert outcome.within_bounds
    assert [e["layer"] for e in outcome.report["sensitivity"][:3]] == ["conv3", "conv2", "conv0"]


def test_layer_that_takes_little_arithmetic_out_of_int8_goes_first(
    judged_by, conv_detector: Path, frames: Frames
) -> None:
    judged_by(Clumsy({"conv2": 5.0, "conv3": 3.0}))  # conv3 is depthwise
    report = quantize_detector(conv_detector, frames, ALL).report
    assert [entry["layer"] for entry in report["float_layers"]] == ["conv3", "conv2"]


def test_layer_that_would_leave_too_little_in_int8_is_passed_over(
    judged_by, conv_detector: Path, frames: Frames
) -> None:
    # conv2, a mean of 8x8 px by a full matrix, is nearly half of the arithmetic.
    judged_by(Clumsy({"conv2": 5.0, "conv3": 3.0}))
    recipe = Recipe(frames=4, judging=2, least_share=0.6, edges=True)
    outcome = quantize_detector(conv_detector, frames, recipe)
    assert [entry["layer"] for entry in outcome.report["float_layers"]] == ["conv3"]
    assert not outcome.within_bounds
    assert outcome.report["loss"]["value"] == 5.0


class FondOfEvenChannels(Clumsy):
    """A judge that loses ``uneven`` points wherever a convolution reads a tensor as it was."""

    def __init__(self, uneven: float) -> None:
        super().__init__({})
        self.uneven = uneven

    def loss(self, model: onnx.ModelProto) -> float:
        even = any(node.op_type == "Mul" for node in model.graph.node)
        return 0.5 if even else self.uneven


@pytest.mark.parametrize(
    ("equalise", "uneven", "done"),
    [
        pytest.param("if_needed", 5.0, True, id="too much is lost without"),
        pytest.param("if_needed", 0.9, False, id="good enough without"),
        pytest.param("always", 0.0, True, id="asked for"),
    ],
)
def test_inputs_are_equalised_where_it_is_needed(
    judged_by, conv_detector: Path, frames: Frames, equalise: str, uneven: float, done: bool
) -> None:
    judge = judged_by(FondOfEvenChannels(uneven))
    outcome = quantize_detector(conv_detector, frames, replace(ALL, equalise=equalise))
    assert (outcome.report["equalised_inputs"] > 0) is done
    assert not judge.measured, "no sweep, as the loss is within bounds"
    assert found_by(outcome.manifest, frames), "the written model runs"


def test_edges_of_an_equalised_model_are_the_same(conv_detector: Path, frames: Frames) -> None:
    left_float = [
        {
            entry["layer"]
            for entry in quantize_detector(
                conv_detector, frames, Recipe(frames=4, judging=2, least_share=0, equalise=equalise)
            ).report["float_layers"]
            if entry["why"] == "edge"
        }
        for equalise in ("never", "always")
    ]
    assert left_float[0] == left_float[1] != set()


def test_equalised_model_that_is_no_better_is_not_taken(
    judged_by, conv_detector: Path, frames: Frames
) -> None:
    judged_by(Clumsy({"conv3": 5.0}))
    assert quantize_detector(conv_detector, frames, ALL).report["equalised_inputs"] == 0


def test_missing_frames_are_made_up_for_by_variants(conv_detector: Path, frames: Frames) -> None:
    few, enough = (
        quantize_detector(conv_detector, frames, Recipe(frames=count, judging=2)).report
        for count in (40, 4)
    )
    assert (few["calibration_set"]["frames"], few["calibration_variants"]) == (10, 30)
    assert (enough["calibration_set"]["frames"], enough["calibration_variants"]) == (4, 0)


def test_stopped_sweep_is_taken_up_by_the_same_command(
    judged_by, conv_detector: Path, frames: Frames
) -> None:
    costs = {"conv3": 5.0}
    judged_by(Clumsy(costs, stop_after=2))
    with pytest.raises(KeyboardInterrupt):
        quantize_detector(conv_detector, frames, ALL)
    assert not conv_detector.with_name("model.int8.onnx").exists()
    second = judged_by(Clumsy(costs))
    outcome = quantize_detector(conv_detector, frames, ALL)
    assert second.measured == 2  # of four layers
    assert len(outcome.report["sensitivity"]) == 4
    assert {path.name for path in conv_detector.parent.iterdir()} == {
        *("model.onnx", "manifest.yaml"),
        *("model.int8.onnx", "model.int8.yaml", "model.int8.json"),
    }


def test_run_that_dies_while_writing_leaves_no_manifest_of_another_model(
    conv_detector: Path, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = quantize_detector(conv_detector, frames, ALL)
    before = sha256_of(outcome.model)

    def die(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        path.write_bytes(content)

    monkeypatch.setattr(job, "write_atomically", die)
    with pytest.raises(KeyboardInterrupt):
        quantize_detector(conv_detector, frames, Recipe(frames=3, judging=1, max_drop=100))
    assert sha256_of(outcome.model) != before
    assert not outcome.manifest.exists()


def test_sweep_is_made_on_request_without_putting_anything_back(
    conv_detector: Path, frames: Frames
) -> None:
    recipe = Recipe(frames=3, judging=2, sweep=True, edges=True, max_drop=100)
    report = quantize_detector(conv_detector, frames, recipe).report
    assert len(report["sensitivity"]) == 4
    assert report["float_layers"] == []
    losses = [entry["loss"] for entry in report["sensitivity"]]
    assert losses == sorted(losses, reverse=True)


def test_report_is_what_evaluate_takes_for_its_sensitivity(
    conv_detector: Path, frames: Frames
) -> None:
    quantize_detector(conv_detector, frames, Recipe(frames=3, judging=2, sweep=True))
    content = json.loads(conv_detector.with_name("model.int8.json").read_text())
    assert all({"layer", "loss"} <= entry.keys() for entry in content["sensitivity"])


def test_int8_model_is_not_quantised_again(conv_detector: Path, frames: Frames) -> None:
    outcome = quantize_detector(conv_detector, frames, ALL)
    with pytest.raises(QuantizationError, match=r"names no float32 model.*got 'int8'"):
        quantize_detector(outcome.manifest, frames, ALL)


def test_quantised_graph_under_a_float_manifest_is_refused(
    conv_detector: Path, frames: Frames
) -> None:
    outcome = quantize_detector(conv_detector, frames, ALL)
    mapping = yaml.safe_load(outcome.manifest.read_text()) | {"precision": "float32"}
    outcome.manifest.write_text(yaml.safe_dump(mapping))
    with pytest.raises(QuantizationError, match="quantised already"):
        quantize_detector(outcome.manifest, frames, ALL)


def test_model_without_layers_is_refused(tmp_path: Path, frames: Frames) -> None:
    with pytest.raises(QuantizationError, match=r"nothing to quantise.*AveragePool"):
        quantize_detector(write_detector(tmp_path / "model"), frames, ALL)


def test_frames_that_no_model_reads_are_told(conv_detector: Path) -> None:
    none: list[Frame] = []
    with pytest.raises(QuantizationError, match="nothing to calibrate with"):
        quantize_detector(conv_detector, none, ALL)


def test_pattern_of_no_layer_is_told_with_the_names_there_are(
    conv_detector: Path, frames: Frames
) -> None:
    with pytest.raises(QuantizationError, match=r"no layer has such a name.*conv0.*got 'head\*'"):
        quantize_detector(conv_detector, frames, Recipe(frames=2, exclude=("head*",)))


def test_model_without_a_manifest_is_told(tmp_path: Path) -> None:
    write_conv_detector(tmp_path).rename(tmp_path / "elsewhere.yaml")
    with pytest.raises(ManifestError, match=r"no manifest beside it.*model\.yaml"):
        find_manifest(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"calibrator": "guess"}, r"calibrator.*one of minmax.*got 'guess'"),
        ({"equalise": "yes"}, r"equalise.*one of if_needed.*got 'yes'"),
        ({"frames": 0}, r"frames.*at least one"),
        ({"least_share": 1.5}, r"least_share.*0 to 1"),
        ({"smooth_alpha": -0.1}, r"smooth_alpha.*0 to 1"),
    ],
)
def test_recipe_out_of_range_is_refused(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Recipe(**change)


def test_broken_frame_is_counted_out_not_calibrated_with(
    conv_detector: Path, image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(image_folder.iterdir())[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    outcome = quantize_detector(conv_detector, Frames(str(folder)), ALL)
    assert outcome.report["calibration_set"]["of"] == 3


def test_progress_is_told_by_stage(conv_detector: Path, frames: Frames) -> None:
    steps: dict[str, int] = {}

    def progress(stage: str, total: int):
        steps[stage] = 0
        assert total in (0, 8, 4)
        return lambda: steps.update({stage: steps[stage] + 1})

    quantize_detector(conv_detector, frames, ALL, progress=progress)
    assert steps["looking at frames"] == 12
    assert steps["calibrating"] == 8


def unread() -> Iterator[Frame]:
    raise AssertionError("no frame is read before the model is known to be good")
    yield


def test_bad_manifest_is_told_before_any_frame_is_read(conv_detector: Path) -> None:
    (conv_detector.with_name("model.onnx")).write_bytes(b"another model")
    with pytest.raises(ManifestError, match="is not the one that manifest"):
        quantize_detector(conv_detector, unread(), ALL)
