"""Manifests on disk, and models that are not the ones they name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tiny_models import write_detector

from edge_perception.backends.store import load_manifest, sha256_of
from edge_perception.errors import ManifestError


def test_manifest_comes_with_its_models_path(tmp_path: Path) -> None:
    manifest, model = load_manifest(write_detector(tmp_path, "yolox"))
    assert manifest.head == "yolox"
    assert model == tmp_path / "model.onnx"


def test_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000  # more than one chunk
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "expected a mapping"),
        (b"a: [1, 2", "cannot read manifest"),
        (b"\xff\xfe\x00", "cannot read manifest"),
        (b"!!python/object/apply:os.system ['true']", "cannot read manifest"),
        (b"schema: 1", "inputs"),
        (b"- 1\n- 2", "expected a mapping"),
    ],
)
def test_file_that_is_no_manifest_is_told_with_its_path(
    tmp_path: Path, text: bytes, told: str
) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_bytes(text)
    with pytest.raises(ManifestError, match=told) as refused:
        load_manifest(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_path_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match="cannot read manifest"):
        load_manifest(tmp_path / name)


def test_one_changed_byte_of_the_model_is_noticed(tmp_path: Path) -> None:
    path = write_detector(tmp_path)
    model = tmp_path / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(ManifestError, match="is not the one") as refused:
        load_manifest(path)
    assert sha256_of(model) in str(refused.value)


@pytest.mark.parametrize("model", ["../outside.onnx", "/etc/hostname", "link.onnx"])
def test_model_outside_the_manifests_folder_is_refused(tmp_path: Path, model: str) -> None:
    (tmp_path / "outside.onnx").write_bytes(b"x")
    folder = tmp_path / "inside"
    path = write_detector(folder, model=model)
    (folder / "link.onnx").symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(ManifestError, match="outside its folder"):
        load_manifest(path)
