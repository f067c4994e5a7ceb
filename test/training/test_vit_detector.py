"""The plain-ViT detector learns, is saved, exported and found by the node's own decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
from edge_perception.core.manifest import parse_manifest
from edge_perception.detection.decoders import check_head
from training.detector.checkpoint import load_checkpoint, save_checkpoint
from training.detector.export import export_onnx, manifest_of
from training.detector.model import NanoDetector, grid_cells
from training.detector.schedule import phase_at
from training.detector.train import Recipe, Trainer


@pytest.fixture
def vit_config(toy_config):
    return replace(toy_config, vit_width=64, vit_depth=2)


def test_cells_are_those_of_the_convolutional_detector(vit_config, toy_config):
    images = torch.rand(2, 3, toy_config.height, toy_config.width) * 255
    with torch.inference_mode():
        found = NanoDetector(vit_config).eval()(images)
        assert found.shape == NanoDetector(toy_config).eval()(images).shape
    assert found.shape[1] == len(grid_cells(toy_config.height, toy_config.width))


def test_steps_lower_the_loss(vit_config, toy_store):
    recipe = Recipe(steps=30, batch=8, rate=2e-3, mosaic=0.0, compile=False)
    trainer = Trainer(vit_config, recipe, toy_store)
    losses = [trainer.step(phase_at(0.2, mosaic=0.0)).total.item() for _ in range(30)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_frozen_levels_are_embedding_and_layers(vit_config, toy_store):
    trainer = Trainer(vit_config, Recipe(steps=1, batch=2, freeze=2, compile=False), toy_store)
    backbone = trainer.model.backbone
    held = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert held
    assert all("embeddings" in name or ".0." in name for name in held)
    assert len(backbone.stages) == 2


def test_saved_and_exported_it_is_a_yolox_head(vit_config, tmp_path):
    model = NanoDetector(vit_config).eval()
    save_checkpoint(tmp_path / "vit.safetensors", model.state_dict(), vit_config)
    loaded = load_checkpoint(tmp_path / "vit.safetensors")
    assert loaded.config == vit_config
    export_onnx(loaded, tmp_path / "vit.onnx")
    mapping = manifest_of(vit_config, tmp_path / "vit.onnx", provenance={}, accuracy={})
    check_head(parse_manifest(mapping))
