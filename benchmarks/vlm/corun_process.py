"""A detector in a process of its own, which is told by lines when to run. Python 3.9, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Run:
    """Latencies of the frames of one setting, in ms, and how many were never seen."""

    latencies_ms: list[float]
    skipped: int


class ProcessDetector:
    """A detector whose process answers a line "rate frames" by a ``Run`` in JSON."""

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self.on_ready: Callable[[], None] = lambda: None  # other processes hear nothing
        self.on_done: Callable[[], None] = lambda: None
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._is_ready = False

    def await_ready(self) -> None:
        """Wait until it could begin; raises ``SystemExit`` where it ended instead."""
        while not self._is_ready:
            self._is_ready = self._read_line().strip() == "ready"

    def run(self, rate_hz: float, frames: int) -> Run:
        """Detect on frames that come at a rate."""
        self.await_ready()
        assert self._process.stdin is not None
        self._process.stdin.write(f"{rate_hz} {frames}\n")
        self._process.stdin.flush()
        return Run(**json.loads(self._read_line()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the detector's process has ended: {self._process.args!r}")
        return line


def serve_runs(run: Callable[[float, int], Run]) -> None:
    """The other end: run for each line of standard input, until it is closed."""
    print("ready", flush=True)
    for line in sys.stdin:
        rate_hz, frames = line.split()
        print(json.dumps(asdict(run(float(rate_hz), int(frames)))), flush=True)


def sleep_until(when_s: float) -> None:
    """Sleep until ``time.perf_counter`` says ``when_s``."""
    left_s = when_s - time.perf_counter()
    if left_s > 0:
        time.sleep(left_s)
