"""The graph beside two baselines: same model, same frames, same run.

Each measurement starts a system (our container, or a baseline node of queue depth 10 or 1), a
profiler in a process of its own that listens as a planner would, and a player whose camera does
not care whether anybody keeps up. Systems alternate, so that a machine that grows slower or
faster in between treats them alike. The first second of each is warm-up and left out.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_perception.core.latency import LatencySummary
from edge_perception.errors import EdgePerceptionError
from edge_perception.replay import run_files
from edge_perception.replay.graph_process import NodeProcess, await_file, pause

OURS, DEPTH_10, DEPTH_1 = "ours", "baseline_depth_10", "baseline_depth_1"
SYSTEMS = (OURS, DEPTH_10, DEPTH_1)
_WARM_UP_S = 1.5
_START_TIMEOUT_S = 60.0
_INFERENCE = ("infer",)
_OUTSIDE = ("receive", "deliver")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """A camera: frames of a bag, at a fixed rate, for some seconds."""

    bag: Path
    compressed: bool
    fps: float
    seconds: float


@dataclass(frozen=True)
class Model:
    """What every system runs: a manifest (None: the embedded demo model) on so many threads."""

    manifest: Path | None = None
    threads: int = 0

    @property
    def parameters(self) -> dict[str, object]:
        """Parameters of the node that runs it."""
        return {"threads": self.threads, "manifest": str(self.manifest or "")}


@dataclass(frozen=True)
class Measured:
    """What a planner saw of one system under one load.

    ``fps`` counts results; ``non_inference_ms`` is what the nodes took beside the model, from
    callback to publish; it and ``stages_p50_ms`` are known for ours alone.
    """

    system: str
    fps: float
    end_to_end_ms: LatencySummary
    non_inference_ms: LatencySummary | None
    stages_p50_ms: dict[str, float]


def measure(system: str, load: Load, model: Model, *, stages: bool = False) -> Measured:
    """Run one system under one load.

    ``stages`` has the listener hear our detector's stages too. Comparisons leave that out: the
    baselines tell none, and on a small machine what the listener does is part of the load.

    Raises:
        EdgePerceptionError: a process died, or no result arrived.
    """
    with tempfile.TemporaryDirectory(prefix="edge_perception_bench_") as scratch:
        folder = Path(scratch)
        with _profiler(folder, stages), _system(system, folder, load, model) as node:
            with _player(folder, load) as player:
                _await_first_result(folder, node, player)
                pause(load.seconds + _WARM_UP_S, node, player)
            time.sleep(0.5)  # what is under way may still arrive
        return _judge(system, _read_rows(folder / run_files.PROFILER_LEDGER))


def _profiler(folder: Path, stages: bool) -> NodeProcess:
    parameters = {
        "autostart": True,
        "exit_on_failure": True,
        "output_dir": str(folder),
        "stages": stages,
    }
    return NodeProcess("profiler", parameters, folder / "profiler.log")


def _system(system: str, folder: Path, load: Load, model: Model) -> NodeProcess:
    log = folder / f"{system}.log"
    if system == OURS:
        parameters: dict[str, object] = {
            "autostart": True,
            "exit_on_failure": True,
            "profile": False,
            **model.parameters,
            "image_transport": "compressed" if load.compressed else "raw",
            "reliability": "reliable",  # as the baselines', so that nobody loses before its queue
        }
        return NodeProcess("container", parameters, log)
    depth = 10 if system == DEPTH_10 else 1
    return NodeProcess(
        "baseline", {"depth": depth, "compressed": load.compressed, **model.parameters}, log
    )


def _player(folder: Path, load: Load) -> NodeProcess:
    parameters = {"autostart": True, "source": str(load.bag), "fps": float(load.fps), "loop": True}
    return NodeProcess("player", parameters, folder / "player.log")


def _await_first_result(folder: Path, *processes: NodeProcess) -> None:
    """Wait until the graph runs: what starting takes is no part of the measurement."""
    await_file(folder / run_files.DETECTIONS, _START_TIMEOUT_S, *processes, filled=True)


def _read_rows(ledger: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]


def _judge(system: str, rows: Sequence[dict[str, Any]]) -> Measured:
    arrivals = np.array([row["arrival_ns"] for row in rows], np.int64)
    if arrivals.size < 2:
        raise EdgePerceptionError(f"{system}: hardly a result arrived", got=int(arrivals.size))
    steady = [
        row for row, ns in zip(rows, arrivals, strict=True) if ns > arrivals[0] + _WARM_UP_S * 1e9
    ]
    times = [int(row["arrival_ns"]) for row in steady]
    if len(times) < 2:
        raise EdgePerceptionError(f"{system}: all but {len(times)} results came while warming up")
    own = [_non_inference_ns(row) for row in steady if row["joined"]]
    return Measured(
        system=system,
        fps=(len(times) - 1) * 1e9 / (times[-1] - times[0]),
        end_to_end_ms=LatencySummary.of_ns(int(row["end_to_end_ns"]) for row in steady),
        non_inference_ms=LatencySummary.of_ns(own) if own else None,
        stages_p50_ms=_stages_p50_ms(steady),
    )


def _stages_p50_ms(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    taken: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        for stage, duration_ns in row["stages_ns"].items():
            taken[stage].append(duration_ns)
    return {stage: statistics.median(ns) / 1e6 for stage, ns in taken.items()}


def _non_inference_ns(row: dict[str, Any]) -> int:
    skipped = (*_INFERENCE, *_OUTSIDE)
    return sum(ns for stage, ns in row["stages_ns"].items() if stage not in skipped)


def overload(load: Load, model: Model, rounds: int, tell: Tell) -> dict[str, object]:
    """Compare the systems with a camera faster than the model; medians of each round's ratios."""
    runs = _alternate(SYSTEMS, load, model, rounds, tell)
    return {
        "camera_fps": load.fps,
        "p99_ratio_to_baseline": _median_ratio(runs, DEPTH_10, _p99),
        "p99_ratio_to_depth_1": _median_ratio(runs, DEPTH_1, _p99),
        "fps_ratio_to_baseline": _median_ratio(runs, DEPTH_10, _fps),
        "fps_ratio_to_depth_1": _median_ratio(runs, DEPTH_1, _fps),
        "p99_ms": {system: statistics.median(map(_p99, runs[system])) for system in SYSTEMS},
        "fps": {system: statistics.median(map(_fps, runs[system])) for system in SYSTEMS},
        "runs": [asdict(run) for system in SYSTEMS for run in runs[system]],
    }


