"""A detector and a VLM on one GPU: what each costs the other.

    python -m benchmarks.vlm.corun --out docs/benchmarks/vlm_corun_h100.json [--seconds 280]

The detector sees the same arrivals in every setting, and one thing is changed at a time. What
matters most comes first; what no longer fits into ``--seconds`` is left out of the file, by name.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.frames.frame_source import provenance
from benchmarks.vlm.corun_detector import NETWORK, Detector
from benchmarks.vlm.corun_language import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    Answering,
    LanguageSetting,
    draw_weights,
)
from edge_perception.core.latency import LatencySummary
from edge_perception.gpu.cuda import get_device
from edge_perception.vlm.turns import DetectorTurns, go_on

SWITCH_INTERVAL_S = 0.001  # as nodes/runner.py sets it
FAST_HZ, FRAMES, MANY_FRAMES = 120.0, 1000, 10_100  # some are skipped
MANY_HZ = 240.0
CHOSEN = LanguageSetting("nvila-8b")
YIELD_S = 0.005


@dataclass(frozen=True)
class Setting:
    """One row: the detector's arrivals, and what runs beside it. ``changed`` names the factor."""

    changed: str
    rate_hz: float
    frames: int
    language: LanguageSetting | None
    yields: bool = True
    processes: int = 1

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        return self.frames / self.rate_hz + 1.5


def settings(scale: float) -> list[Setting]:
    """Every setting, the most important first, with ``scale`` times the frames."""
    small = replace(CHOSEN, model="nvila-2b")
    alone = Setting("alone", 30.0, FRAMES, None)
    fast = Setting("alone, faster", FAST_HZ, FRAMES, None)
    both = replace(fast, changed="chosen, faster", language=CHOSEN)
    changes = {
        "equal priorities": replace(CHOSEN, low_priority=False),
        "segments 1": replace(CHOSEN, segments=1),
        "segments 8": replace(CHOSEN, segments=8),
        "prefill chunk 128": replace(CHOSEN, prefill_chunk=128),
        "prefill chunk 2048": replace(CHOSEN, prefill_chunk=2048),
    }
    many = {"rate_hz": MANY_HZ, "frames": MANY_FRAMES}
    every = [
        alone,
        replace(alone, changed="chosen", language=CHOSEN),
        replace(alone, changed="2B", language=small),
        fast,
        both,
        replace(both, changed="no yielding", yields=False),
        *(replace(both, changed=name, language=language) for name, language in changes.items()),
        replace(both, changed="two processes", yields=False, processes=2),
        replace(fast, changed="alone, 10,000 frames", **many),
        replace(both, changed="chosen, 10,000 frames", **many),
    ]
    return [replace(setting, frames=round(setting.frames * scale)) for setting in every]


