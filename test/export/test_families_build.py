"""Every exported family, float and quantised, is built for an RTX 3090 by NVIDIA's own builder."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

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
from edge_perception.quantization.int8.job import Recipe, quantize_detector
from edge_perception.trust.frames import Frames

FIXED_SIZE = ("rt_detr", "vit")  # kinds whose checkpoint says how large its images are


@pytest.fixture(params=["rt_detr", "detr", "yolos", "vit"])
def manifests(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The float model's manifest and the quantised one's: true architecture, random weights."""
    kind, out = request.param, tmp_path / "model.onnx"
    write_checkpoint(tmp_path / kind, kind)
    size = [] if kind in FIXED_SIZE else ["--size", str(HEIGHT), str(WIDTH)]
    assert main(["export", str(tmp_path / kind), "--out", str(out), *size]) == 0
    frames = list(itertools.islice(Frames(str(carried_file("demo/demo.mcap"))), 5))
    recipe = Recipe(frames=3, judging=2, max_drop=100)
    quantised = quantize_detector(out.with_suffix(".yaml"), frames, recipe)
    return out.with_suffix(".yaml"), quantised.manifest


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
