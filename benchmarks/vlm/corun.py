"""A detector and a VLM on one GPU: what each costs the other.

    python -m benchmarks.vlm.corun --out docs/benchmarks/vlm_corun_h100.json [--seconds 320]

The detector sees the same arrivals in every row of a rate, and a row differs from another by one
thing. The rows that the goals speak of come first, at a camera's 30 Hz. What changes is compared at
120 Hz: four times the load, and a quarter of the time for the 1,000 frames that a p99 needs; the
language model has little time left there, so its speed counts at 30 Hz alone. A p99.9 needs ten
times as many frames and is taken of two rows only.

A detector in a process of its own can hear no turns: TensorRT's INT8 engine (``--tensorrt``, see
``corun_tensorrt``), and torch's for comparison.

The file is written after each row, and rows that it holds already are not measured again: a run
that was cut off goes on, and each row tells its own date and commit. What does not fit into
``--seconds`` is left out, by name.
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.frames.frame_source import provenance
from benchmarks.vlm.corun_process import ProcessDetector, Run
from benchmarks.vlm.corun_rows import (
    ANSWER_TOKENS,
    CAMERA_HZ,
    CHOSEN,
    PROMPT_TOKENS,
    SMALL,
    TENSORRT,
    TORCH,
    TORCH_PROCESS,
    LanguageSetting,
    Setting,
    Speed,
    all_settings,
)
from edge_perception.core.latency import LatencySummary
from edge_perception.core.machine import utc_now
from edge_perception.vlm.turns import DetectorTurns, Yield, go_on

SWITCH_INTERVAL_S = 0.001  # as nodes/runner.py sets it
TORCH_COMMAND = (sys.executable, "-m", "benchmarks.vlm.corun_detector")


class AnyDetector(Protocol):
    """What is measured: ``corun_detector.Detector``, or ``corun_process.ProcessDetector``."""

    on_ready: Callable[[], None]
    on_done: Callable[[], None]

    def run(self, rate_hz: float, frames: int) -> Run:
        """Detect on frames that come at a rate."""


class AnyAnswering(Protocol):
    """What runs beside it; see ``corun_language.Answering``."""

    def without_pause(self, between: Yield = go_on) -> AbstractContextManager[Speed]:
        """Answer while the body runs."""


class Bench:
    """What all rows share: the detectors by name, and the models, opened when first wanted."""

    def __init__(
        self,
        detectors: Mapping[str, AnyDetector],
        open_answering: Callable[[LanguageSetting], AnyAnswering],
        commit: str = "",
    ) -> None:
        self.detectors = detectors
        self.commit = commit
        self._open_answering = open_answering
        self._opened: dict[LanguageSetting, AnyAnswering] = {}

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Run one setting; returns its row."""
        detector = self.detectors[setting.detector]
        turns = DetectorTurns(setting.yield_ms / 1e3, setting.lead_ms / 1e3)
        detector.on_ready, detector.on_done = turns.begin, turns.end
        with self._beside(setting, turns) as tell, _no_collection():
            run = detector.run(setting.rate_hz, setting.frames)
        row = {**asdict(setting), "latency": _latencies(run), "vlm": tell()}
        return {**row, "date": utc_now(), "commit": self.commit}

    def alone(self, language: LanguageSetting, seconds: float) -> dict[str, Any]:
        """The language model's speed with nothing beside it."""
        with self._answering(language).without_pause() as speed:
            time.sleep(seconds)
        return speed.told()

    def _beside(
        self, setting: Setting, turns: DetectorTurns
    ) -> AbstractContextManager[Callable[[], dict[str, Any] | None]]:
        """Have the language model answer meanwhile; yields what tells its speed afterwards."""
        if setting.language is None:
            return nullcontext(lambda: None)
        between = turns.give_way if setting.yield_ms else go_on
        return _answering_beside(self._answering(setting.language), between)

    def _answering(self, language: LanguageSetting) -> AnyAnswering:
        if language not in self._opened:
            self._opened[language] = self._open_answering(language)
        return self._opened[language]


