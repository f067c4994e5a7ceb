"""Every model against NVIDIA's own parser and builder, for an RTX 3090, on a machine without one.

TensorRT for RTX builds for any GPU that it supports. It types strongly, as TensorRT 11 does, so
this is also what shows that our graphs are typed well. Running what it builds needs the GPU: that
is ``test_backends.py``.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_tensorrt import open_session
from onnx import TensorProto, helper, version_converter
from small_graphs import write_conv_detector
from tiny_models import HEADS, write_detector, write_model

trt = pytest.importorskip("tensorrt_rtx_bindings")
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edge_perception.backends.build import BuildOptions, build_plan
from edge_perception.backends.engine_store import EngineStore
from edge_perception.backends.engines import EngineRequest, obtain_engine
from edge_perception.backends.half import to_half
from edge_perception.backends.store import load_manifest
from edge_perception.core.engine import Gpu
from edge_perception.embedded import carried_file, demo_manifest
from edge_perception.errors import EngineError
from edge_perception.gpu.preprocess import Preprocessor
from edge_perception.quantization.int8.job import quantize_detector
from edge_perception.quantization.int8.recipe import Recipe
from edge_perception.trust.frames import Frames

RTX_3090 = Gpu("8.6", "NVIDIA GeForce RTX 3090")
SHARED_MODEL = Path(__file__).parents[3] / "shared" / "data" / "models" / "yolox_nano.onnx"
ROOT = Path(__file__).parents[2]

needs_shared_model = pytest.mark.skipif(
    not SHARED_MODEL.is_file(), reason="the shared YOLOX-Nano is not at hand"
)


def build(model: bytes, precision: str) -> bytes:
    typed = model if precision == "float32" else to_half(model)
    return build_plan(trt, typed, BuildOptions(precision, target="8.6")).plan


class Noise(CalibrationDataReader):  # type: ignore[misc]
    """Two pictures of noise: enough for scales that a builder accepts."""

    def __init__(self, model: Path) -> None:
        (image,) = onnx.load(model, load_external_data=False).graph.input
        shape = [side.dim_value for side in image.type.tensor_type.shape.dim]
        chance = np.random.default_rng(0)
        pictures = (chance.random(shape, np.float32) * 255 for _ in range(2))
        self._feeds: Iterator[dict[str, np.ndarray]] = ({image.name: p} for p in pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantised(model: Path, folder: Path, *, biases: bool = False) -> bytes:
    """Quantise by ONNX Runtime: explicit Q/DQ, symmetric, per channel; biases float if not told."""
    lifted = version_converter.convert_version(onnx.load(model), 17)  # scales a channel need 13
    quantize_static(
        lifted,
        folder / "quantised.onnx",
        Noise(model),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": biases,
        },
    )
    return (folder / "quantised.onnx").read_bytes()


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_family_builds(head: str, precision: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx", head)
    assert build((tmp_path / "model.onnx").read_bytes(), precision)


@pytest.fixture(scope="module")
def demo_graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The demo detector, and what our own quantiser makes of it with six frames."""
    out = tmp_path_factory.mktemp("demo") / "demo.int8.onnx"
    frames = list(itertools.islice(Frames(str(carried_file("demo/demo.mcap"))), 6))
    recipe = Recipe(frames=4, judging=2, max_drop=100)
    quantize_detector(demo_manifest(), frames, recipe, out)
    return {"float": load_manifest(demo_manifest())[1].read_bytes(), "int8": out.read_bytes()}


def test_demo_detector_builds_in_every_precision(demo_graphs: dict[str, bytes]) -> None:
    sizes = {
        precision: len(build(demo_graphs[graph], precision))
        for precision, graph in (("float32", "float"), ("float16", "float"), ("int8", "int8"))
    }
    # FP16 halves the weights; what INT8 saves, its choice of kernels may cost again.
    assert sizes["float16"] < 0.75 * sizes["float32"]


def test_quantised_demo_detector_is_as_near_to_float_in_fp16(demo_graphs: dict[str, bytes]) -> None:
    manifest, _ = load_manifest(demo_manifest())
    frame = next(iter(Frames(str(carried_file("demo/demo.mcap")))))
    image, _ = Preprocessor(manifest.preprocessing)(frame.pixels, frame.format)

    def distance(model: bytes) -> float:
        found, truth = (
            open_session(graph).run(None, {"images": image})[0]
            for graph in (model, demo_graphs["float"])
        )
        return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))

    assert distance(to_half(demo_graphs["float"])) < 0.01
    assert distance(to_half(demo_graphs["int8"])) < 1.2 * distance(demo_graphs["int8"])


