"""What a run left behind: the player's and the profiler's ledgers, joined into frames.

Three clocks meet here. The bag's stamps name a frame and its ground truth; the stamps on the wire
are the same when they were replayed as recorded, or moved to the time of the run; the player's
ledger holds both and is what joins them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_perception.errors import BagError
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.replay.playback import SentMessage, read_ledger

PLAYER_LEDGER = "player.jsonl"
PROFILER_LEDGER = "ledger.jsonl"
DETECTIONS = "detections.jsonl"
COUNTERS = "counters.json"
QUESTIONS = "questions.jsonl"
CONVERSATION = "conversation.jsonl"
ALL = (PLAYER_LEDGER, PROFILER_LEDGER, DETECTIONS, COUNTERS, QUESTIONS, CONVERSATION)


@dataclass(frozen=True)
class PlayedFrame:
    """One image that was sent; ``row`` and ``found`` are None if no result came of it.

    ``row`` is the profiler's ledger row as it stands in its file; ``found`` are the detections,
    and ``arrival_monotonic_ns`` when they came, on the clock of the player's ledger.
    """

    sent: SentMessage
    row: Mapping[str, Any] | None
    found: LabelledBoxes | None
    arrival_monotonic_ns: int | None

    @property
    def was_shifted(self) -> bool:
        """Whether the stamp on the wire is a time of the run, and not of the recording."""
        return self.sent.stamp_ns != self.sent.recorded_stamp_ns

    @property
    def end_to_end_ns(self) -> int | None:
        """Time from stamp to arrival, or None without a result.

        Of messages replayed with their recorded stamps, whose distance to the arrival means
        nothing: from the due time to the arrival, both monotonic.
        """
        if self.row is None:
            return None
        if self.was_shifted:
            return int(self.row["end_to_end_ns"])
        if self.arrival_monotonic_ns is None:
            return None
        return self.arrival_monotonic_ns - self.sent.due_monotonic_ns

    def stages_ns(self) -> dict[str, int]:
        """Return the stages of the result; with recorded stamps, ``receive`` is what remains."""
        stages = {} if self.row is None else dict(self.row["stages_ns"])
        if "receive" in stages and not self.was_shifted:
            total_ns = self.end_to_end_ns
            others_ns = sum(ns for name, ns in stages.items() if name != "receive")
            stages["receive"] = 0 if total_ns is None else total_ns - others_ns
        return stages


@dataclass(frozen=True)
class Run:
    """A finished run.

    ``frames`` are the images of one topic in the order sent. ``counters`` are those that each
    node told last, by the node's name, as text.
    """

    image_topic: str
    frames: tuple[PlayedFrame, ...]
    counters: Mapping[str, Mapping[str, str]]
    lateness_ns: tuple[int, ...]

    def counter(self, node: str, name: str) -> int | None:
        """Return a node's counter, or None if it never told it."""
        for told_by, values in self.counters.items():
            if told_by.split("/")[-1] == node and values.get(name, "").isdigit():
                return int(values[name])
        return None


def load_run(folder: Path, image_topic: str) -> Run:
    """Read the files of a run.

    Args:
        folder: where player and profiler wrote.
        image_topic: the topic whose frames are the run's, as recorded.

    Raises:
        BagError: a file is missing or damaged, or no image was sent.
    """
    sent = [row for row in read_ledger(folder / PLAYER_LEDGER) if row.topic == image_topic]
    if not sent:
        raise BagError(f"no image was sent on {image_topic!r}", got=str(folder))
    try:
        rows = {int(row["stamp_ns"]): row for row in _read_lines(folder / PROFILER_LEDGER)}
        results = {int(row["stamp_ns"]): row for row in _read_lines(folder / DETECTIONS)}
        found = {stamp_ns: _to_boxes(row) for stamp_ns, row in results.items()}
        arrivals = {s: int(row["arrival_monotonic_ns"]) for s, row in results.items()}
        told = json.loads((folder / COUNTERS).read_text(encoding="utf-8"))
        counters = {**told["nodes"], "profiler": _as_text(told.get("profiler", {}))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BagError(
            f"the profiler's files in {str(folder)!r} cannot be read: {error!r}",
            mend="Run the profiler with its parameter output_dir.",
        ) from error
    frames = tuple(
        PlayedFrame(
            message,
            rows.get(message.stamp_ns),
            found.get(message.stamp_ns),
            arrivals.get(message.stamp_ns),
        )
        for message in sent
    )
    return Run(image_topic, frames, counters, tuple(message.late_ns for message in sent))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _as_text(values: Mapping[str, Any]) -> dict[str, str]:
    """Counters as diagnostics carry them."""
    return {name: json.dumps(value) for name, value in values.items()}


def _to_boxes(row: Mapping[str, Any]) -> LabelledBoxes:
    detections: Sequence[Mapping[str, Any]] = row["detections"]
    return LabelledBoxes(
        stamp_ns=int(row["stamp_ns"]),
        boxes_xyxy=np.array([d["xyxy"] for d in detections], np.float32).reshape(-1, 4),
        scores=np.array([d["score"] for d in detections], np.float32),
        class_names=tuple(str(d["class"]) for d in detections),
    )
