"""The demo: a recording through the real graph, as a robot would run it, and its report.

Player and container are processes of their own that talk over DDS; nothing here imports ROS. The
container is started first and the player once the graph is active, so that no frame meets a model
that is still loading. Both end with this process, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge_perception.embedded import carried_file
from edge_perception.errors import EdgePerceptionError
from edge_perception.replay import run_files
from edge_perception.replay.model_facts import read_model_facts
from edge_perception.replay.report import Recording, read_recording, write_report

# Precision at low scores belongs to mean average precision, so more is published than is shown.
SCORE_THRESHOLD = 0.05

_START_TIMEOUT_S = 60.0
_PLAY_MARGIN_S = 60.0
# Counters travel on /diagnostics once a second; the last ones shall be final.
_LAST_COUNTERS_S = 1.3
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.1
_LOG_LINES = 15
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class DemoOptions:
    """What to play through which model, and where to put the results."""

    bag: str
    manifest: Path
    out: Path
    rate: float = 1.0
    fps: float = 0.0
    stamps: str = "shifted"


@dataclass(frozen=True)
class DemoProgress:
    """How far a run is: images sent and results arrived, out of ``images``."""

    images: int
    sent: int
    processed: int


Tell = Callable[[DemoProgress], None]


def run_demo(options: DemoOptions, tell: Tell) -> dict[str, Any]:
    """Play the recording through the graph and return the report's figures.

    Raises:
        EdgePerceptionError: the bag or the manifest cannot be read, or a process ended early; the
            message then carries the end of its log.
    """
    recording = read_recording(options.bag)
    model = read_model_facts(options.manifest)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in run_files.ALL:  # those of an earlier run
        (options.out / name).unlink(missing_ok=True)
    play(options, recording, tell)
    return write_report(options.out, recording, model, options.out)


def play(options: DemoOptions, recording: Recording, tell: Tell) -> None:
    """Run container and player once; their ledgers are in ``options.out`` afterwards."""
    environment = graph_environment()
    with _process("container", _container_parameters(options), environment, options.out) as graph:
        # The profiler is the last of its nodes to be configured, and creates this file then.
        _await_file(options.out / run_files.PROFILER_LEDGER, graph)
        with _process("player", _player_parameters(options), environment, options.out) as player:
            _watch(player, graph, recording, options, tell)
        time.sleep(_LAST_COUNTERS_S)


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
    # The default shared-memory segment loses images wholesale (docs/architecture.md).
    profile = str(carried_file("config/fastdds.xml"))
    environment.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", profile)
    environment.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", profile)
    return environment


def _container_parameters(options: DemoOptions) -> Mapping[str, object]:
    return {
        "autostart": True,
        "detector:manifest": str(options.manifest.resolve()),
        "detector:score_threshold": SCORE_THRESHOLD,
        "profiler:output_dir": str(options.out.resolve()),
    }


def _player_parameters(options: DemoOptions) -> Mapping[str, object]:
    return {
        "autostart": True,
        "source": options.bag,
        "rate": float(options.rate),
        "fps": float(options.fps),
        "stamps": options.stamps,
        "ledger": str((options.out / run_files.PLAYER_LEDGER).resolve()),
    }


def ros_arguments(parameters: Mapping[str, object]) -> list[str]:
    """Return parameters as ROS command line arguments; strings are quoted as YAML."""
    arguments = ["--ros-args"]
    for name, value in parameters.items():
        text = yaml.safe_dump(value, default_style='"' if isinstance(value, str) else None)
        arguments += ["-p", f"{name}:={text.splitlines()[0]}"]
    return arguments


@contextmanager
def _process(
    node: str, parameters: Mapping[str, object], environment: Mapping[str, str], out: Path
) -> Iterator[_GraphProcess]:
    """Run a node's module as a process until the body ends; its output goes to a log file."""
    log = out / f"{node}.log"
    command = [sys.executable, "-m", f"edge_perception.nodes.{node}", *ros_arguments(parameters)]
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the child
            preexec_fn=_die_with_parent,
        )
        try:
            yield _GraphProcess(node, child, log)
        finally:
            _stop(child)


@dataclass(frozen=True)
class _GraphProcess:
    """A running node process."""

    node: str
    child: subprocess.Popen[bytes]
    log: Path

    def failure(self) -> EdgePerceptionError:
        """Return an error that tells how the process ended, with the end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(lines[-_LOG_LINES:])
        return EdgePerceptionError(
            f"the {self.node} process ended early",
            expected="exit status 0 at the end of the recording",
            got=self.child.poll(),
            mend=f"The end of {self.log}:\n{tail}",
        )


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Run in the child before it becomes the node: the node itself asks for SIGINT instead."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Interrupt a process, as Ctrl-C would, and kill it if that does not help."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _await_file(path: Path, process: _GraphProcess) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not path.exists():
        if process.child.poll() is not None or time.monotonic() > deadline:
            raise process.failure()
        time.sleep(_POLL_S)


def _watch(
    player: _GraphProcess,
    graph: _GraphProcess,
    recording: Recording,
    options: DemoOptions,
    tell: Tell,
) -> None:
    """Tell the progress until the player ends by itself."""
    sent = _LineCounter(options.out / run_files.PLAYER_LEDGER, f'"{recording.image_topic}"')
    processed = _LineCounter(options.out / run_files.PROFILER_LEDGER, '"stamp_ns"')
    deadline = time.monotonic() + _expected_s(recording, options) + _PLAY_MARGIN_S
    while player.child.poll() is None:
        if graph.child.poll() is not None:
            raise graph.failure()
        if time.monotonic() > deadline:
            raise player.failure()
        tell(DemoProgress(recording.images, sent.count(), processed.count()))
        time.sleep(_POLL_S)
    if player.child.returncode != 0:
        raise player.failure()
    tell(DemoProgress(recording.images, sent.count(), processed.count()))


def _expected_s(recording: Recording, options: DemoOptions) -> float:
    fps = options.fps or (recording.fps or 1.0) * options.rate
    return recording.images / fps


class _LineCounter:
    """Counts the lines with a text in a file that is being written, reading each byte once."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text.encode()
        self._offset = 0
        self._count = 0

    def count(self) -> int:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._count += sum(self._text in line for line in whole.splitlines())
        return self._count
