"""The package's nodes as child processes that end with us, however we end.

What the demo and the benchmark measure is what a user runs: node executables that talk over DDS.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil
import yaml

from edge_perception.embedded import carried_file
from edge_perception.errors import EdgePerceptionError

_STOP_TIMEOUT_S = 15.0
_LOG_LINES = 15
_POLL_S = 0.1
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class NodeProcess:
    """One node, ``python -m edge_perception.nodes.<name>``, with its output in a log file.

    A context manager: leaving it interrupts the process as Ctrl-C would, and kills it only where
    that does not help. A SIGKILL of this process takes the node with it.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, object],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = [sys.executable, "-m", f"edge_perception.nodes.{name}"]
        self._command += ros_arguments(parameters)
        self._environment = dict(environment or graph_environment())
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> NodeProcess:
        """Start the process."""
        with self.log.open("wb") as output:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end the child
                preexec_fn=_die_with_parent,
            )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        child = self._started()
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    @property
    def status(self) -> int | None:
        """The exit status, or None while the process runs."""
        return self._started().poll()

    def check(self) -> None:
        """Raise the node's failure if it has ended."""
        if self.status is not None:
            raise self.failure()

    def failure(self) -> EdgePerceptionError:
        """Return an error that tells how the process ended, with the end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(lines[-_LOG_LINES:])
        return EdgePerceptionError(
            f"the {self.name} process ended early",
            expected="exit status 0 at the end of the recording",
            got=self.status,
            mend=f"The end of {self.log}:\n{tail}",
        )

    def cpu_seconds(self) -> float:
        """Return the processor time used so far."""
        times = psutil.Process(self._started().pid).cpu_times()
        return float(times.user + times.system)

    def unique_bytes(self) -> int:
        """Return the memory that belongs to this process alone (its unique set).

        Shared segments of DDS grow as they are first touched; that is no growth of the process.
        """
        return int(psutil.Process(self._started().pid).memory_full_info().uss)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise ValueError(f"node {self.name} was not started")
        return self._child


def graph_environment() -> dict[str, str]:
    """Return this process's environment, made fit for a graph of its own on this machine.

    What the user has set stays: a domain, a discovery range, a DDS profile.
    """
    environment = dict(os.environ)
    environment["EDGE_PERCEPTION_END_WITH_PARENT"] = "1"
    environment.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 101))
    environment.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")  # Jazzy and later
    if environment.get("ROS_DISTRO") == "humble":
        environment.setdefault("ROS_LOCALHOST_ONLY", "1")
    # The default shared-memory segment loses images wholesale (README.md).
    profile = str(carried_file("config/fastdds.xml"))
    environment.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", profile)
    environment.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", profile)
    return environment


def ros_arguments(parameters: Mapping[str, object]) -> list[str]:
    """Return parameters as ROS command line arguments; strings are quoted as YAML."""
    arguments = ["--ros-args"]
    for name, value in parameters.items():
        style = '"' if isinstance(value, str) else None
        text = yaml.safe_dump(value, default_style=style, width=float("inf"))  # never folded
        arguments += ["-p", f"{name}:={text.splitlines()[0]}"]
    return arguments


def await_file(path: Path, timeout_s: float, *processes: NodeProcess, filled: bool = False) -> None:
    """Wait until a file exists (``filled``: and holds something), while the processes live.

    Raises:
        EdgePerceptionError: a process ended, or the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and (path.stat().st_size or not filled)):
        if time.monotonic() > deadline:
            raise EdgePerceptionError(
                f"no {path.name} within {timeout_s:.0f} s",
                mend=f"See {', '.join(str(process.log) for process in processes)}.",
            )
        pause(_POLL_S, *processes)


def pause(seconds: float, *processes: NodeProcess) -> None:
    """Sleep, and raise as soon as one of the processes has ended."""
    end = time.monotonic() + seconds
    while True:
        for process in processes:
            process.check()
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(2 * _POLL_S, left))


def _die_with_parent() -> None:
    """Run in the child before it becomes the node: the node itself asks for SIGINT instead."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
