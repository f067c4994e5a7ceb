"""A run as figures: the contents of report.json (docs/report_schema.md describes each)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edge_perception.core.latency import STAGES, LatencySummary
from edge_perception.core.machine import describe_code, describe_machine, describe_state, utc_now
from edge_perception.replay.accuracy import measure_accuracy
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.replay.run_files import PlayedFrame, Run

SCHEMA = "edge_perception/report/1"
DEADLINE_MS = 100.0


def make_report(
    run: Run,
    truths: Mapping[int, LabelledBoxes],
    *,
    model: Mapping[str, Any],
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the report of a run as plain values.

    Args:
        run: the run's frames and counters.
        truths: ground truth by recorded stamp in ns.
        model: facts about the model, as they shall stand in the report.
        source: facts about what was played.
    """
    end_to_end_ns = [ns for frame in run.frames if (ns := frame.end_to_end_ns) is not None]
    return {
        "schema": SCHEMA,
        "time": utc_now(),
        "machine": describe_machine(),
        "state": describe_state(),
        "code": describe_code(),
        "model": dict(model),
        "source": dict(source),
        "frames": count_frames(run),
        "fps": _frames_a_second(run.frames),
        "latency_ms": {"end_to_end": _summary(end_to_end_ns), **_stage_summaries(run.frames)},
        "deadline": {
            "ms": DEADLINE_MS,
            "misses": sum(ns > DEADLINE_MS * 1e6 for ns in end_to_end_ns),
        },
        "player": {"late_ms": _summary(run.lateness_ns)},
        "accuracy": _accuracy(run.frames, truths),
    }


def count_frames(run: Run) -> dict[str, int | None]:
    """Count where the frames went.

    ``processed`` are results that arrived, ``dropped`` is what is missing from ``sent``. It
    divides into frames lost before the camera node, refused by it, replaced by a newer one
    before their turn (which is meant: a stale frame helps nobody), and failed in the detector;
    None where the node did not tell.
    """
    sent = len(run.frames)
    processed = sum(frame.row is not None for frame in run.frames)
    superseded = run.counter("camera", "superseded") or 0
    taken = run.counter("camera", "received")
    received = None if taken is None else taken + superseded
    skipped = run.counter("detector", "dropped")
    return {
        "sent": sent,
        "received": received,
        "processed": processed,
        "dropped": sent - processed,
        "lost_before_camera": None if received is None else sent - received,
        "rejected": run.counter("camera", "rejected"),
        "replaced_by_newer": None if skipped is None else skipped + superseded,
        "failed": run.counter("detector", "failed"),
    }


def _frames_a_second(frames: Sequence[PlayedFrame]) -> float | None:
    arrivals = sorted(int(frame.row["arrival_ns"]) for frame in frames if frame.row is not None)
    if len(arrivals) < 2 or arrivals[-1] == arrivals[0]:
        return None
    return round((len(arrivals) - 1) * 1e9 / (arrivals[-1] - arrivals[0]), 2)


def _stage_summaries(frames: Sequence[PlayedFrame]) -> dict[str, Any]:
    durations: dict[str, list[int]] = {stage: [] for stage in STAGES}
    for frame in frames:
        for stage, duration_ns in frame.stages_ns().items():
            durations.setdefault(stage, []).append(duration_ns)
    return {stage: _summary(samples) for stage, samples in durations.items()}


def _summary(durations_ns: Iterable[int]) -> dict[str, Any]:
    values = asdict(LatencySummary.of_ns(list(durations_ns)))
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in values.items()
    }


def _accuracy(frames: Sequence[PlayedFrame], truths: Mapping[int, LabelledBoxes]) -> dict[str, Any]:
    pairs = [
        (truths[frame.sent.recorded_stamp_ns], frame.found)
        for frame in frames
        if frame.found is not None and frame.sent.recorded_stamp_ns in truths
    ]
    return asdict(measure_accuracy(pairs))
