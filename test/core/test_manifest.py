"""Manifests: what is taken, and what each mistake is told."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import manifest_mapping

from edge_perception.core.manifest import Manifest, parse_manifest
from edge_perception.errors import ManifestError


def mapping(**changes: Any) -> dict[str, Any]:
    return {**manifest_mapping("yolov8", (1, 7, 64)), **changes}


def preprocessing(**changes: Any) -> dict[str, Any]:
    return {"height": 64, "width": 64, **changes}


def test_sound_manifest_is_read() -> None:
    manifest = parse_manifest(mapping(provenance={"data": ["seed", 1]}, accuracy={"map": 0.6}))
    assert isinstance(manifest, Manifest)
    assert manifest.class_names == ("red_block", "green_block", "blue_block")
    assert manifest.inputs[0].shape == manifest.preprocessing.input_shape == (1, 3, 64, 64)
    assert manifest.outputs[0].dtype == "float32"
    assert manifest.preprocessing.scale == pytest.approx(1 / 255)
    assert manifest.accuracy["map"] == 0.6


def test_nhwc_input_follows_its_layout() -> None:
    manifest = parse_manifest(
        mapping(
            inputs=[{"name": "images", "shape": [1, 64, 64, 3]}],
            preprocessing=preprocessing(layout="nhwc"),
        )
    )
    assert manifest.preprocessing.input_shape == (1, 64, 64, 3)


NAN = float("nan")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (None, "expected a mapping, got None"),
        ([1, 2], "expected a mapping"),
        ("text", "expected a mapping"),
        ({}, "manifest schema"),
        (mapping(schema=2), "manifest schema"),
        (mapping(head="resnet"), "head: expected one of"),
        (mapping(head=["yolox"]), "head"),
        (mapping(precision="int3"), "precision: expected one of"),
        (mapping(sha256="abc"), "64 lower-case hex digits"),
        (mapping(sha256="A" * 64), "64 lower-case hex digits"),
        (mapping(sha256=12), "sha256"),
        (mapping(model=5), "model"),
        (mapping(name=5), "name"),
        (mapping(class_names=[]), "distinct names"),
        (mapping(class_names=["a", "a"]), "distinct names"),
        (mapping(class_names="abc"), "list of strings"),
        (mapping(class_names=[1, 2]), "list of strings"),
        (mapping(class_names=None), "list of strings"),
        (mapping(inputs=None), "inputs: expected a list of tensors"),
        (mapping(inputs=[]), "exactly one image tensor"),
        (mapping(inputs=[7]), r"inputs\[0\]: expected a mapping"),
        (mapping(inputs=[{"name": "images"}]), r"inputs\[0\] is incomplete"),
        (mapping(inputs=[{"name": "images", "shape": []}]), "bad shape"),
        (mapping(inputs=[{"name": "images", "shape": [1, 3, -1, 64]}]), "bad shape"),
        (mapping(inputs=[{"name": "images", "shape": 5}]), "shape"),
        (mapping(inputs=[{"name": "images", "shape": [1, "x"]}]), "shape"),
        (mapping(inputs=[{"name": "images", "shape": [1.5, 3]}]), "shape"),
        (mapping(inputs=[{"name": "images", "shape": [1, 3, 32, 64]}]), "disagree"),
        (
            mapping(inputs=[{"name": "images", "shape": [1, 3, 64, 64], "dtype": "bf16"}]),
            "dtype of tensor 'images'",
        ),
        (mapping(outputs=[]), "outputs: expected at least one"),
        (mapping(outputs=3), "outputs: expected a list of tensors"),
        (mapping(preprocessing=None), "preprocessing: expected a mapping"),
        (mapping(preprocessing={"height": 64}), "preprocessing is incomplete"),
        (mapping(preprocessing=preprocessing(gamma=2)), "unknown keys.*gamma"),
        (mapping(preprocessing=preprocessing(height=0)), "1 to 8192 px"),
        (mapping(preprocessing=preprocessing(height=64.5)), "height"),
        (mapping(preprocessing=preprocessing(height="64")), "height"),
        (mapping(preprocessing=preprocessing(height=True)), "height"),
        (mapping(preprocessing=preprocessing(color="gray")), "preprocessing.color"),
        (mapping(preprocessing=preprocessing(pad_align="left")), "preprocessing.pad_align"),
        (mapping(preprocessing=preprocessing(layout="chw")), "preprocessing.layout"),
        (mapping(preprocessing=preprocessing(dtype="int8")), "preprocessing.dtype"),
        (mapping(preprocessing=preprocessing(pad_value=300)), "pad_value: expected 0 to 255"),
        (mapping(preprocessing=preprocessing(scale="big")), "scale"),
        (mapping(preprocessing=preprocessing(scale=NAN)), "finite"),
        (mapping(preprocessing=preprocessing(std=[1, 0, 1])), "std not 0"),
        (mapping(preprocessing=preprocessing(std=[1, 1])), "three values each"),
        (mapping(preprocessing=preprocessing(mean=["a", 0, 0])), "mean"),
        (mapping(preprocessing=preprocessing(mean=[NAN, 0, 0])), "finite"),
        (mapping(provenance=[1]), "provenance: expected a mapping"),
        (mapping(speed="fast"), "unknown keys.*speed"),
        ({k: v for k, v in mapping().items() if k != "license"}, "incomplete.*license"),
    ],
)
def test_mistake_is_told(wrong: object, told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        parse_manifest(wrong)


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(mapping())), yaml_values)
def test_any_value_anywhere_is_taken_or_refused_as_a_manifest_error(
    key: str, value: object
) -> None:
    with contextlib.suppress(ManifestError):
        parse_manifest(mapping(**{key: value}))


@given(st.sampled_from(["height", "width", "scale", "mean", "std", "pad_value"]), yaml_values)
def test_any_preprocessing_value_is_taken_or_refused_as_a_manifest_error(
    key: str, value: object
) -> None:
    with contextlib.suppress(ManifestError):
        parse_manifest(mapping(preprocessing=preprocessing(**{key: value})))