@needs_shared_model
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_yolox_nano_builds_in_every_precision(precision: str, tmp_path: Path) -> None:
    model = SHARED_MODEL.read_bytes()
    assert build(quantised(SHARED_MODEL, tmp_path) if precision == "int8" else model, precision)


def test_detector_with_equalised_inputs_builds_in_int8(tmp_path: Path) -> None:
    manifest = write_conv_detector(tmp_path / "model")
    frames = list(itertools.islice(Frames(str(carried_file("demo/demo.mcap"))), 4))
    recipe = Recipe(frames=2, judging=2, max_drop=1e9, equalise="always", edges=True)
    outcome = quantize_detector(manifest, frames, recipe)
    assert outcome.report["equalised_inputs"]
    assert build(outcome.model.read_bytes(), "int8")


def test_engine_of_a_manifest_is_built_for_the_3090_and_found_again(tmp_path: Path) -> None:
    path = demo_manifest()
    manifest, model = load_manifest(path)
    request = EngineRequest("tensorrt_rtx", store=tmp_path / "engines")
    told: list[str] = []
    built = obtain_engine(path, manifest, model, request, RTX_3090, told.append)
    assert any("building engine" in text for text in told)
    assert (built.record.spec.runtime_version, built.record.spec.compute_capability) == (
        trt.__version__,
        "8.6",
    )
    another_card = replace(RTX_3090, name="NVIDIA RTX A4000")  # plans are for the capability
    never = replace(request, policy="never")
    assert obtain_engine(path, manifest, model, never, another_card) == built
    with pytest.raises(EngineError, match=r"GPU compute capability: built for 8\.6, here 8\.9"):
        obtain_engine(path, manifest, model, never, Gpu("8.9"))


def test_quantised_biases_are_refused_in_nvidias_words(tmp_path: Path) -> None:
    # Why our biases stay float.
    model = load_manifest(demo_manifest())[1]
    with pytest.raises(EngineError, match="Int32"):
        build(quantised(model, tmp_path, biases=True), "float32")


@pytest.mark.parametrize("kept_bytes", [0, 10, 200])
def test_model_that_is_cut_short_is_told(kept_bytes: int, tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx", "yolov8")
    with pytest.raises(EngineError, match="cannot load the ONNX model"):
        build((tmp_path / "model.onnx").read_bytes()[:kept_bytes], "float32")


def test_operator_that_nobody_has_is_named(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, 8, 8))
    node = helper.make_node("Imaginary", ["x"], ["y"], domain="com.example")
    graph = helper.make_graph([node], "imaginary", [image], [result])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises(EngineError, match="Imaginary"):
        build(model.SerializeToString(), "float32")


def test_gpu_that_it_does_not_support_is_told(tmp_path: Path) -> None:
    path = write_detector(tmp_path)
    manifest, model = load_manifest(path)
    request = EngineRequest("tensorrt_rtx", store=tmp_path / "engines")
    with pytest.raises(EngineError, match=r"compute capability 8\.7 here"):
        obtain_engine(path, manifest, model, request, Gpu("8.7", "Orin"))


# The real builder, killed.


def start_build(manifest: Path, store: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "edge_perception.cli", "build", str(manifest)]
    command += ["--backend", "tensorrt_rtx", "--compute-capability", "8.6", "--store", str(store)]
    return subprocess.Popen(
        [*command, "--force"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_real_build_killed_50_times_never_leaves_a_store_that_misleads(tmp_path: Path) -> None:
    chance, store = random.Random(0), EngineStore(tmp_path / "engines")
    started = time.monotonic()
    assert start_build(demo_manifest(), store.folder).wait() == 0
    whole_s = time.monotonic() - started
    finished = plans_in(store)
    killed = 0
    while killed < 50:
        if killed % 3 == 2:  # sometimes there is no engine from before
            for path in (*store.folder.glob("*.yaml"), *store.folder.glob("*.plan")):
                path.unlink()
        before = plans_in(store)
        builder = start_build(demo_manifest(), store.folder)
        time.sleep(chance.uniform(0.3, 1.05) * whole_s)
        builder.send_signal(signal.SIGKILL)
        killed += builder.wait() == -signal.SIGKILL
        assert plans_in(store) in (before, finished)
    assert start_build(demo_manifest(), store.folder).wait() == 0
    assert plans_in(store) == finished
    assert len(list(store.folder.glob("*.plan"))) == 1
    assert list(store.folder.glob("*.tmp")) == []


def plans_in(store: EngineStore) -> dict[str, str]:
    """Read every engine that a store tells of, checked; return its plan's hash by its key."""
    found = {}
    for record in store.records():
        engine = store.find(record.spec)
        assert engine is not None
        found[record.spec.key] = engine.record.plan_sha256
    return found
