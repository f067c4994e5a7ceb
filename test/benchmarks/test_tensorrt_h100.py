"""The H100 benchmark on fakes: what it builds, what it measures, how its outputs are judged."""

from __future__ import annotations

import ast
import fcntl
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from fake_tensorrt import FakeWorkspace, fake_tensorrt
from pictures import encode_file
from tiny_models import write_detector

pytest.importorskip("cv2")
from benchmarks.int8 import oracle, tensorrt_h100
from benchmarks.int8.oracle import match_figures
from benchmarks.vlm import corun_process, corun_tensorrt
from edge_perception.core.detections import Detections
from edge_perception.errors import EngineError


class FakeCuda(FakeWorkspace):
    """The GPU in host memory; the n-th measured run takes n microseconds."""

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:  # type: ignore[override]
        return enqueue

    def event_times_ms(self, enqueue: Callable[[], None], runs: int) -> np.ndarray:
        enqueue()
        return np.arange(1, runs + 1) / 1000

    def device(self) -> tuple[str, str]:
        return "NVIDIA H100", "9.0"

    def download(self, values: np.ndarray, address: int) -> None:
        super().download(values, address)


ENGINES = ("random.float16", "random.int8", "trained.float16", "trained.int8")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    fake = fake_tensorrt("8.5.3.1")
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(tensorrt_h100, "CudaRuntime", FakeCuda)
    monkeypatch.setattr(tensorrt_h100, "RUNS", 10)
    return fake


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Six pictures, each with a white block elsewhere."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(6):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[8 * index : 8 * index + 8, 16:24] = 255
        (folder / f"{index}.png").write_bytes(encode_file(pixels, ".png"))
    return folder


@pytest.fixture
def models(tmp_path: Path, frames: Path) -> Path:
    """A trained model of two graphs, and one whose weights mean nothing."""
    trained = [str(write_detector(tmp_path / kind)) for kind in ("float", "int8")]
    out = tmp_path / "models"
    arguments = ["--float", trained[0], "--int8", trained[1], "--frames", str(frames)]
    oracle.main(["prepare", str(out), "--name", "trained", *arguments, "--count", "3"])
    bare = [str(tmp_path / kind / "model.onnx") for kind in ("float", "int8")]
    oracle.main(["prepare", str(out), "--name", "random", "--float", bare[0], "--int8", bare[1]])
    return out


def run(command: str, models: Path, *more: str) -> None:
    work = models.parent / "work"
    tensorrt_h100.main([command, str(models), "--work", str(work), *more])


def build_all(models: Path) -> None:
    for job in tensorrt_h100.find_jobs(models):
        run("build-one", models, "--only", job.model, job.precision)


