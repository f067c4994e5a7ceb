"""The benchmark of a detector beside a language model, on fakes of both: what it runs and tells."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from benchmarks.vlm import corun
from benchmarks.vlm.corun_process import ProcessDetector, Run
from benchmarks.vlm.corun_rows import FRAMES, LanguageSetting, Speed

WAITING_MS = 2.0


class FakeDetector:
    """Takes a millisecond a frame, or twice that while a model that does not yield answers."""

    def __init__(self, model: FakeAnswering) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        self.on_done: Callable[[], None] = lambda: None
        self.rates: list[float] = []
        self._model = model

    def run(self, rate_hz: float, frames: int) -> Run:
        self.rates.append(rate_hz)
        self.on_ready()
        waited_ms = self._model.waits_ms() if self._model.is_answering else None
        self.on_done()
        disturbed = waited_ms is not None and waited_ms < WAITING_MS
        return Run([2.0 if disturbed else 1.0] * frames, skipped=0)


class FakeAnswering:
    """Answers ten times a second, and nine beside a detector."""

    def __init__(self) -> None:
        self.is_answering = False
        self._between: Callable[[], None] = lambda: None

    @contextmanager
    def without_pause(self, between: Callable[[], None] = lambda: None) -> Iterator[Speed]:
        self.is_answering, self._between = True, between
        yield Speed([30.0], tokens=90, decode_s=1.0, answers=9, elapsed_s=1.0)
        self.is_answering = False

    def waits_ms(self) -> float:
        """How long it waits when it may wait for a detector that works."""
        start_s = time.monotonic()
        self._between()
        return (time.monotonic() - start_s) * 1e3


@pytest.fixture
def opened() -> list[LanguageSetting]:
    return []


@pytest.fixture
def bench(opened: list[LanguageSetting]) -> corun.Bench:
    model = FakeAnswering()

    def open_answering(language: LanguageSetting) -> FakeAnswering:
        opened.append(language)
        return model

    return corun.Bench({corun.TORCH: FakeDetector(model)}, open_answering, "0123abc")


def measure(bench: corun.Bench, out: Path, seconds: float = 1e6) -> dict[str, object]:
    result = corun.begin_result(out, "0123abc")
    settings = [s for s in corun.all_settings() if s.frames == FRAMES]
    corun.measure_all(bench, result, settings, time.monotonic() + seconds, out)
    return json.loads(out.read_text())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = corun.Bench.alone
    monkeypatch.setattr(corun.Bench, "alone", lambda self, model, **_: alone(self, model, 0.0))


def test_file_tells_what_the_goals_speak_of(bench: corun.Bench, tmp_path: Path) -> None:
    told = measure(bench, tmp_path / "corun.json")
    assert told["detector"]["alone"] == {"p50_ms": 1.0, "p99_ms": 1.0, "p99_9_ms": None}
    assert told["detector_p99_ratio"] == 1.0
    assert told["vlm_speed_ratio"] == 1.0
    assert told["ttft_ms"] == 30.0
    assert told["by_model"].keys() == {"nvila-8b", "nvila-2b"}
    assert told["commit"] == "0123abc"
    assert {row["commit"] for row in told["settings"]} == {"0123abc"}
    # Rows that want a process, where none was given, are named as missing.
    left_out = {"no yielding, two processes", "TensorRT alone", "TensorRT, two processes"}
    assert left_out < set(told["left_out"])
    assert len(told["settings"]) + len(told["left_out"]) == len(corun.all_settings())


def test_only_rows_that_yield_are_waited_for(bench: corun.Bench, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in measure(bench, tmp_path / "corun.json")["settings"]}
    assert rows["chosen"]["latency"]["p99_ms"] == 1.0
    assert rows["no lead"]["latency"]["p99_ms"] == 1.0
    assert rows["no yielding"]["latency"]["p99_ms"] == 2.0
    assert rows["alone"]["vlm"] is None


def test_rows_are_one_change_apart() -> None:
    settings = {setting.name: setting for setting in corun.all_settings()}
    base, rough = settings["chosen, 120 Hz"], settings["no yielding"]
    pairs = {
        "no lead": base,
        "prefill chunk 128": base,
        "segments 1": base,
        "segments 8": base,
        "no yielding, equal priorities": rough,
        "no yielding, two processes": rough,
    }
    for name, other in pairs.items():
        one, two = corun.asdict(settings[name]), corun.asdict(other)
        one |= one.pop("language")
        two |= two.pop("language")
        assert len({key for key in one if one[key] != two[key]} - {"name"}) == 1, name


def test_what_does_not_fit_is_left_out_by_name(bench: corun.Bench, tmp_path: Path) -> None:
    told = measure(bench, tmp_path / "corun.json", seconds=36.0)
    assert [row["name"] for row in told["settings"]][:2] == ["alone", "chosen"]
    told = measure(bench, tmp_path / "later.json", seconds=1.0)
    assert told["settings"] == []
    assert "alone" in told["left_out"]


def test_run_that_was_cut_off_goes_on(
    bench: corun.Bench, opened: list[LanguageSetting], tmp_path: Path
) -> None:
    out = tmp_path / "corun.json"
    first = measure(bench, out)
    first["settings"] = first["settings"][:2]
    out.write_text(json.dumps(first))
    detector = bench.detectors[corun.TORCH]
    detector.rates.clear()
    again = measure(bench, out)
    assert detector.rates[0] == 30.0, "2B's row comes next"
    assert len(detector.rates) == len(again["settings"]) - 2
    assert len(opened) == len(set(opened)), "each model is opened once"


SERVER = "from benchmarks.vlm.corun_process import Run, serve_runs\n"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", SERVER + code]


def test_detector_in_a_process_runs_when_told() -> None:
    code = "serve_runs(lambda rate_hz, frames: Run([rate_hz] * frames, 1))"
    with closing(ProcessDetector(python(code))) as detector:
        detector.await_ready()
        assert detector.run(30.0, 2) == Run([30.0, 30.0], 1)
        assert detector.run(120.0, 1) == Run([120.0], 1)


def test_detector_whose_process_ends_is_told() -> None:
    detector = ProcessDetector(python("raise SystemExit(1)"))
    with closing(detector), pytest.raises(SystemExit, match="has ended"):
        detector.await_ready()
