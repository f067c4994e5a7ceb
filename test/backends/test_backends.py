"""What every backend must keep to; a backend joins by a row in ``OPENERS``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save
from tiny_models import SIDE_PX, write_model

from edge_perception.backends.base import Backend
from edge_perception.backends.onnxruntime import OnnxRuntimeBackend
from edge_perception.core.manifest import TensorSpec
from edge_perception.errors import EngineError

# From an ONNX file to a loaded backend.
OPENERS: dict[str, Callable[[Path], Backend]] = {"onnxruntime": OnnxRuntimeBackend}


@pytest.fixture(params=sorted(OPENERS))
def open_backend(request: pytest.FixtureRequest) -> Callable[[Path], Backend]:
    return OPENERS[request.param]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model.onnx", "yolov8")
    return tmp_path / "model.onnx"


def image(level: float) -> np.ndarray:
    return np.full((1, 3, SIDE_PX, SIDE_PX), level, np.float32)


def test_inputs_and_outputs_are_those_of_the_model(
    open_backend: Callable[[Path], Backend], model: Path
) -> None:
    backend = open_backend(model)
    assert backend.inputs == (TensorSpec("images", (1, 3, SIDE_PX, SIDE_PX), "float32"),)
    assert backend.outputs == (TensorSpec("output", (1, 7, 64), "float32"),)
    assert backend.name
    backend.close()


def test_outputs_follow_the_inputs(open_backend: Callable[[Path], Backend], model: Path) -> None:
    backend = open_backend(model)
    for level in (0.0, 0.25, 1.0):
        (output,) = backend.infer([image(level)])
        assert output.shape == (1, 7, 64)
        assert output.dtype == np.float32
        assert np.allclose(output[0, 4:], level, atol=1e-3)
    backend.close()


def test_same_input_gives_the_same_output(
    open_backend: Callable[[Path], Backend], model: Path
) -> None:
    backend = open_backend(model)
    noise = np.random.default_rng(0).random((1, 3, SIDE_PX, SIDE_PX), np.float32)
    first = np.array(backend.infer([noise])[0])
    assert np.array_equal(backend.infer([noise])[0], first)
    backend.close()


def test_close_may_be_called_twice_and_infer_after_it_raises(
    open_backend: Callable[[Path], Backend], model: Path
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
    open_backend: Callable[[Path], Backend], model: Path, tensor: np.ndarray
) -> None:
    backend = open_backend(model)
    with pytest.raises(EngineError):
        backend.infer([tensor])
    assert np.allclose(backend.infer([image(1)])[0][0, 4:], 1, atol=1e-3)
    backend.close()


@pytest.mark.parametrize("kept_bytes", [0, 10, 200])
def test_file_that_is_no_complete_model_is_told(
    open_backend: Callable[[Path], Backend], model: Path, kept_bytes: int
) -> None:
    model.write_bytes(model.read_bytes()[:kept_bytes])
    with pytest.raises(EngineError, match="cannot load"):
        open_backend(model)


def test_missing_file_is_told(open_backend: Callable[[Path], Backend], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot load"):
        open_backend(tmp_path / "nothing.onnx")


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((1, 3, "height", 64), TensorProto.FLOAT, "dynamic shape"),
        ((1, 3, None, 64), TensorProto.FLOAT, "dynamic shape"),
        ((1, 3, 64, 64), TensorProto.DOUBLE, "dtype that detectors do not use"),
    ],
)
def test_model_that_no_detector_has_is_told(
    open_backend: Callable[[Path], Backend],
    tmp_path: Path,
    shape: tuple[object, ...],
    dtype: int,
    told: str,
) -> None:
    save_identity(tmp_path / "model.onnx", shape, dtype)
    with pytest.raises(EngineError, match=told):
        open_backend(tmp_path / "model.onnx")


def save_identity(path: Path, shape: tuple[object, ...], dtype: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
