"""Four readers, one writer, and a supervisor that kills them at random.

    python -m benchmarks.frames.soak --minutes 10 [--out docs/benchmarks/frames_cpu.json]
    python -m benchmarks.frames.soak --minutes 2 --plain    # the clock alone, on a quiet machine

Real processes over the shared_memory transport, 1080p frames at 30 Hz, a checksum over every byte
of every frame. Six phases: readers attached but idle; reading; reading while readers are killed by
SIGKILL; idle and killed again with the writer's process at real-time priority, as a robot would
give its camera; and killing of the writer too. What must hold: no torn frame, no lease or
descriptor left behind, ``write`` not slower for the killing.

Readers come from a fork server, so that to start one takes 6 ms of CPU: starting Python and NumPy
takes half a second, which on two cores would measure those. On few cores the clock alone still
cannot tell waiting from starving, because readers compute checksums where the writer writes. Each
phase therefore also tells how the time of ``write`` divides, by the scheduler's own books: running,
queued for a core, and blocked, which alone is waiting; and the real-time phases take the
scheduler's part away. The clock's figure of the plain phases is told beside them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from benchmarks.frames import soak_reader
from benchmarks.frames.frame_source import provenance

READERS = 4
PHASES = (
    ("idle", 0.08),
    ("undisturbed", 0.07),
    ("readers_killed", 0.3),
    ("real_time_idle", 0.08),
    ("real_time_readers_killed", 0.27),
    ("all_killed", 0.2),
)
PLAIN = (("idle", 0.25), ("undisturbed", 0.22), ("readers_killed", 0.53))
REAL_TIME = {"real_time_idle", "real_time_readers_killed"}
FIFO_PRIORITY = 10


@dataclass
class Tally:
    """What all readers saw; filled by the threads that listen to them."""

    read: int = 0
    torn: int = 0
    reattached: int = 0
    unexpected: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def listen(self, told: Connection) -> None:
        """Add up what a reader tells until it ends."""
        with told:
            while True:
                try:
                    event = told.recv()
                except (EOFError, OSError):  # OSError: killed in the middle of a word
                    return
                self._add(event)

    def _add(self, event: str) -> None:
        with self.lock:
            if event == "read":
                self.read += soak_reader.REPORT_EVERY
            elif event == "torn":
                self.torn += 1
            elif event == "reattached":
                self.reattached += 1
            else:
                self.unexpected.append(event)


class Soak:
    """The processes and the killing of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._descriptor = folder / "descriptor"
        self._mode = folder / "mode"
        self._random = random.Random(seed)
        self.tally = Tally()
        self._nursery = multiprocessing.get_context("forkserver")
        self._nursery.set_forkserver_preload([soak_reader.__name__])
        self._readers: list[ForkServerProcess] = []
        self.kills = {"reader": 0, "writer": 0}
        self.set_mode("idle")
        self.writer = self._start_writer()
        self._listeners: list[threading.Thread] = []
        for _ in range(READERS):
            self._start_reader()

    def set_mode(self, mode: str) -> None:
        """Tell the readers to idle or to read."""
        fresh = self._mode.with_suffix(".new")
        fresh.write_text(mode)
        fresh.replace(self._mode)

    def give_priority(self, *, real_time: bool) -> str:
        """Schedule every thread of the writer by its deadline or as everybody; returns how."""
        policy, priority = (os.SCHED_FIFO, FIFO_PRIORITY) if real_time else (os.SCHED_OTHER, 0)
        try:
            for thread in os.listdir(f"/proc/{self.writer.pid}/task"):
                os.sched_setscheduler(int(thread), policy, os.sched_param(priority))
        except PermissionError:
            return "as everybody: real-time priority is not permitted here"
        return f"SCHED_FIFO {priority}" if real_time else "as everybody"

    def ask_writer(self) -> dict[str, Any]:
        """Return the writer's statistics since the last question."""
        assert self.writer.stdin is not None
        assert self.writer.stdout is not None
        self.writer.stdin.write("report\n")
        self.writer.stdin.flush()
        report: dict[str, Any] = json.loads(self.writer.stdout.readline())
        return report

    def run_phase(self, seconds: float, kills: dict[str, float]) -> None:
        """Let it run; ``kills`` gives the mean seconds between kills of each kind."""
        now = time.monotonic()
        end = now + seconds
        due = {kind: now + self._pause(mean) for kind, mean in kills.items()}
        while time.monotonic() < end:
            time.sleep(0.02)
            for kind, at in due.items():
                if time.monotonic() >= at:
                    self._kill(kind)
                    due[kind] = time.monotonic() + self._pause(kills[kind])

    def stop_readers(self) -> None:
        """End the readers and wait until all they said is counted."""
        for reader in self._readers:
            reader.terminate()
            reader.join(timeout=30)
        for listener in self._listeners:
            listener.join(timeout=30)

    def close(self) -> None:
        """Kill whatever still runs."""
        for reader in self._readers:
            reader.kill()
            reader.join()
        self.writer.kill()
        self.writer.wait()

    def _pause(self, mean: float) -> float:
        return self._random.uniform(0.5, 1.5) * mean

    def _kill(self, kind: str) -> None:
        if kind == "reader":
            victim = self._readers.pop(self._random.randrange(READERS))
            victim.kill()
            victim.join()
            self._start_reader()
        else:
            self.writer.kill()
            self.writer.wait()
            self.writer = self._start_writer()
        self.kills[kind] += 1

    def _start_writer(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "benchmarks.frames.soak_writer", str(self._descriptor)]
        pipe = subprocess.PIPE
        writer = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert writer.stdout is not None
        if writer.stdout.readline().strip() != "ready":
            raise SystemExit("the writer did not start")
        return writer

    def _start_reader(self) -> None:
        told, tell = self._nursery.Pipe(duplex=False)
        arguments = (self._descriptor, self._mode, tell)
        reader = self._nursery.Process(target=soak_reader.follow, args=arguments, daemon=True)
        reader.start()
        tell.close()  # the reader's end is its own: when it dies, `told` ends
        self._readers.append(reader)
        listener = threading.Thread(target=self.tally.listen, args=(told,), daemon=True)
        listener.start()
        self._listeners.append(listener)