class Bench:
    """What all settings share: the detector, the weights, and a process that answers."""

    def __init__(self) -> None:
        self._detector = Detector()
        self._weights = {name: draw_weights(name) for name in ("nvila-8b", "nvila-2b")}
        self._made: tuple[LanguageSetting, Answering] | None = None
        self._process: subprocess.Popen[str] | None = None

    def start_process(self) -> None:
        """Start the process that answers, which is not waited for yet."""
        command = [sys.executable, "-m", "benchmarks.vlm.corun_language", CHOSEN.model]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Run one setting; returns its row."""
        turns = DetectorTurns(YIELD_S if setting.yields and setting.language else 0.0)
        self._detector.on_ready, self._detector.on_done = turns.begin, turns.end
        gc.collect()
        gc.disable()
        try:
            with self._beside(setting, turns) as tell:
                run = self._detector.run(setting.rate_hz, setting.frames)
        finally:
            gc.enable()
        summary = LatencySummary.of_ns([round(latency * 1e6) for latency in run.latencies_ms])
        return {
            "changed": setting.changed,
            "rate_hz": setting.rate_hz,
            "processes": setting.processes,
            "yields": setting.yields and setting.language is not None,
            "language": setting.language and asdict(setting.language),
            "detector": {
                "n": summary.n,
                "skipped": run.skipped,
                **{name: _rounded(getattr(summary, name)) for name in ("p50", "p90", "p99")},
                "p99_9": _rounded(summary.p99_9),
                "max": _rounded(summary.max),
            },
            "vlm": tell(),
        }

    def alone(self, language: LanguageSetting, seconds: float = 4.0) -> dict[str, Any]:
        """The language model's speed with nothing beside it."""
        with self._answering(language).without_pause() as speed:
            time.sleep(seconds)
        return speed.told()

    def close(self) -> None:
        """Free everything."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(timeout=20)
        if self._made is not None:
            self._made[1].close()
        self._detector.close()

    @contextmanager
    def _beside(
        self, setting: Setting, turns: DetectorTurns
    ) -> Iterator[Callable[[], dict[str, Any] | None]]:
        """Have the language model answer meanwhile; yields what tells its speed afterwards."""
        if setting.language is None:
            yield lambda: None
        elif setting.processes == 2:
            yield self._go()
        else:
            between = turns.give_way if setting.yields else go_on
            with self._answering(setting.language).without_pause(between) as speed:
                yield speed.told

    def _go(self) -> Callable[[], dict[str, Any] | None]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        while process.stdout.readline().strip() != "ready":
            if process.poll() is not None:
                raise SystemExit("the process that answers has ended")
        process.stdin.write("go\n")
        process.stdin.flush()

        def stop() -> dict[str, Any]:
            process.stdin.write("stop\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            told: dict[str, Any] = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            return told

        return stop

    def _answering(self, language: LanguageSetting) -> Answering:
        if self._made is None or self._made[0] != language:
            if self._made is not None:
                self._made[1].close()
            self._made = language, Answering(language, self._weights[language.model])
        return self._made[1]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def summarise(result: dict[str, Any]) -> None:
    """Put the figures that the goals speak of beside the rows."""
    rows = {row["changed"]: row for row in result["settings"]}
    alone, chosen = rows.get("alone"), rows.get("chosen")
    if alone is None or chosen is None:
        return
    result["detector"] = {}
    for name, row, many in (
        ("alone", alone, rows.get("alone, 10,000 frames")),
        ("with_vlm", chosen, rows.get("chosen, 10,000 frames")),
    ):
        result["detector"][name] = {
            "p50_ms": row["detector"]["p50"],
            "p99_ms": row["detector"]["p99"],
            "p99_9_ms": many and many["detector"]["p99_9"],
            "p99_9_rate_hz": many and many["rate_hz"],
        }
    result["detector_p99_ratio"] = _ratio(chosen["detector"]["p99"], alone["detector"]["p99"])
    speeds = result["vlm_alone"]
    result["vlm_speed_ratio"] = _ratio(
        chosen["vlm"]["tokens_per_s"], speeds[CHOSEN.model]["tokens_per_s"]
    )
    result["ttft_ms"] = chosen["vlm"]["ttft_p50_ms"]
    result["by_model"] = {
        row["language"]["model"]: {
            "detector_p99_ratio": _ratio(row["detector"]["p99"], alone["detector"]["p99"]),
            "vlm_speed_ratio": _ratio(
                row["vlm"]["tokens_per_s"], speeds[row["language"]["model"]]["tokens_per_s"]
            ),
        }
        for row in (chosen, rows.get("2B"))
        if row is not None
    }


def _ratio(one: float, other: float) -> float:
    return round(one / other, 4)


def print_row(row: dict[str, Any]) -> None:
    """One line for people."""
    found, vlm = row["detector"], row["vlm"] or {}
    print(
        f"{row['changed']:24} {row['rate_hz']:5.0f} Hz  p50 {found['p50']:.3f}  p99 {found['p99']}"
        f"  p99.9 {found['p99_9']}  max {found['max']}  skipped {found['skipped']}"
        f"  TTFT {vlm.get('ttft_p50_ms')}  tokens/s {vlm.get('tokens_per_s')}",
        flush=True,
    )


def main() -> None:
    """Run the settings that fit, print a table, write the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/vlm_corun_h100.json"))
    parser.add_argument("--seconds", type=float, default=280.0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of frames")
    parser.add_argument("--commit", default="")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    get_device().make_current()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    bench = Bench()
    bench.start_process()
    result: dict[str, Any] = {
        **provenance(arguments.commit),
        "detector_network": NETWORK,
        "latency": "from a 1080p frame complete in the ring's staging buffer to boxes on the host",
        "language": f"INT4 weights, {PROMPT_TOKENS} tokens of prompt, {ANSWER_TOKENS} of answer,"
        " without pause; no vision tower",
        "torch": torch.__version__,
        "chosen": asdict(CHOSEN),
        "vlm_alone": {},
        "settings": [],
        "left_out": [],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        for language in (replace(CHOSEN, model="nvila-2b"), CHOSEN):
            result["vlm_alone"][language.model] = bench.alone(language)
            print(f"{language.model} alone: {result['vlm_alone'][language.model]}", flush=True)
        for setting in settings(arguments.scale):
            left_s = arguments.seconds - (time.monotonic() - began_s)
            if setting.seconds > left_s:
                result["left_out"].append(setting.changed)
                continue
            result["settings"].append(bench.measure(setting))
            print_row(result["settings"][-1])
            summarise(result)
            arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    finally:
        bench.close()
    print(json.dumps({key: result.get(key) for key in ("detector_p99_ratio", "by_model")}))


if __name__ == "__main__":
    main()
