"""Building: what each TensorRT version is told, and what a refusal says."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from fake_tensorrt import Configuration, FakeWorkspace, fake_tensorrt
from onnx import TensorProto
from tiny_models import SIDE_PX, write_model

from edge_perception.backends import tensorrt as tensorrt_module
from edge_perception.backends.build import BuildOptions, build_plan, is_strongly_typed
from edge_perception.backends.half import to_half
from edge_perception.backends.tensorrt import Engine, import_tensorrt
from edge_perception.backends.tensorrt_rtx import RtxEngine, import_tensorrt_rtx
from edge_perception.errors import EngineError

TRT8, TRT10, TRT11 = (fake_tensorrt(version) for version in ("8.5.3.1", "10.3.0", "11.4.0"))
RTX = fake_tensorrt("1.7.1.116", rtx=True)


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    write_model(tmp_path / "model.onnx", "yolov8")
    return (tmp_path / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("trt", "precision", "flags"),
    [
        (TRT8, "float32", []),
        (TRT8, "float16", ["FP16"]),
        (TRT8, "int8", ["FP16", "INT8"]),
        (TRT10, "int8", ["FP16", "INT8"]),
        (TRT11, "int8", []),  # the graph's types are obeyed
        (RTX, "int8", ["REQUIRE_USER_ALLOCATION"]),  # or no CUDA graph could hold it
    ],
)
def test_precision_is_told_by_flags_only_where_they_exist(
    trt: ModuleType, precision: str, flags: list[str], model: bytes
) -> None:
    build_plan(trt, model, BuildOptions(precision))
    assert Configuration.last.flag_names == flags


@pytest.mark.parametrize(
    ("trt", "strong", "network_flags"), [(TRT8, False, 1), (TRT10, False, 1), (TRT11, True, 2)]
)
def test_network_is_typed_as_the_version_wants(
    trt: Any, strong: bool, network_flags: int, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    create = trt.Builder.create_network
    monkeypatch.setattr(
        trt.Builder,
        "create_network",
        lambda self, flags: (given.append(flags), create(self, flags))[1],
    )
    build_plan(trt, model, BuildOptions("float32"))
    assert given == [network_flags]
    assert is_strongly_typed(trt) is strong


def test_options_reach_the_builder(model: bytes) -> None:
    tactics = ("JIT_CONVOLUTIONS", "EDGE_MASK_CONVOLUTIONS")
    build_plan(TRT8, model, BuildOptions(workspace_mib=2, tactic_sources=tactics))
    assert Configuration.last.pool_limits == {"WORKSPACE": 2 << 20}
    assert Configuration.last.tactics == 0b11000
    build_plan(RTX, model, BuildOptions(target="8.6"))
    assert Configuration.last.target == "SM86"


def test_default_tactics_are_left_alone(model: bytes) -> None:
    build_plan(TRT8, model, BuildOptions())
    assert Configuration.last.tactics == -1


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], b"."),
        ([b"known"], b"known."),
        ([b"of another H100"], b"of another H100."),  # the store keeps kinds of GPU apart
        ([b"known", b"+more"], b"known+more."),
        ([b"of another version"], b"."),
        ([b"known", b"of another version", b"+more"], b"known+more."),
    ],
)
def test_timing_caches_are_used_and_what_was_learnt_comes_back(
    model: bytes, given: list[bytes], kept: bytes
) -> None:
    assert build_plan(TRT8, model, BuildOptions(), given).timing_cache == kept


def test_tensorrt_for_rtx_times_nothing(model: bytes) -> None:
    assert build_plan(RTX, model, BuildOptions(), [b"known"]).timing_cache == b""


@pytest.mark.parametrize("trt", [TRT10, RTX], ids=["10", "rtx"])
def test_progress_is_told_by_versions_that_know_it(trt: ModuleType, model: bytes) -> None:
    told: list[str] = []
    build_plan(trt, model, BuildOptions(), on_progress=told.append)
    assert told == ["building the engine", "building engine: 1 of 2"]


def test_plan_comes_with_the_models_tensors(model: bytes) -> None:
    built = build_plan(TRT8, model, BuildOptions())
    assert [(spec.name, spec.shape) for spec in built.inputs] == [("images", (1, 3, 64, 64))]
    assert [(spec.name, spec.shape) for spec in built.outputs] == [("output", (1, 7, 64))]


@pytest.mark.parametrize(
    ("trt", "options", "told"),
    [
        (TRT8, BuildOptions(tactic_sources=("CUBLAS",)), "no such tactic source: got .'CUBLAS'"),
        (TRT8, BuildOptions(target="8.6"), "cannot build for compute capability 8.6 here"),
        (RTX, BuildOptions(target="9.0"), "cannot build for compute capability 9.0 here"),
    ],
)
def test_option_that_the_version_lacks_is_told(
    trt: ModuleType, options: BuildOptions, told: str, model: bytes
) -> None:
    with pytest.raises(EngineError, match=told):
        build_plan(trt, model, options)


def test_what_the_builder_says_is_in_the_error(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx", "yolo_end_to_end")
    with pytest.raises(
        EngineError, match=r"TensorRT 8\.5\.3\.1 cannot build .*no kernel for ArgMax"
    ):
        build_plan(TRT8, (tmp_path / "model.onnx").read_bytes(), BuildOptions())


def test_builder_without_a_driver_is_told(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def null_builder(logger: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(TRT8, "Builder", null_builder)
    with pytest.raises(EngineError, match=r"cannot start a builder.*needs a GPU"):
        build_plan(TRT8, model, BuildOptions())


@pytest.mark.parametrize("options", [{"precision": "int4"}, {"workspace_mib": 0}])
def test_options_that_nobody_means_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="expected"):
        BuildOptions(**options)


# The engine itself.


def open_engine(trt: ModuleType, model: bytes, kind: Callable[..., Engine] = Engine) -> Engine:
    return kind(trt, build_plan(trt, model, BuildOptions("float32")).plan)


def test_plan_of_another_version_is_refused_with_its_words(model: bytes) -> None:
    plan = build_plan(TRT8, model, BuildOptions()).plan
    with pytest.raises(EngineError, match=r"10\.3\.0 refuses the plan: .*another version"):
        Engine(TRT10, plan)


def test_engine_writes_to_the_memory_it_was_given(model: bytes) -> None:
    engine, workspace = open_engine(TRT8, model), FakeWorkspace()
    addresses = {
        "images": workspace.allocate(4 * 3 * 64 * 64),
        "output": workspace.allocate(4 * 448),
    }
    engine.bind(addresses)
    workspace.upload(addresses["images"], np.full((1, 3, SIDE_PX, SIDE_PX), 0.5, np.float32))
    engine.enqueue(workspace.stream)
    output = np.zeros((1, 7, 64), np.float32)
    workspace.download(output, addresses["output"])
    assert np.allclose(output[0, 4:], 0.5)


def test_enqueue_without_memory_names_the_tensors(model: bytes) -> None:
    engine = open_engine(TRT8, model)
    with pytest.raises(EngineError, match=r"tensors without memory: got .'images', 'output'"):
        engine.enqueue(7)


def test_memory_for_an_unknown_tensor_is_refused(model: bytes) -> None:
    with pytest.raises(EngineError, match="no such tensor"):
        open_engine(TRT8, model).bind({"image": 256})


def test_refused_address_and_failed_run_are_told(model: bytes) -> None:
    engine = open_engine(TRT8, model)
    with pytest.raises(EngineError, match="refuses the address of 'images'"):
        engine.bind({"images": 3})
    engine.bind({"images": 256, "output": 512})
    with pytest.raises(EngineError, match="TensorRT failed"):
        engine.enqueue(0)


def test_closed_engine_says_so(model: bytes) -> None:
    engine = open_engine(TRT8, model)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.enqueue(7)


def test_compiled_kernels_of_rtx_come_back_and_go_in_again(model: bytes) -> None:
    plan = build_plan(RTX, model, BuildOptions("float32")).plan
    first = RtxEngine(RTX, plan).runtime_cache()
    assert RtxEngine(RTX, plan, first).runtime_cache() == first + b"."


# Finding the library.


def test_old_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_module, "import_runtime", lambda _: fake_tensorrt("8.4.1"))
    with pytest.raises(EngineError, match=r"too old: expected 8\.5 to 11, got '8\.4\.1'"):
        import_tensorrt()


@pytest.mark.parametrize("load", [import_tensorrt, import_tensorrt_rtx])
def test_missing_library_is_told_with_what_to_do(
    load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", nothing)
    with pytest.raises(EngineError, match=r"cannot be imported: .*docs/engines\.md"):
        load()


# FP16 in the graph.


def test_half_graph_gives_nearly_the_same_and_keeps_its_inputs(model: bytes) -> None:
    half = to_half(model)
    noise = np.random.default_rng(0).random((1, 3, SIDE_PX, SIDE_PX), np.float32)
    results = [
        onnxruntime.InferenceSession(m, providers=["CPUExecutionProvider"]).run(
            None, {"images": noise}
        )
        for m in (model, half)
    ]
    assert results[1][0].dtype == np.float32
    assert np.abs(results[0][0] - results[1][0]).max() < 2e-2
    constants = {constant.data_type for constant in onnx.load_from_string(half).graph.initializer}
    assert TensorProto.FLOAT not in constants


def test_what_is_no_model_cannot_become_half() -> None:
    with pytest.raises(EngineError, match="cannot load the ONNX model"):
        to_half(b"\x00 no model")