def run_soak(
    seconds: float, reader_kill_s: float, writer_kill_s: float, seed: int = 4
) -> dict[str, Any]:
    """Run all phases; returns their figures. The processes end with it."""
    segments = _shared_memory_files()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), seed)
        try:
            phases, leaks = _run_phases(soak, seconds, reader_kill_s, writer_kill_s)
        finally:
            soak.close()
    leaks["shared_memory_files"] = len(_shared_memory_files() - segments)
    tally = soak.tally
    killed = phases["readers_killed"]
    return {
        "minutes": round(seconds / 60, 2),
        "reader_kills": soak.kills["reader"],
        "writer_kills": soak.kills["writer"],
        "frames_read": tally.read,
        "torn": tally.torn,
        "reattached": tally.reattached,
        "unexpected": tally.unexpected[:10],
        "leaked": sum(leaks.values()),
        "leaks": leaks,
        **_plain_ratios(phases),
        "write_p99_ratio_real_time_killed_to_idle": _ratio(
            phases["real_time_readers_killed"], phases["real_time_idle"]
        ),
        "write_cpu_p99_ratio_killed_to_idle": _ratio(killed, phases["idle"], "cpu_p99_ms"),
        "phases": phases,
    }


def run_plain(seconds: float, reader_kill_s: float, seed: int = 5) -> dict[str, Any]:
    """Run the phases scheduled as everybody; what other jobs on the machine spoil."""
    phases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), seed)
        try:
            time.sleep(1.0)  # let everybody attach
            for name, share in PLAIN:
                kills = {"reader": reader_kill_s} if name == "readers_killed" else {}
                phases[name] = _run_phase(soak, name, share * seconds, kills)
            soak.stop_readers()
        finally:
            soak.close()
    return {
        "minutes": round(seconds / 60, 2),
        "reader_kills": soak.kills["reader"],
        "frames_read": soak.tally.read,
        "torn": soak.tally.torn,
        **_plain_ratios(phases),
        "phases": phases,
    }