@contextmanager
def _answering_beside(
    answering: AnyAnswering, between: Yield
) -> Iterator[Callable[[], dict[str, Any]]]:
    with answering.without_pause(between) as speed:
        yield speed.told


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _latencies(run: Run) -> dict[str, Any]:
    summary = LatencySummary.of_ns([round(latency * 1e6) for latency in run.latencies_ms])
    found = {name: getattr(summary, name) for name in ("p50", "p90", "p99", "p99_9", "max")}
    rounded = {f"{name}_ms": value and round(value, 4) for name, value in found.items()}
    return {"n": summary.n, "skipped": run.skipped, **rounded}


def measure_all(
    bench: Bench, result: dict[str, Any], settings: Sequence[Setting], until_s: float, out: Path
) -> None:
    """Measure what ``result`` lacks and there is time for; print and write after each row."""
    for language in (SMALL, CHOSEN):
        speeds = result["vlm_alone"]
        if language.model not in speeds:
            speeds[language.model] = bench.alone(language, seconds=3.0)
            print(f"{language.model} alone: {speeds[language.model]}", flush=True)
    for setting in settings:
        known = {row["name"] for row in result["settings"]}
        fits = time.monotonic() + setting.seconds <= until_s
        if fits and setting.name not in known and setting.detector in bench.detectors:
            result["settings"].append(bench.measure(setting))
            print_row(result["settings"][-1])
        write(result, out)


def write(result: dict[str, Any], out: Path) -> None:
    """Write the file, with the figures that the goals speak of."""
    out.parent.mkdir(parents=True, exist_ok=True)
    known = {row["name"] for row in result["settings"]}
    left_out = [setting.name for setting in all_settings() if setting.name not in known]
    told = {**result, "left_out": left_out, **summarise(result)}
    out.write_text(json.dumps(told, indent=2) + "\n")


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """The figures that the goals speak of; nothing until their rows are there."""
    rows = {row["name"]: row for row in result["settings"]}
    if not {"alone", "chosen"} <= rows.keys():
        return {}
    alone, chosen = rows["alone"], rows["chosen"]
    by_model = {
        row["language"]["model"]: _ratios(row, alone, result["vlm_alone"])
        for row in (chosen, rows.get("2B"))
        if row is not None
    }
    return {
        "detector": {
            "alone": _goal_latencies(alone, rows.get("alone, 10,000 frames")),
            "with_vlm": _goal_latencies(chosen, rows.get("chosen, 10,000 frames")),
        },
        **by_model[CHOSEN.model],
        "ttft_ms": chosen["vlm"]["ttft_p50_ms"],
        "by_model": by_model,
    }


def _ratios(row: dict[str, Any], alone: dict[str, Any], speeds: dict[str, Any]) -> dict[str, Any]:
    vlm, vlm_alone = row["vlm"], speeds[row["language"]["model"]]
    return {
        "detector_p99_ratio": _ratio(row["latency"]["p99_ms"], alone["latency"]["p99_ms"]),
        "vlm_speed_ratio": _ratio(vlm["answers_per_s"], vlm_alone["answers_per_s"]),
        "vlm_tokens_ratio": _ratio(vlm["tokens_per_s"], vlm_alone["tokens_per_s"]),
    }


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 4) if one and other else None


def _goal_latencies(row: dict[str, Any], many: dict[str, Any] | None) -> dict[str, Any]:
    found = {name: row["latency"][name] for name in ("p50_ms", "p99_ms")}
    if many is None:
        return {**found, "p99_9_ms": None}
    return {**found, "p99_9_ms": many["latency"]["p99_9_ms"], "p99_9_rate_hz": many["rate_hz"]}