def underload(load: Load, model: Model, rounds: int, tell: Tell) -> dict[str, object]:
    """Compare the systems with a camera that the model keeps up with."""
    runs = _alternate(SYSTEMS, load, model, rounds, tell)
    p50 = {system: statistics.median(map(_p50, runs[system])) for system in SYSTEMS}
    better = min((DEPTH_10, DEPTH_1), key=p50.__getitem__)
    return {
        "camera_fps": load.fps,
        "p50_ratio_to_baseline": _median_ratio(runs, better, _p50),
        "better_baseline": better,
        "p50_ms": p50,
        "runs": [asdict(run) for system in SYSTEMS for run in runs[system]],
    }


def _median_ratio(
    runs: dict[str, list[Measured]], baseline: str, of: Callable[[Measured], float]
) -> float:
    """Return the median over the rounds of ours over the baseline's.

    The runs of a round are neighbours in time, so that a machine shared with others slows both.
    """
    pairs = zip(runs[OURS], runs[baseline], strict=True)
    return statistics.median(of(ours) / of(theirs) for ours, theirs in pairs)


def _fps(run: Measured) -> float:
    return run.fps


def _p50(run: Measured) -> float:
    return _told(run.end_to_end_ms.p50)


def _p99(run: Measured) -> float:
    return _told(run.end_to_end_ms.p99)


def _told(percentile: float | None) -> float:
    if percentile is None:
        raise EdgePerceptionError(
            "too few frames for this percentile", mend="Give every run more seconds."
        )
    return percentile


def _alternate(
    systems: Sequence[str], load: Load, model: Model, rounds: int, tell: Tell
) -> dict[str, list[Measured]]:
    runs: dict[str, list[Measured]] = {system: [] for system in systems}
    for round_index in range(rounds):
        shift = round_index % len(systems)
        for system in (*systems[shift:], *systems[:shift]):
            run = measure(system, load, model)
            runs[system].append(run)
            summary = run.end_to_end_ms
            tell(
                f"{system:18} camera {load.fps:5.1f} fps: {run.fps:5.1f} fps,"
                f" p50 {summary.p50:7.1f} ms, p99 {summary.p99 or float('nan'):7.1f} ms"
            )
    return runs


def idle(load: Load, model: Model) -> dict[str, object]:
    """Show that without a subscriber no inference happens."""
    with tempfile.TemporaryDirectory(prefix="edge_perception_bench_") as scratch:
        folder = Path(scratch)
        with _system(OURS, folder, load, model) as node:
            pause(4.0, node)
            before = node.cpu_seconds()
            with _player(folder, load) as player:
                pause(load.seconds, node, player)
            used = node.cpu_seconds() - before
    return {
        "camera_fps": load.fps,
        "seconds": load.seconds,
        "cpu_share_of_one_core": used / load.seconds,
    }


def memory_growth(load: Load, model: Model, frames: int, tell: Tell) -> dict[str, object]:
    """Return how much the container grew over ``frames`` camera frames, in MB of its own memory."""
    with tempfile.TemporaryDirectory(prefix="edge_perception_bench_") as scratch:
        folder = Path(scratch)
        with (
            _profiler(folder, stages=True),
            _system(OURS, folder, load, model) as node,
            _player(folder, load) as player,
        ):
            _await_first_result(folder, node, player)
            pause(min(30.0, 0.1 * frames / load.fps), node, player)
            start_bytes, start_cpu = node.unique_bytes(), node.cpu_seconds()
            pause(frames / load.fps, node, player)
            grown = node.unique_bytes() - start_bytes
            processed = len(_read_rows(folder / run_files.PROFILER_LEDGER))
            cpu = node.cpu_seconds() - start_cpu
    tell(f"memory: grew {grown / 1e6:.2f} MB over {frames} camera frames")
    return {
        "memory_growth_mb": grown / 1e6,
        "camera_frames": frames,
        "processed_frames": processed,
        "cpu_seconds": cpu,
    }