def _plain_ratios(phases: dict[str, Any]) -> dict[str, float | None]:
    killed = phases["readers_killed"]
    return {
        "write_p99_ratio_killed_to_undisturbed": _ratio(killed, phases["undisturbed"]),
        "write_p99_ratio_killed_to_idle": _ratio(killed, phases["idle"]),
    }


def _ratio(phase: dict[str, Any], base: dict[str, Any], figure: str = "p99_ms") -> float | None:
    """Ratio of a p99 of ``write``, if both phases were long enough to have one."""
    if phase[figure] is None or base[figure] is None:
        return None
    return round(float(phase[figure] / base[figure]), 3)


def _run_phases(
    soak: Soak, seconds: float, reader_kill_s: float, writer_kill_s: float
) -> tuple[dict[str, Any], dict[str, int]]:
    kills: dict[str, dict[str, float]] = {
        "idle": {},
        "undisturbed": {},
        "readers_killed": {"reader": reader_kill_s},
        "real_time_idle": {},
        "real_time_readers_killed": {"reader": reader_kill_s},
        "all_killed": {"reader": reader_kill_s, "writer": writer_kill_s},
    }
    time.sleep(1.0)  # let everybody attach
    phases: dict[str, Any] = {}
    before = soak.ask_writer()["open_files"]
    for name, share in PHASES:
        phases[name] = _run_phase(soak, name, share * seconds, kills[name])
        if name == "real_time_readers_killed":
            after = _settled(soak)["open_files"]
    soak.stop_readers()
    rest = _settled(soak)
    leaks = {
        "leases": rest["counters"]["leases_held"],
        "sessions": rest["counters"]["readers"],
        "writer_files": max(0, after - before),
        "uncounted_frames": rest["attempted"] - rest["accounted"],
    }
    return phases, leaks


def _run_phase(soak: Soak, name: str, seconds: float, kills: dict[str, float]) -> dict[str, Any]:
    soak.set_mode("idle" if name.endswith("idle") else "read")
    scheduled = soak.give_priority(real_time=name in REAL_TIME)
    soak.run_phase(seconds, kills)
    return {**soak.ask_writer(), "scheduled": scheduled}


def _settled(soak: Soak) -> dict[str, Any]:
    """Ask once the newly started readers have attached."""
    time.sleep(2.0)
    return soak.ask_writer()


def _shared_memory_files() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "edge" in name}


def main() -> None:
    """Run, print, and put the figures into the JSON under ``soak``, or ``soak_plain``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--reader-kill-s", type=float, default=1.6)
    parser.add_argument("--writer-kill-s", type=float, default=4.5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit", default="")
    parser.add_argument("--plain", action="store_true", help="three phases, scheduled as all")
    arguments = parser.parse_args()
    seconds, reader_kill_s = arguments.minutes * 60, arguments.reader_kill_s
    figures = (
        run_plain(seconds, reader_kill_s)
        if arguments.plain
        else run_soak(seconds, reader_kill_s, arguments.writer_kill_s)
    )
    print(json.dumps(figures, indent=2))
    if arguments.out:
        old = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        name = "soak_plain" if arguments.plain else "soak"
        facts = {"schema": 1, **old, name: {**figures, **provenance(arguments.commit)}}
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n")
    if figures["torn"] or figures.get("leaked") or figures.get("unexpected"):
        raise SystemExit("the soak failed")


if __name__ == "__main__":
    main()
