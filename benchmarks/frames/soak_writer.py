"""The soak's writer: a sealed 1080p frame 30 times a second, statistics on request."""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frames.frame_source import FULL_HD, info, percentiles, random_frame, seal
from edge_perception.gpu.ring import FrameRing
from edge_perception.gpu.ring_spec import RingSpec
from edge_perception.gpu.transports import transport_named

PERIOD_S = 1 / 30


@dataclass(frozen=True)
class Effort:
    """What a stretch of one thread's work took: time, CPU time, and why it did not run.

    ``queued_ns`` is the time in which it could have run and another thread had the core. In what
    remains of the time it was *blocked*: only that is waiting for somebody.
    """

    wall_ns: int
    cpu_ns: int
    queued_ns: int
    sleeps: int
    preemptions: int

    @property
    def blocked_ns(self) -> int:
        """Time spent waiting for anything; the clocks' own 10 us or so included."""
        return max(0, self.wall_ns - self.cpu_ns - self.queued_ns)


class Clocks:
    """Those of the calling thread. A stretch is from ``start`` to ``stop``."""

    def __init__(self) -> None:
        self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._begin = (0, 0, 0, 0, 0)

    def start(self) -> None:
        """Begin a stretch; the wall clock is read first here, and last in ``stop``."""
        self._begin = (time.perf_counter_ns(), *self._read())

    def stop(self) -> Effort:
        """End it."""
        rest = self._read()
        end = (time.perf_counter_ns(), *rest)
        return Effort(*(after - before for after, before in zip(end, self._begin, strict=True)))

    def _read(self) -> tuple[int, int, int, int]:
        queued_ns = int(os.pread(self._schedstat, 128, 0).split()[1])
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        return time.thread_time_ns(), queued_ns, usage.ru_nvcsw, usage.ru_nivcsw


class Writer:
    """The ring and what it took to write into it."""

    def __init__(self) -> None:
        spec = RingSpec("soak", slots=6, slot_bytes=FULL_HD.size_bytes, max_leases=4)
        self.ring = FrameRing.create(spec, transport_named("shared_memory"))
        self._efforts: list[Effort] = []
        self._attempted = 0

    def write_for_ever(self) -> None:
        """Write at a steady rate until the process ends."""
        frames = [random_frame(seed) for seed in range(4)]
        clocks = Clocks()
        due = time.monotonic()
        sequence = 0
        while True:
            sequence += 1
            frame = frames[sequence % len(frames)]
            seal(frame, sequence)
            described = info(sequence)
            clocks.start()
            self.ring.write(frame, described)
            self._efforts.append(clocks.stop())
            self._attempted = sequence
            due += PERIOD_S
            time.sleep(max(0.0, due - time.monotonic()))

    def report(self) -> dict[str, Any]:
        """Return the statistics since the last report."""
        efforts, self._efforts = self._efforts, []
        attempted, counters = self._attempted, self.ring.counters
        accounted = counters.written + counters.dropped_all_slots_leased
        return {
            **(_figures(efforts) if efforts else {}),
            "counters": asdict(counters),
            "attempted": attempted,
            "accounted": min(accounted, attempted),
            "open_files": len(os.listdir("/proc/self/fd")) - counters.readers * 2,
            "resident_mb": _resident_mb(),
        }


def _figures(efforts: list[Effort]) -> dict[str, Any]:
    return {
        **percentiles([effort.wall_ns / 1e6 for effort in efforts]),
        "cpu_p99_ms": percentiles([effort.cpu_ns / 1e6 for effort in efforts])["p99_ms"],
        "queued_p99_ms": percentiles([effort.queued_ns / 1e6 for effort in efforts])["p99_ms"],
        "blocked": percentiles([effort.blocked_ns / 1e6 for effort in efforts]),
        "slept": sum(effort.sleeps > 0 for effort in efforts),
        "preempted": sum(effort.preemptions > 0 for effort in efforts),
    }


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def main() -> None:
    """Publish the descriptor, write in a thread, answer questions from stdin until it ends."""
    writer = Writer()
    place = Path(sys.argv[1])
    fresh = place.with_suffix(".new")
    fresh.write_bytes(writer.ring.descriptor(0))
    fresh.replace(place)
    threading.Thread(target=writer.write_for_ever, daemon=True).start()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(writer.report()), flush=True)


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
