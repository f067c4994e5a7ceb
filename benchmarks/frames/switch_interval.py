"""What another thread's Python costs a camera and its readers, by the GIL's switch interval.

    python -m benchmarks.frames.switch_interval [--out docs/benchmarks/frames_cpu.json]

A writer process whose second thread computes in pure Python all the time: the worst company that a
camera node can have in the container. A reader process leases the newest frame 100 times a second.
Both wait for the interpreter lock up to one interval each time they come back from a system call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.frames.frame_source import FULL_HD, info, percentiles, provenance, random_frame
from edge_perception.gpu.reader import FrameReader
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import transport_named

INTERVALS_MS = (5.0, 1.0, 0.2)
LEASES = 300


class Busy:
    """A thread that never lets go of the interpreter by itself."""

    def __init__(self) -> None:
        self.turns = 0
        self._stop = False
        self._thread = threading.Thread(target=self._spin)

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()

    def _spin(self) -> None:
        while not self._stop:
            self.turns += 1


def measure(interval_ms: float) -> dict[str, Any]:
    """Write and lease beside a busy thread."""
    sys.setswitchinterval(interval_ms / 1e3)
    spec = RingSpec("switching", slots=6, slot_bytes=FULL_HD.size_bytes, max_leases=4)
    frame = random_frame(0)
    writes_ms: list[float] = []
    with FrameRing.create(spec, transport_named("shared_memory")) as ring, Busy() as busy:
        ring.write(frame, info(1))
        command = [sys.executable, "-m", "benchmarks.frames.switch_interval"]
        reader = subprocess.Popen(
            [*command, "--read", ring.descriptor(1).hex()], stdout=subprocess.PIPE, text=True
        )
        began, turns = time.monotonic(), busy.turns
        while reader.poll() is None:
            described = info(len(writes_ms) + 2)
            at = time.perf_counter_ns()
            ring.write(frame, described)
            writes_ms.append((time.perf_counter_ns() - at) / 1e6)
            time.sleep(0.02)
        turns_per_s = (busy.turns - turns) / (time.monotonic() - began)
        assert reader.stdout is not None
        leases_ms = json.loads(reader.stdout.read())
    return {
        "write": percentiles(writes_ms),
        "lease": percentiles(leases_ms),
        "busy_thread_turns_per_s": round(turns_per_s),
    }


def read(descriptor: bytes) -> list[float]:
    """Lease frames; returns how long each took in ms."""
    times_ms = []
    with FrameReader.attach(descriptor) as reader:
        for _ in range(LEASES):
            began = time.perf_counter_ns()
            lease = reader.acquire_newest()
            times_ms.append((time.perf_counter_ns() - began) / 1e6)
            if lease is not None:
                lease.release()
            time.sleep(0.01)
    return times_ms


def main() -> None:
    """Run, print, and put the figures into the JSON under ``switch_interval``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--read", metavar="DESCRIPTOR", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit", default="")
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(bytes.fromhex(arguments.read))))
        return
    figures = {f"{interval_ms:g}_ms": measure(interval_ms) for interval_ms in INTERVALS_MS}
    print(json.dumps(figures, indent=2))
    if arguments.out:
        old = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        facts = {**old, "switch_interval": {**figures, **provenance(arguments.commit)}}
        arguments.out.write_text(json.dumps({"schema": 1, **facts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
