"""What the VLM node said during a run: captions and answers, joined with frames and truth."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_perception.core.answers import Answer
from edge_perception.core.latency import LatencySummary
from edge_perception.errors import BagError, RequestError
from edge_perception.replay import run_files
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.replay.questions import Judged, accuracy_of, bag_questions, judge
from edge_perception.replay.run_files import PlayedFrame, Run

_MS = 1_000_000


@dataclass(frozen=True)
class Conversation:
    """Captions and judged answers of a run, in the order told.

    ``frames`` are the run's by their stamp on the wire, which is what answers carry.
    """

    captions: tuple[Answer, ...]
    judged: tuple[Judged, ...]
    others: tuple[Answer, ...]
    frames: Mapping[int, PlayedFrame]

    @property
    def answers(self) -> list[Answer]:
        """Every answer to a prompt."""
        return [each.answer for each in self.judged] + list(self.others)


def load_conversation(
    folder: Path, run: Run, truths: Mapping[int, LabelledBoxes]
) -> Conversation | None:
    """Read what the asker wrote; None where nobody asked.

    ``truths`` by recorded stamp in ns. Raises ``BagError`` for a file that is damaged.
    """
    path = folder / run_files.CONVERSATION
    if not path.exists():
        return None
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        told = [(line["kind"], Answer.from_json(line["message"])) for line in lines]
    except (OSError, ValueError, KeyError, TypeError, RequestError) as error:
        raise BagError(f"{str(path)!r} cannot be read: {error!r}") from error
    frames = {frame.sent.stamp_ns: frame for frame in run.frames}
    on_wire = {
        stamp_ns: truths[frame.sent.recorded_stamp_ns]
        for stamp_ns, frame in frames.items()
        if frame.sent.recorded_stamp_ns in truths
    }
    answers = [answer for kind, answer in told if kind == "answer"]
    judged = judge(answers, bag_questions(truths.values()), on_wire)
    known = {id(each.answer) for each in judged}
    return Conversation(
        captions=tuple(answer for kind, answer in told if kind == "caption"),
        judged=tuple(judged),
        others=tuple(answer for answer in answers if id(answer) not in known),
        frames=frames,
    )


def conversation_report(talk: Conversation, run: Run) -> dict[str, Any]:
    """The section ``vlm`` of report.json; docs/report_schema.md describes its keys."""
    answers = talk.answers
    every = [*answers, *talk.captions]
    speeds = sorted(a.tokens_per_s for a in every if a.tokens_per_s)
    return {
        "model": next((answer.model for answer in every if answer.model), None),
        "captions": len(talk.captions),
        "answers": len(answers),
        "finish_reasons": dict(sorted(Counter(a.finish_reason for a in answers).items())),
        "accuracy": accuracy_of(talk.judged),
        "ttft_ms": _summary([a.ttft_ms for a in every]),
        "total_ms": _summary([a.total_ms for a in every]),
        "stale_ms": _summary([a.stale_ms for a in every]),
        "tokens_per_s": speeds[len(speeds) // 2] if speeds else None,
        "cache_hit_rate": _told(run, "vlm", "cache_hit_rate"),
        "detector_ms": {
            kind: {
                name: _told(run, "profiler", f"end_to_end_{kind}.{name}")
                for name in ("n", "p50", "p90", "p99")
            }
            for kind in ("with_vlm", "without_vlm")
        },
    }


def _summary(values_ms: Sequence[float | None]) -> dict[str, Any]:
    summary = LatencySummary.of_ns([round(value * _MS) for value in values_ms if value is not None])
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in asdict(summary).items()
    }


def _told(run: Run, node: str, name: str) -> float | None:
    """A figure that a node told last; None if it never did."""
    for told_by, values in run.counters.items():
        if told_by.split("/")[-1] == node and values.get(name) not in (None, "null", ""):
            return float(values[name])
    return None


def highlights(talk: Conversation, most: int) -> list[tuple[PlayedFrame, list[str]]]:
    """Frames worth showing, spread over the run, with what was said of each as lines.

    Frames about which most was said come first within their part of the run.
    """
    said: dict[int, list[str]] = {}
    for caption in talk.captions:
        said.setdefault(caption.stamp_ns, []).append(caption.text)
    for each in talk.judged:
        mark = {True: " (right)", False: f" (wrong: {each.truth})", None: ""}[each.right]
        line = f"{each.answer.prompt} {each.answer.text}{mark}"
        said.setdefault(each.answer.stamp_ns, []).append(line)
    stamps = sorted(stamp for stamp in said if stamp in talk.frames)
    size = max(1, len(stamps) / most)
    parts = [stamps[round(k * size) : round((k + 1) * size)] for k in range(most)]
    best = [max(part, key=lambda stamp: len(said[stamp])) for part in parts if part]
    return [(talk.frames[stamp], said[stamp]) for stamp in best]
