"""Graphs of random weights travel as their seeds and arrive to the byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from benchmarks.int8 import seeded

SIDE = 16


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Two convolutions that share a bias, as exporters let them; then a matrix."""
    helper, chance = onnx.helper, np.random.default_rng(0)
    tensors = {
        "first": chance.random((32, 3, 7, 7)),
        "second": chance.random((32, 32, 3, 3)),
        "bias": np.zeros(32),
        "matrix": chance.random((SIDE, 300)),
    }
    nodes = [
        helper.make_node("Conv", ["images", "first", "bias"], ["a"], "one", pads=[3] * 4),
        helper.make_node("Conv", ["a", "second", "bias"], ["b"], "two", pads=[1] * 4),
        helper.make_node("MatMul", ["b", "matrix"], ["output"], "three"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("images", 1, [1, 3, SIDE, SIDE])],
        [value("output", 1, [1, 32, SIDE, 300])],
        [onnx.numpy_helper.from_array(v.astype(np.float32), name) for name, v in tensors.items()],
    )
    path = tmp_path / "exported.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    onnx.save(model, path)
    return path


def test_reseeded_convolutions_have_outputs_of_deviation_1(exported: Path, tmp_path: Path) -> None:
    seeded.reseed(exported, out := tmp_path / "reseeded.onnx")
    model = onnx.load(out)
    for name in "ab":
        output = seeded._output_on_noise(model, name)
        assert np.abs(output.mean(axis=1)).max() < 1e-4
        assert np.abs(np.log2(output.std(axis=1))).max() < 1 / seeded.STEPS_AN_OCTAVE
    matrix = onnx.numpy_helper.to_array(model.graph.initializer[3])
    assert matrix.std() == pytest.approx(0.02, rel=0.05)


def test_pack_is_small_and_unpacks_to_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    seeded.reseed(exported, model := tmp_path / "reseeded.onnx")
    seeded.pack(model, pack := tmp_path / "pack.npz")
    assert pack.stat().st_size < 0.2 * model.stat().st_size
    seeded.unpack(pack, again := tmp_path / "again.onnx")
    assert again.read_bytes() == model.read_bytes()


def test_other_draws_are_refused(exported: Path, tmp_path: Path) -> None:
    seeded.reseed(exported, model := tmp_path / "reseeded.onnx")
    seeded.pack(model, pack := tmp_path / "pack.npz")
    with np.load(pack) as file:
        arrays = dict(file)
    arrays["draws"][0, 0] += 1
    np.savez_compressed(pack, **arrays)
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"expected SHA-256 {sha256}"):
        seeded.unpack(pack, tmp_path / "again.onnx")
    assert not (tmp_path / "again.onnx").exists()
