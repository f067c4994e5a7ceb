from __future__ import annotations

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pycocotools")
pytest.importorskip("onnx")
from edge_perception.core.manifest import parse_manifest
from training.detector.average import WeightAverage
from training.detector.checkpoint import load_checkpoint, save_checkpoint
from training.detector.config import ModelConfig
from training.detector.dataset import EMPTY, IGNORE, load_frames
from training.detector.evaluate import (
    describe_exam,
    onnx_predictor,
    score,
    suppress,
    torch_predictor,
)
from training.detector.export import export_onnx, manifest_of
from training.detector.model import NanoDetector
from training.detector.schedule import Budget, phase_at
from training.detector.train import Recipe, Trainer, train


def perfect_records(truth: dict) -> list[dict]:
    keys = ("image_id", "category_id", "bbox")
    return [{key: a[key] for key in keys} | {"score": 0.9} for a in truth["annotations"]]


def test_loaded_frames_hold_the_folder(toy_folder, toy_store):
    truth = json.loads((toy_folder / "instances.json").read_text())
    assert toy_store.images.shape == (16, 128, 160, 3)
    assert toy_store.class_names == ("disc", "block")
    x, y, w, h = truth["annotations"][0]["bbox"]
    assert toy_store.boxes[0, 0].tolist() == [x, y, x + w, y + h]


def test_shards_are_joined_and_crowds_become_ignore_regions(toy_folder, tmp_path):
    truth = json.loads((toy_folder / "instances.json").read_text())
    truth["annotations"][0]["iscrowd"] = 1
    truth["annotations"] = truth["annotations"][:1]
    (tmp_path / "images").symlink_to(toy_folder / "images")
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    store = load_frames([toy_folder, tmp_path], torch.device("cpu"))
    assert len(store) == 32
    assert store.classes[16].tolist() == [IGNORE, EMPTY]
    assert store.classes[17].tolist() == [EMPTY, EMPTY]


def test_shards_with_other_categories_are_refused(toy_folder, tmp_path):
    truth = json.loads((toy_folder / "instances.json").read_text())
    truth["categories"].reverse()
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    with pytest.raises(ValueError, match="same categories"):
        load_frames([toy_folder, tmp_path], torch.device("cpu"))


def test_a_missing_image_is_named(toy_folder, tmp_path):
    (tmp_path / "instances.json").write_text((toy_folder / "instances.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"000000\.jpg"):
        load_frames([tmp_path], torch.device("cpu"))


def test_perfect_detections_score_one_and_half_of_them_less(toy_folder, toy_store):
    path = toy_folder / "instances.json"
    records = perfect_records(json.loads(path.read_text()))
    ids = list(toy_store.image_ids)
    assert score(path, records, ids)["map50_95"] == 1.0
    assert score(path, records[::2], ids)["map50_95"] < 0.7
    assert score(path, [], ids)["map50_95"] == 0.0


def test_an_exam_is_described_by_occlusion_and_size(toy_folder):
    exam = describe_exam(toy_folder / "instances.json")
    assert (exam["frames"], exam["boxes"], exam["occluded_share"]) == (16, 32, 0.0)
    assert 400 / 20480 <= exam["median_box_share"] <= 2304 / 20480


def test_suppression_keeps_the_best_box_of_a_class():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.8, 0.9, 0.7, 0.3]), torch.tensor([0, 0, 1, 0])
    assert suppress(boxes, scores, labels).tolist() == [1, 2, 3]


def test_export_equals_torch_and_its_manifest_is_valid(tmp_path, toy_config, toy_store):
    torch.manual_seed(0)
    model = NanoDetector(toy_config)
    model.train()(toy_store.images[:8].permute(0, 3, 1, 2).float())  # statistics worth folding
    model.eval()
    expected = torch_predictor(model)(toy_store.images[:2])
    export_onnx(model, tmp_path / "toy.onnx")
    torch.testing.assert_close(
        onnx_predictor(tmp_path / "toy.onnx")(toy_store.images[:2]), expected, atol=1e-3, rtol=1e-3
    )
    mapping = manifest_of(toy_config, tmp_path / "toy.onnx", provenance={}, accuracy={})
    manifest = parse_manifest(mapping)
    assert manifest.outputs[0].shape == tuple(expected[:1].shape)


