"""Every exported family, float and quantised, is built for an RTX 3090 by NVIDIA's own builder."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

trt = pytest.importorskip("tensorrt_rtx_bindings")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from tiny_checkpoints import HEIGHT, WIDTH, write_checkpoint

from edge_perception.backends.engine_store import StoredEngine
from edge_perception.backends.engines import EngineRequest, obtain_engine
from edge_perception.backends.store import load_manifest
from edge_perception.cli import main
from edge_perception.core.engine import Gpu
from edge_perception.embedded import carried_file
from edge_perception.quantization.int8.job import quantize_detector
from edge_perception.quantization.int8.recipe import Recipe
from edge_perception.trust.frames import Frames
from training.detector.config import ModelConfig
from training.detector.export import export_onnx, manifest_of
from training.detector.model import NanoDetector

FIXED_SIZE = ("rt_detr", "vit")  # kinds whose checkpoint says how large its images are


@pytest.fixture(params=["rt_detr", "detr", "yolos", "vit", "vit_detector"])
def manifests(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The float model's manifest and the quantised one's: true architecture, random weights."""
    make = write_vit_detector if request.param == "vit_detector" else export_checkpoint
    manifest = make(tmp_path, request.param)
    frames = list(itertools.islice(Frames(str(carried_file("demo/demo.mcap"))), 5))
    recipe = Recipe(frames=3, judging=2, max_drop=100)
    return manifest, quantize_detector(manifest, frames, recipe).manifest


def export_checkpoint(folder: Path, kind: str) -> Path:
    out = folder / "model.onnx"
    write_checkpoint(folder / kind, kind)
    size = [] if kind in FIXED_SIZE else ["--size", str(HEIGHT), str(WIDTH)]
    assert main(["export", str(folder / kind), "--out", str(out), *size]) == 0
    return out.with_suffix(".yaml")


def write_vit_detector(folder: Path, name: str) -> Path:
    """ViTDet as training/vit_detector makes it; its windows do not divide this size evenly."""
    config = ModelConfig(("one", "two"), height=96, width=128, vit_width=64, vit_depth=4)
    torch.manual_seed(0)
    onnx, manifest = folder / f"{name}.onnx", folder / f"{name}.yaml"
    export_onnx(NanoDetector(config).eval(), onnx)
    mapping = manifest_of(config, onnx, provenance={}, accuracy={})
    manifest.write_text(yaml.safe_dump(mapping))
    return manifest


def build(manifest_path: Path, precision: str) -> StoredEngine:
    manifest, model = load_manifest(manifest_path)
    request = EngineRequest("tensorrt_rtx", precision, store=manifest_path.parent / "engines")
    return obtain_engine(manifest_path, manifest, model, request, Gpu("8.6"))


def test_family_builds_in_every_precision(manifests: tuple[Path, Path]) -> None:
    float_manifest, int8_manifest = manifests
    single, half = (build(float_manifest, precision) for precision in ("float32", "float16"))
    assert half.record.plan_bytes < single.record.plan_bytes
    quantised = build(int8_manifest, "auto").record
    assert quantised.spec.precision == "int8"
    assert len(quantised.spec.calibration_sha256) == 64
