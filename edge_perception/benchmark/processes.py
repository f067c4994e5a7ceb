"""The package's nodes as child processes that end with us, however we end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil

from edge_perception.errors import EdgePerceptionError

_STOP_TIMEOUT_S = 15.0


class NodeProcess:
    """One node executable, ``python -m edge_perception.nodes.<name>``, with its log in a file.

    A context manager: leaving it interrupts the process as Ctrl-C would, and kills it only when
    that does not help.
    """

    def __init__(
        self,
        name: str,
        log: Path,
        parameters: Mapping[str, object] | None = None,
        remappings: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = _command(name, parameters or {}, remappings or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> NodeProcess:
        """Start the process."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "EDGE_PERCEPTION_END_WITH_PARENT": "1"},
                start_new_session=True,  # a Ctrl-C is ours to pass on, in our order
            )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Interrupt the process and wait for it."""
        process = self._running()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def check(self) -> None:
        """Raise if the process has ended by itself, with the end of its log."""
        status = self._running().poll()
        if status not in (None, 0):
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise EdgePerceptionError(f"node {self.name} ended with status {status}:\n{tail}")

    def wait(self, timeout_s: float) -> bool:
        """Wait for the process to end by itself; tell whether it did."""
        try:
            self._running().wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def cpu_seconds(self) -> float:
        """Return the processor time used so far."""
        times = psutil.Process(self._running().pid).cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        """Return the memory that belongs to the process alone, as the kernel counts it now.

        The unique set: shared segments of DDS, which grow as they are first touched, are not the
        process's own growth.
        """
        return int(psutil.Process(self._running().pid).memory_full_info().uss)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ValueError(f"node {self.name} was not started")
        return self._process


def _command(
    name: str, parameters: Mapping[str, object], remappings: Mapping[str, str]
) -> list[str]:
    command = [sys.executable, "-m", f"edge_perception.nodes.{name}", "--ros-args"]
    for key, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        command += ["-p", f"{key}:={text}"]
    for source, target in remappings.items():
        command += ["-r", f"{source}:={target}"]
    return command


def pause(seconds: float, *processes: NodeProcess) -> None:
    """Sleep while watching that the processes live."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for process in processes:
            process.check()
        time.sleep(min(0.2, max(0.0, end - time.monotonic())))