def test_the_default_model_fits_eight_megabytes():
    model = NanoDetector(ModelConfig(class_names=tuple("abcdefghijklmnop")))
    assert sum(p.numel() for p in model.parameters()) * 4 < 7.6e6


def test_a_checkpoint_comes_back_as_it_was(tmp_path, toy_config):
    model = NanoDetector(toy_config).eval()
    save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), toy_config)
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    images = torch.rand(1, 3, 128, 160) * 255
    assert loaded.config == toy_config
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize(
    ("progress", "mosaic", "distance"),
    [
        pytest.param(0.0, 0.5, 0.0, id="start"),
        pytest.param(0.5, 0.5, 0.0, id="middle"),
        pytest.param(0.9, 0.0, 1.0, id="closing: plain frames and L1"),
    ],
)
def test_phases_follow_progress(progress: float, mosaic: float, distance: float):
    phase = phase_at(progress, mosaic=0.5)
    assert (phase.mosaic, phase.distance_weight) == (mosaic, distance)


def test_the_rate_warms_up_and_then_only_falls():
    rates = [phase_at(i / 1000).rate for i in range(1001)]
    peak = rates.index(max(rates))
    assert rates[0] == 0
    assert 20 <= peak <= 40
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] <= 0.011


def test_a_budget_of_minutes_does_not_count_pauses():
    now = [0.0]
    budget = Budget(1.0, clock=lambda: now[0])
    now[0] = 15.0
    with budget.paused():
        now[0] = 100.0
    assert budget.progress(step=7) == pytest.approx(0.25)


def test_the_average_follows_weights_and_statistics(toy_config):
    model = NanoDetector(toy_config)
    average = WeightAverage(model, ramp=1.0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(1.0)
    before = average.model.backbone.stem.norm.running_mean.clone()
    for _ in range(3):
        average.update()
    after = average.model.backbone.stem.norm.running_mean
    assert ((after > before) & (after < before + 1)).all()


def test_a_short_run_lowers_the_loss_and_writes_its_files(tmp_path, toy_config, toy_store):
    recipe = Recipe(steps=40, batch=8, rate=4e-3, compile=False, log_every_s=0.0)
    train(toy_config, replace(recipe, evaluate_every_s=1e9), toy_store, None, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["box"] + line["objectness"] for line in lines if line["event"] == "progress"]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert load_checkpoint(tmp_path / "ema.safetensors").config == toy_config


def test_fine_tuning_starts_from_its_checkpoint_and_leaves_what_is_frozen(
    tmp_path, toy_config, toy_store
):
    torch.manual_seed(5)
    start = NanoDetector(toy_config)
    save_checkpoint(tmp_path / "start.safetensors", start.state_dict(), toy_config)
    recipe = Recipe(steps=3, batch=4, rate=1e-3, freeze=2, compile=False, evaluate_every_s=1e9)
    init = tmp_path / "start.safetensors"
    tuned = train(toy_config, recipe, toy_store, None, tmp_path / "out", init).state_dict()
    frozen = ("backbone.stem.", "backbone.stages.0.")
    for name, value in start.state_dict().items():
        if name.startswith(frozen):
            assert torch.equal(tuned[name], value), name
    assert any(not torch.equal(tuned[n], v) for n, v in start.state_dict().items())


def test_a_checkpoint_of_another_shape_is_refused(tmp_path, toy_config, toy_store):
    other = replace(toy_config, class_names=("disc", "ring"))
    save_checkpoint(tmp_path / "o.safetensors", NanoDetector(other).state_dict(), other)
    with pytest.raises(ValueError, match="expected a checkpoint of"):
        Trainer(toy_config, Recipe(compile=False), toy_store, tmp_path / "o.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_toy_run_learns_its_frames(tmp_path, toy_config, toy_folder, toy_store):
    recipe = Recipe(steps=250, batch=8, rate=4e-3, mosaic=0.25, compile=False)
    train(toy_config, recipe, toy_store, toy_folder, tmp_path)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["map50"] > 0.5
