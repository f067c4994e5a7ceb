"""The choice of a runtime: from parameters to a detector that runs there, or to a refusal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeWorkspace, fake_tensorrt
from tiny_models import write_detector

from edge_perception.backends.engine_store import EngineStore
from edge_perception.cli import main
from edge_perception.core.image import ImageFormat
from edge_perception.core.latency import SpanRecorder
from edge_perception.detection import runtimes
from edge_perception.detection.detector import DetectionSettings, Detector, open_detector_by
from edge_perception.detection.device_backend import DeviceBackend
from edge_perception.detection.runtimes import RuntimeChoice
from edge_perception.errors import ConfigError, EngineError, ManifestError

GREY = ImageFormat.packed("rgb8", 64, 64)


class Rtx3090Workspace(FakeWorkspace):
    class device:  # noqa: N801  as the real one's attribute
        name = "NVIDIA GeForce RTX 3090"
        compute_capability = (8, 6)


@pytest.fixture
def workspaces(monkeypatch: pytest.MonkeyPatch) -> list[Rtx3090Workspace]:
    """TensorRT 10.3 on an RTX 3090, both fake; returns what workspaces were opened."""
    opened: list[Rtx3090Workspace] = []

    def open_workspace(device: int) -> Rtx3090Workspace:
        opened.append(Rtx3090Workspace())
        return opened[-1]

    monkeypatch.setattr(runtimes, "_open_workspace", open_workspace)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.3.0"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt("1.7.1", rtx=True))
    return opened


def choice(folder: Path, **changes: Any) -> RuntimeChoice:
    return RuntimeChoice(**{"backend": "tensorrt", "store": folder / "engines", **changes})


def count_detections(detector: Detector) -> int:
    pixels = np.full(64 * 64 * 3, 255, np.uint8)
    settings = DetectionSettings(nms_iou=1.0)
    return len(detector.detect(pixels, GREY, settings, SpanRecorder()).scores)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "tensorrt_rtx"])
def test_detector_finds_the_same_in_every_runtime(
    backend: str, tmp_path: Path, workspaces: list[Rtx3090Workspace]
) -> None:
    detector = open_detector_by(write_detector(tmp_path), choice(tmp_path, backend=backend))
    assert detector.backend.name == backend
    assert count_detections(detector) == 64
    detector.close()
    assert all(workspace.closed for workspace in workspaces)


def test_engine_is_built_at_first_use_and_found_at_the_second(
    tmp_path: Path, workspaces: list[Rtx3090Workspace]
) -> None:
    manifest = write_detector(tmp_path)
    told: list[str] = []
    open_detector_by(manifest, choice(tmp_path), told.append).close()
    assert "building the engine" in told
    told.clear()
    open_detector_by(manifest, choice(tmp_path, build="never"), told.append).close()
    assert told == []


def test_missing_engine_is_refused_with_the_command_that_builds_it(
    tmp_path: Path, workspaces: list[Rtx3090Workspace]
) -> None:
    manifest = write_detector(tmp_path)
    command = f"edge-perception build {manifest} --backend tensorrt --store {tmp_path}/engines"
    with pytest.raises(EngineError, match="there is no engine") as refused:
        open_detector_by(manifest, choice(tmp_path, build="never"))
    assert command in str(refused.value)
    assert workspaces[0].closed


def test_engine_of_another_tensorrt_is_refused(
    tmp_path: Path, workspaces: list[Rtx3090Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_detector(tmp_path)
    open_detector_by(manifest, choice(tmp_path)).close()
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.7.0"))
    with pytest.raises(EngineError, match=r"runtime version: built for 10\.3\.0, here 10\.7\.0"):
        open_detector_by(manifest, choice(tmp_path, build="never"))


def test_truncated_plan_is_never_deserialised(
    tmp_path: Path, workspaces: list[Rtx3090Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_detector(tmp_path)
    open_detector_by(manifest, choice(tmp_path)).close()
    (plan,) = (tmp_path / "engines").glob("*.plan")
    plan.write_bytes(plan.read_bytes()[:-1])
    deserialised: list[bytes] = []
    monkeypatch.setattr(sys.modules["tensorrt"], "Runtime", deserialised.append)
    with pytest.raises(EngineError, match="cut short"):
        open_detector_by(manifest, choice(tmp_path, build="never"))
    assert deserialised == []


def test_manifest_that_promises_other_tensors_is_refused_before_anything_is_stored(
    tmp_path: Path, workspaces: list[Rtx3090Workspace]
) -> None:
    manifest = write_detector(tmp_path, outputs=[{"name": "output", "shape": [1, 7, 63]}])
    with pytest.raises(ManifestError, match="disagree on outputs"):
        open_detector_by(manifest, choice(tmp_path))
    assert list((tmp_path / "engines").glob("*.plan")) == []


def test_float_model_is_not_run_in_int8(tmp_path: Path, workspaces: list[Rtx3090Workspace]) -> None:
    with pytest.raises(EngineError, match=r"no Q/DQ nodes, got 'int8'.*quantize-int8"):
        open_detector_by(write_detector(tmp_path), choice(tmp_path, precision="int8"))


@pytest.mark.parametrize("changes", [{"backend": "cuda"}, {"build": "yes"}, {"precision": "int4"}])
def test_unknown_choice_is_told(changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="expected one of"):
        RuntimeChoice(**changes)  # type: ignore[arg-type]


def test_command_builds_and_measures_what_the_node_then_finds(
    tmp_path: Path, workspaces: list[Rtx3090Workspace], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, store = write_detector(tmp_path), tmp_path / "engines"
    assert main(["build", str(manifest), "--store", str(store), "--measure"]) == 0
    told = capsys.readouterr().out
    assert "tiny_yolov8: float16, tensorrt 10.3.0, compute capability 8.6" in told
    (record,) = EngineStore(store).records()
    assert record.spec.gpu_name == "NVIDIA GeForce RTX 3090"
    assert 0 < record.measured["latency_p50_ms"] <= record.measured["latency_p99_ms"]
    open_detector_by(manifest, choice(tmp_path, build="never")).close()
    assert main(["build", str(manifest), "--store", str(store)]) == 0
    assert next(EngineStore(store).records()) == record
    assert main(["build", str(manifest), "--store", str(store), "--force"]) == 0
    assert next(EngineStore(store).records()).built_at > record.built_at


def test_command_tells_a_refusal_in_one_line(
    tmp_path: Path, workspaces: list[Rtx3090Workspace], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = str(write_detector(tmp_path))
    assert main(["build", manifest, "--precision", "int8"]) == 2
    assert "no Q/DQ nodes" in capsys.readouterr().err
    assert main(["build", manifest, "--compute-capability", "8.7"]) == 2
    assert "cannot build for compute capability 8.7 here" in capsys.readouterr().err


# The engine behind the protocol.


class CountingEngine:
    """An engine that copies nothing and counts what was queued."""

    def __init__(self, *, capturable: bool = True) -> None:
        self.inputs = self.outputs = ()
        self.queued = 0
        self.capturable = capturable
        self.closed = 0

    def bind(self, addresses: object) -> None:
        assert addresses == {}

    def enqueue(self, stream: int) -> None:
        self.queued += 1

    def can_be_captured(self, stream: int) -> bool:
        return self.capturable

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("capturable", "asked", "replayed"), [(True, True, 2), (False, True, 0), (True, False, 0)]
)
def test_cuda_graph_is_replayed_where_it_is_asked_for_and_possible(
    capturable: bool, asked: bool, replayed: int
) -> None:
    engine, workspace = CountingEngine(capturable=capturable), FakeWorkspace()
    backend = DeviceBackend("fake", engine, workspace, cuda_graph=asked)
    backend.infer([])
    backend.infer([])
    assert backend.replays_graph is bool(replayed)
    assert sum(graph.launches for graph in workspace.graphs) == replayed
    assert engine.queued == 3  # one to load the kernels


def test_inference_waits_once(tmp_path: Path) -> None:
    engine, workspace = CountingEngine(), FakeWorkspace()
    backend = DeviceBackend("fake", engine, workspace)
    before = workspace.synchronizations
    backend.infer([])
    assert workspace.synchronizations == before + 1


def test_closing_twice_frees_once() -> None:
    engine = CountingEngine()
    backend = DeviceBackend("fake", engine, FakeWorkspace())
    backend.close()
    backend.close()
    assert engine.closed == 1