def print_row(row: dict[str, Any]) -> None:
    """One line for people."""
    found, vlm = row["latency"], row["vlm"] or {}
    print(
        f"{row['name']:30} {row['rate_hz']:4.0f} Hz  p50 {found['p50_ms']}  p99 {found['p99_ms']}"
        f"  p99.9 {found['p99_9_ms']}  max {found['max_ms']}  skipped {found['skipped']}"
        f"  TTFT {vlm.get('ttft_p50_ms')}  tokens/s {vlm.get('tokens_per_s')}"
        f"  answers/s {vlm.get('answers_per_s')}",
        flush=True,
    )


def begin_result(out: Path, commit: str) -> dict[str, Any]:
    """What the file holds, or a new one without rows."""
    if out.is_file():
        found: dict[str, Any] = json.loads(out.read_text())
        return found
    return {
        **provenance(commit),
        "detectors": {
            TORCH: "YOLOX-S's size (widths 32 to 512), 640x480, CUDA graph; from a 1080p frame"
            " complete in the ring's staging buffer to boxes on the host",
            TORCH_PROCESS: "the same in another process than the language model",
            TENSORRT: "demo detector, TensorRT 8.5 INT8, CUDA graph; from the network's input in"
            " host memory to its raw outputs there",
        },
        "language": f"INT4 weights, {PROMPT_TOKENS} tokens of prompt, {ANSWER_TOKENS} of answer,"
        " without pause; no vision tower",
        "vlm_speed": "answers a second, prompts included; vlm_tokens_ratio: while decoding",
        "chosen": asdict(Setting("chosen", CHOSEN, rate_hz=CAMERA_HZ)),
        "vlm_alone": {},
        "settings": [],
    }


def open_detectors(
    settings: Sequence[Setting], tensorrt: str, stack: ExitStack
) -> dict[str, AnyDetector]:
    """Those that the settings want and that can be had; processes start side by side."""
    commands = {TORCH_PROCESS: TORCH_COMMAND, TENSORRT: shlex.split(tensorrt)}
    wanted = {setting.detector for setting in settings}
    processes = {
        name: stack.enter_context(closing(ProcessDetector(command)))
        for name, command in commands.items()
        if command and name in wanted
    }
    detectors: dict[str, AnyDetector] = {**processes}
    if TORCH in wanted:
        from benchmarks.vlm.corun_detector import Detector  # needs CUDA's bindings

        detectors[TORCH] = stack.enter_context(closing(Detector()))
    for process in processes.values():  # a start beside a measurement would be measured
        process.await_ready()
    return detectors


def opener(stack: ExitStack) -> Callable[[LanguageSetting], AnyAnswering]:
    """Draw the weights; returns what opens a model of them."""
    from benchmarks.vlm.corun_language import Answering, draw_weights

    weights = {language.model: draw_weights(language.model) for language in (SMALL, CHOSEN)}
    return lambda language: stack.enter_context(
        closing(Answering(language, weights[language.model]))
    )


def main() -> None:
    """Run the rows that fit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/vlm_corun_h100.json"))
    parser.add_argument("--seconds", type=float, default=320.0)
    parser.add_argument("--only", nargs="*", default=[], help="names of rows")
    parser.add_argument("--frames", type=int, help="a row, for a rehearsal")
    parser.add_argument("--tensorrt", default="", help="command of TensorRT's detector")
    parser.add_argument("--commit", default="")
    arguments = parser.parse_args()
    until_s = time.monotonic() + arguments.seconds
    settings = [s for s in all_settings() if not arguments.only or s.name in arguments.only]
    if arguments.frames:
        settings = [replace(setting, frames=arguments.frames) for setting in settings]
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with ExitStack() as stack:
        detectors = open_detectors(settings, arguments.tensorrt, stack)
        open_answering = opener(stack)
        left_s = until_s - time.monotonic()
        print(f"ready after {arguments.seconds - left_s:.1f} s", flush=True)
        result = begin_result(arguments.out, arguments.commit)
        bench = Bench(detectors, open_answering, arguments.commit)
        measure_all(bench, result, settings, until_s, arguments.out)
        print(json.dumps(summarise(result)))


if __name__ == "__main__":
    main()