@pytest.mark.parametrize("name", ["cudart", "seeded", "tensorrt_h100"])
def test_what_the_bundle_runs_is_python_39(name: str) -> None:
    path = Path(tensorrt_h100.__file__).with_name(f"{name}.py")
    ast.parse(path.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("module", [corun_process, corun_tensorrt])
def test_detector_that_the_bundle_runs_is_python_39(module: ModuleType) -> None:
    ast.parse(Path(module.__file__).read_text(), feature_version=(3, 9))


def test_dry_run_prints_every_engine_and_touches_nothing(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("build", models, "--dry-run")
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == [
        "build random float16",
        "build random int8",
        "build trained float16",
        "build trained int8",
    ]
    assert not (models.parent / "work").exists()


def test_first_models_are_built_first(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("build", models, "--dry-run", "--first", "trained")
    assert capsys.readouterr().out.startswith("build trained float16")


def test_build_that_fails_leaves_its_log_and_the_next_its_turn(models: Path) -> None:
    # In a process of its own, where no TensorRT is faked: every build fails there.
    run("build-lane", models)
    logs = {path.name: path.read_text() for path in (models.parent / "work").glob("*.log")}
    assert logs.keys() == {f"{name}.log" for name in ENGINES}
    for log in logs.values():
        assert log.splitlines()[-1].startswith("Error: the build's process ended with")


def test_lane_leaves_alone_what_another_builds_or_what_has_ended(models: Path) -> None:
    work = models.parent / "work"
    work.mkdir()
    (work / "random.float16.log").write_text("built in 3.0 s\n")
    with (work / "random.int8.log").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        run("build-lane", models)
    sizes = {name: (work / f"{name}.log").stat().st_size for name in ENGINES}
    assert (work / "random.float16.log").read_text() == "built in 3.0 s\n"
    assert sizes["random.int8"] == 0
    assert sizes["trained.float16"] > 0
    assert sizes["trained.int8"] > 0


def test_both_graphs_are_measured_and_judged(
    models: Path, frames: Path, trt: ModuleType, tmp_path: Path
) -> None:
    build_all(models)
    out = tmp_path / "out"
    run("measure", models, "--out", str(out), "--commit", "abc")
    judged = ["judge", str(models), "--name", "trained", "--frames", str(frames), "--count", "3"]
    int8 = str(tmp_path / "int8" / "manifest.yaml")
    oracle.main([*judged, "--float", int8, "--int8", int8, "--results", str(out)])
    oracle.main(["judge", str(models), "--name", "random", "--results", str(out)])
    report = json.loads((out / "int8_tensorrt_h100.json").read_text())
    assert report["commit"] == "abc"
    assert report["tensorrt"] == "8.5.3.1"
    assert {"date", "machine", "tactic_sources", "definitions"} <= report.keys()
    for figures in report["models"].values():
        assert figures["fp16_ms"] == figures["int8_graph_ms"] == pytest.approx(0.0055, abs=1e-4)
        assert figures["int8_over_fp16"] == 1.0
        assert figures["relative_l2"]["output_0"] < 1e-3
        assert figures["fp16_relative_l2"]["output_0"] < 1e-3
        assert figures["plan_bytes"]["int8"] > 0
        assert set(figures["build_s"]) == {"float16", "int8"}
    trained = report["models"]["trained"]
    assert (trained["match_rate"], trained["matched"], trained["oracle_detections"]) == (1.0, 3, 3)
    assert trained["float_match_rate"] == {"onnxruntime": 1.0, "tensorrt": 1.0}
    assert "match_rate" not in report["models"]["random"]


def test_engine_is_built_with_both_tactic_sources_once(models: Path, trt: ModuleType) -> None:
    build_all(models)
    work = models.parent / "work"
    records = [yaml.safe_load(path.read_text()) for path in work.glob("*.yaml")]
    tactics = "tactics=EDGE_MASK_CONVOLUTIONS+JIT_CONVOLUTIONS"
    assert all(tactics in record["spec"]["flags"] for record in records)
    times = {path: path.stat().st_mtime_ns for path in work.glob("*.plan")}
    assert len(times) == 4
    build_all(models)
    assert {path: path.stat().st_mtime_ns for path in work.glob("*.plan")} == times


def test_model_whose_build_is_missing_is_told_and_the_others_measured(
    models: Path, trt: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for precision in ("float16", "int8"):
        run("build-one", models, "--only", "random", precision)
    run("measure", models, "--out", str(tmp_path / "out"))
    report = json.loads((tmp_path / "out" / "int8_tensorrt_h100.json").read_text())
    assert list(report["models"]) == ["random"]
    assert "trained: there is no engine of 'trained'" in capsys.readouterr().err


def test_graph_that_is_missing_beside_its_oracle_is_told(models: Path) -> None:
    (models / "random.int8.onnx").unlink()
    with pytest.raises(SystemExit, match="is missing beside"):
        tensorrt_h100.find_jobs(models)


def test_match_rate_counts_what_moved_and_what_is_gone() -> None:
    boxes = np.array([[0, 0, 100, 100], [200, 0, 300, 100], [400, 0, 500, 100]], np.float32)
    moved = boxes + np.array([[0], [2], [20]], np.float32)  # IoU 1, 0.92 and 0.5
    wanted, found = (
        Detections(b, np.full(3, 0.9, np.float32), np.zeros(3, np.int32)) for b in (boxes, moved)
    )
    figures = match_figures([wanted], [found])
    assert (figures["match_rate"], figures["matched"]) == (0.66667, 2)
    unsure = Detections(boxes, np.array([0.9, 0.9, 0.29], np.float32), np.zeros(3, np.int32))
    figures = match_figures([wanted], [unsure])
    assert (figures["matched"], figures["below_threshold"]) == (2, 1)
    nothing = found.select(np.zeros(3, bool))
    assert match_figures([nothing], [nothing])["match_rate"] is None


def test_old_engines_of_another_gpu_are_not_measured(
    models: Path, trt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_all(models)
    job = tensorrt_h100.find_jobs(models)[0]
    with pytest.raises(EngineError, match="GPU: built for NVIDIA H100, here NVIDIA H200"):
        tensorrt_h100.obtain(job, trt, ("NVIDIA H200", "9.0"), models.parent / "work", "never")


def test_built_engine_serves_as_the_detector_beside_a_language_model(
    models: Path, trt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corun_tensorrt, "CudaRuntime", FakeCuda)
    build_all(models)
    detector = corun_tensorrt.TensorRtDetector(models, models.parent / "work", "trained")
    run = detector.run(rate_hz=1000.0, frames=20)
    assert len(run.latencies_ms) + run.skipped == 20
    assert min(run.latencies_ms) > 0
