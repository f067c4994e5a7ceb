"""The demo: a recording through the real graph, as a robot would run it, and its report.

Player and container are processes of their own that talk over DDS; nothing here imports ROS. The
container is started first and the player once the graph is active, so that no frame meets a model
that is still loading. Both end with this process, however it ends.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_perception.replay import run_files
from edge_perception.replay.graph_process import NodeProcess, await_file, graph_environment
from edge_perception.replay.model_facts import read_model_facts
from edge_perception.replay.questions import BagQuestion, bag_questions
from edge_perception.replay.report import Recording, read_recording, write_report

# Precision at low scores belongs to mean average precision, so more is published than is shown.
SCORE_THRESHOLD = 0.05

_START_TIMEOUT_S = 60.0
_PLAY_MARGIN_S = 60.0
# Counters travel on /diagnostics once a second; the last ones shall be final.
_LAST_COUNTERS_S = 1.3
_POLL_S = 0.1
_ASKED_EVERY_S = 0.4  # time for captions between the questions
_NO_TRUTH = BagQuestion("way", "Is the way free?", ())


@dataclass(frozen=True)
class DemoOptions:
    """What to play through which models, and where to put the results; ``vlm`` None: without."""

    bag: str
    manifest: Path
    out: Path
    rate: float = 1.0
    fps: float = 0.0
    stamps: str = "shifted"
    vlm: Path | None = None


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
    container_log, player_log = options.out / "container.log", options.out / "player.log"
    with ExitStack() as started:
        parameters = _container_parameters(options)
        graph = started.enter_context(
            NodeProcess("container", parameters, container_log, environment)
        )
        # The profiler is the last of its nodes to be configured, and creates this file then.
        await_file(options.out / run_files.PROFILER_LEDGER, _START_TIMEOUT_S, graph)
        with NodeProcess("player", _player_parameters(options), player_log, environment) as player:
            if options.vlm is not None:  # now that there is something to ask about
                started.enter_context(_asker(options, recording, environment))
            _watch(player, graph, recording, options, tell)
        time.sleep(_LAST_COUNTERS_S)


def _container_parameters(options: DemoOptions) -> Mapping[str, object]:
    return {
        "autostart": True,
        "exit_on_failure": True,
        "detector:manifest": str(options.manifest.resolve()),
        "detector:score_threshold": SCORE_THRESHOLD,
        "profiler:output_dir": str(options.out.resolve()),
        "vlm": options.vlm is not None,
        "vlm:model": "" if options.vlm is None else str(options.vlm.resolve()),
        "vlm:threads": 1,  # beside a detector that uses every core
    }


def _asker(
    options: DemoOptions, recording: Recording, environment: Mapping[str, str]
) -> NodeProcess:
    """A process that asks what the bag's truth can judge, and writes down what it hears."""
    questions = bag_questions(recording.truths.values()) or [_NO_TRUTH]
    lines = [json.dumps(question.request(number)) for number, question in enumerate(questions)]
    (options.out / run_files.QUESTIONS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    parameters = {
        "autostart": True,
        "questions": str((options.out / run_files.QUESTIONS).resolve()),
        "output": str((options.out / run_files.CONVERSATION).resolve()),
        "pause_s": _ASKED_EVERY_S,
    }
    return NodeProcess("asker", parameters, options.out / "asker.log", environment)


def _player_parameters(options: DemoOptions) -> Mapping[str, object]:
    return {
        "autostart": True,
        "source": options.bag,
        "rate": float(options.rate),
        "fps": float(options.fps),
        "stamps": options.stamps,
        "ledger": str((options.out / run_files.PLAYER_LEDGER).resolve()),
    }


def _watch(
    player: NodeProcess,
    graph: NodeProcess,
    recording: Recording,
    options: DemoOptions,
    tell: Tell,
) -> None:
    """Tell the progress until the player ends by itself."""
    sent = _LineCounter(options.out / run_files.PLAYER_LEDGER, f'"{recording.image_topic}"')
    processed = _LineCounter(options.out / run_files.PROFILER_LEDGER, '"stamp_ns"')
    deadline = time.monotonic() + _expected_s(recording, options) + _PLAY_MARGIN_S
    while player.status is None:
        graph.check()
        if time.monotonic() > deadline:
            raise player.failure()
        tell(DemoProgress(recording.images, sent.count(), processed.count()))
        time.sleep(_POLL_S)
    if player.status != 0:
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
