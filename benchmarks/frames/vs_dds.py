"""A 1080p frame to three readers: by ring and handle, against three DDS subscriptions.

    python -m benchmarks.frames.vs_dds [--seconds 20] [--out docs/benchmarks/frames_cpu.json]

Real processes (``passing``), 30 frames a second, the publisher reliable in both, Fast DDS with the
profile of config/fastdds.xml. Latency is from the frame in the writer's hands to its pixels as an
array in the reader's. CPU time is of all threads of all four processes, a frame. *Copy time* is
what the pixels cost of it. By DDS, whose copies are out of sight: CPU time at 1080p less CPU time
of a 4x4 frame. By ring: CPU time in ``FrameRing.write``, the only place where pixels are touched
(that difference is smaller and drowns in the noise of the rest).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frames.frame_source import percentiles, provenance
from benchmarks.frames.passing import READERS

FULL_HD = (1920, 1080)
TINY = (4, 4)
WAYS = ("dds", "ring")
PROFILE = "FASTRTPS_DEFAULT_PROFILES_FILE"


def measure(way: str, size: tuple[int, int], frames: int) -> dict[str, Any]:
    """Pass frames one way; returns latencies, losses and CPU time a frame."""
    topic = f"/passing_{os.getpid()}_{way}_{size[0]}"
    arguments = [way, topic, *map(str, size), str(frames)]
    readers = [_start("read", arguments) for _ in range(READERS)]
    writer = _start("write", arguments)
    try:
        reports = [_report(process) for process in (writer, *readers)]
    finally:
        for process in (writer, *readers):
            process.kill()
            process.wait()
    latencies = [latency for report in reports[1:] for latency in report["latencies_ms"]]
    if not latencies or any(report["different"] for report in reports[1:]):
        raise SystemExit(f"{way}: frames were lost or differ")
    return {
        **percentiles(latencies),
        "lost": READERS * frames - len(latencies),
        "writer_cpu_ms": round(reports[0]["cpu_ms"] / frames, 4),
        "reader_cpu_ms": round(float(np.mean([r["cpu_ms"] for r in reports[1:]])) / frames, 4),
        "cpu_ms": round(sum(report["cpu_ms"] for report in reports) / frames, 4),
        "copy_ms": round(reports[0]["copy_ms"] / frames, 4),
    }


def compare(seconds: float) -> dict[str, Any]:
    """Measure both ways at both sizes."""
    frames = int(seconds * 30)
    figures: dict[str, Any] = {}
    for way in WAYS:
        figures[way] = measure(way, FULL_HD, frames)
        figures[way]["tiny_frame"] = measure(way, TINY, frames)
    dds, ring = figures["dds"], figures["ring"]
    dds["copy_ms"] = round(dds["cpu_ms"] - dds["tiny_frame"]["cpu_ms"], 4)
    ratios = {
        "p50_ratio": _ratio(dds["p50_ms"], ring["p50_ms"]),
        "p99_ratio": _ratio(dds["p99_ms"], ring["p99_ms"]),
        "copy_time_ratio": _ratio(dds["copy_ms"], ring["copy_ms"]),
        "cpu_time_ratio": _ratio(dds["cpu_ms"], ring["cpu_ms"]),
    }
    return {**ratios, "frames": frames, "profile": Path(os.environ[PROFILE]).name, **figures}


def _ratio(dds: float, ring: float) -> float:
    return round(dds / ring, 2)


def _start(role: str, arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.frames.passing", role, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _report(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit(f"failed: {process.args!r}")
    report: dict[str, Any] = json.loads(said)
    return report


def main() -> None:
    """Run, print, and put the figures into the JSON under ``vs_dds``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit", default="")
    arguments = parser.parse_args()
    if PROFILE not in os.environ:
        raise SystemExit(f"{PROFILE} is not set: run this by scripts/env.sh")
    figures = compare(arguments.seconds)
    print(json.dumps(figures, indent=2))
    if arguments.out:
        old = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        facts = {"schema": 1, **old, "vs_dds": {**figures, **provenance(arguments.commit)}}
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
