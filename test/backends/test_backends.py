"""What every backend must keep to: one suite for all that the machine has.

A backend joins by a row in ``BACKENDS``. Engines need a GPU; without one the same code runs on
fakes of the TensorRT versions, which stand in for the library and the GPU, not for the backend.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import FakeWorkspace, fake_tensorrt
from onnx import TensorProto, helper, load, numpy_helper, save
from tiny_models import SIDE_PX, manifest_mapping, write_model

from edge_perception.backends.base import Backend
from edge_perception.backends.engines import IMPORTERS, EngineRequest, obtain_engine
from edge_perception.backends.onnxruntime import OnnxRuntimeBackend
from edge_perception.backends.tensorrt import Engine
from edge_perception.backends.tensorrt_rtx import RtxEngine
from edge_perception.core.engine import Gpu
from edge_perception.core.manifest import Manifest, TensorSpec, parse_manifest
from edge_perception.detection.device_backend import DeviceBackend
from edge_perception.detection.runtimes import RuntimeChoice, open_backend
from edge_perception.errors import EdgePerceptionError, EngineError

OpenBackend = Callable[[Path], Backend]  # from an ONNX file to a loaded backend
BACKENDS = [
    "onnxruntime",
    pytest.param("tensorrt", marks=pytest.mark.gpu),
    pytest.param("tensorrt_rtx", marks=pytest.mark.gpu),
    "fake tensorrt 8.5.3",
    "fake tensorrt 10.3.0",
    "fake tensorrt 11.4.0",
    "fake tensorrt_rtx 1.7.1",
]


@pytest.fixture(params=BACKENDS, name="open_backend")
def opener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OpenBackend:
    if request.param == "onnxruntime":
        return OnnxRuntimeBackend
    if request.param.startswith("fake"):
        _, runtime, version = request.param.split()
        fake = fake_tensorrt(version, rtx=runtime == "tensorrt_rtx")
        monkeypatch.setitem(sys.modules, runtime, fake)
        return lambda model: open_on_fake(runtime, model)
    pytest.importorskip(request.param)
    return lambda model: open_on_gpu(request.param, model)


def open_on_gpu(runtime: str, model: Path) -> Backend:
    choice = RuntimeChoice(runtime, store=model.parent / "engines")
    return open_backend(model.with_suffix(".yaml"), manifest_of(model), model, choice)


def open_on_fake(runtime: str, model: Path) -> Backend:
    request = EngineRequest(runtime, store=model.parent / "engines")
    gpu = Gpu("8.6", "NVIDIA GeForce RTX 3090")
    manifest = manifest_of(model)
    stored = obtain_engine(model.with_suffix(".yaml"), manifest, model, request, gpu)
    kind = Engine if runtime == "tensorrt" else RtxEngine
    return DeviceBackend(runtime, kind(IMPORTERS[runtime](), stored.plan), FakeWorkspace())


def manifest_of(model: Path) -> Manifest:
    content = model.read_bytes() if model.exists() else b""
    mapping = manifest_mapping("yolov8", (1, 7, 64), sha256(content).hexdigest())
    mapping["precision"] = "int8" if b"QuantizeLinear" in content else "float32"
    return parse_manifest(mapping)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model.onnx", "yolov8")
    return tmp_path / "model.onnx"


def image(level: float) -> np.ndarray:
    return np.full((1, 3, SIDE_PX, SIDE_PX), level, np.float32)


def test_inputs_and_outputs_are_those_of_the_model(open_backend: OpenBackend, model: Path) -> None:
    backend = open_backend(model)
    assert backend.inputs == (TensorSpec("images", (1, 3, SIDE_PX, SIDE_PX), "float32"),)
    assert backend.outputs == (TensorSpec("output", (1, 7, 64), "float32"),)
    assert backend.name
    backend.close()


def test_outputs_follow_the_inputs(open_backend: OpenBackend, model: Path) -> None:
    backend = open_backend(model)
    for level in (0.0, 0.25, 1.0):
        (output,) = backend.infer([image(level)])
        assert output.shape == (1, 7, 64)
        assert output.dtype == np.float32
        assert np.allclose(output[0, 4:], level, atol=1e-3)
    backend.close()


def test_same_input_gives_the_same_output(open_backend: OpenBackend, model: Path) -> None:
    backend = open_backend(model)
    noise = np.random.default_rng(0).random((1, 3, SIDE_PX, SIDE_PX), np.float32)
    first = np.array(backend.infer([noise])[0])
    assert np.array_equal(backend.infer([noise])[0], first)
    backend.close()


def test_close_may_be_called_twice_and_infer_after_it_raises(
    open_backend: OpenBackend, model: Path
) -> None:
    backend = open_backend(model)
    backend.close()
    backend.close()
    with pytest.raises(EngineError, match="closed"):
        backend.infer([image(0)])


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros((1, 3, 32, 32), np.float32),
        np.zeros((1, 3, SIDE_PX, SIDE_PX), np.float64),
        np.zeros((3, SIDE_PX, SIDE_PX), np.float32),
    ],
    ids=["size", "dtype", "rank"],
)
def test_tensor_of_another_shape_or_dtype_is_an_engine_error(
    open_backend: OpenBackend, model: Path, tensor: np.ndarray
) -> None:
    backend = open_backend(model)
    with pytest.raises(EngineError):
        backend.infer([tensor])
    assert np.allclose(backend.infer([image(1)])[0][0, 4:], 1, atol=1e-3)
    backend.close()


@pytest.mark.parametrize("kept_bytes", [0, 10, 200])
def test_file_that_is_no_complete_model_is_told(
    open_backend: OpenBackend, model: Path, kept_bytes: int
) -> None:
    model.write_bytes(model.read_bytes()[:kept_bytes])
    with pytest.raises(EngineError, match="cannot load"):
        open_backend(model)


def test_missing_file_is_told(open_backend: OpenBackend, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot load"):
        open_backend(tmp_path / "nothing.onnx")


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((1, 3, "height", 64), TensorProto.FLOAT, "dynamic shape"),
        ((1, 3, None, 64), TensorProto.FLOAT, "dynamic shape"),
        # TensorRT makes float32 of it without a word, which then is not what the manifest says.
        ((1, 3, 64, 64), TensorProto.DOUBLE, "dtype that detectors do not use|disagree on outputs"),
    ],
)
def test_model_that_no_detector_has_is_told(
    open_backend: OpenBackend,
    tmp_path: Path,
    shape: tuple[object, ...],
    dtype: int,
    told: str,
) -> None:
    save_identity(tmp_path / "model.onnx", shape, dtype)
    with pytest.raises(EdgePerceptionError, match=told):
        open_backend(tmp_path / "model.onnx")


def save_identity(path: Path, shape: tuple[object, ...], dtype: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def test_quantised_model_runs_as_its_float_does(open_backend: OpenBackend, tmp_path: Path) -> None:
    save_quantised(tmp_path / "model.onnx")
    backend = open_backend(tmp_path / "model.onnx")
    noise = np.random.default_rng(0).random((1, 3, SIDE_PX, SIDE_PX), np.float32)
    (output,) = backend.infer([noise])
    means = noise.reshape(1, 3, 8, 8, 8, 8).mean((3, 5)).reshape(1, 3, 64)
    assert np.allclose(output[0, 4:], means[0], atol=1 / 127)
    backend.close()


def save_quantised(path: Path) -> None:
    """Write the tiny model with its input through Q/DQ nodes of scale 1/127."""
    write_model(path, "yolov8")
    model = load(path)
    for node in model.graph.node:
        node.input[:] = ["dequantized" if name == "images" else name for name in node.input]
    ends = ["scale", "zero"]
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["images", *ends], ["q"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", *ends], ["dequantized"]))
    scale, zero = np.array(1 / 127, np.float32), np.array(0, np.int8)
    model.graph.initializer.append(numpy_helper.from_array(scale, "scale"))
    model.graph.initializer.append(numpy_helper.from_array(zero, "zero"))
    save(model, path)
