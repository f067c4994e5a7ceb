"""Deadlines kept, and what the vision cache brings, of a model on this machine.

    python -m benchmarks.vlm.in_time [--model MANIFEST] --out docs/benchmarks/vlm_in_time.json

Questions are those that the bag's own boxes can judge. *Deadlines*: prompts on frames all over the
bag, each with a deadline between 50 ms and 2 s (log-uniform); an answer is in time if it was made
before its deadline, and what being in time costs in right answers is told by deadline. *Cache*: the
same questions with and without it, on one frame with fresh sensor noise each time, and on the bag.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edge_perception.core.answers import Answer, Request
from edge_perception.core.image import UInt8Array
from edge_perception.core.latency import LatencySummary
from edge_perception.core.machine import describe_code, describe_machine, describe_state, utc_now
from edge_perception.embedded import carried_file, demo_vlm_manifest
from edge_perception.replay import messages
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.replay.pictures import decode_picture
from edge_perception.replay.questions import BagQuestion, bag_questions, judge
from edge_perception.replay.report import read_recording
from edge_perception.replay.sources import open_source
from edge_perception.vlm.answerer import Answerer, AnswerSettings
from edge_perception.vlm.inbox import Asked
from edge_perception.vlm.model_choice import ModelChoice
from edge_perception.vlm.models import open_model
from edge_perception.vlm.vision_cache import Picture, VisionCache

PROMPTS = 500
SHORTEST_MS, LONGEST_MS = 50.0, 2000.0
EDGES_MS = (50, 100, 200, 400, 800, 2000)
NOISE = 6.0
_CACHE_THRESHOLD = 8.0  # the node's default
_ASKED = 60
_EVERY = 5


@dataclass(frozen=True)
class Shown:
    """A frame of the bag and where its objects are."""

    stamp_ns: int
    pixels_rgb: UInt8Array
    boxes: LabelledBoxes

    def picture(self, pixels_rgb: UInt8Array | None = None) -> Picture:
        """The frame as if it had come just now."""
        shown = self.pixels_rgb if pixels_rgb is None else pixels_rgb
        return Picture(shown, self.stamp_ns, "camera", time.monotonic_ns())


def read_frames(bag: str) -> list[Shown]:
    """Every fifth frame of a bag that has truth."""
    recording = read_recording(bag)
    return list(_frames(bag, recording.image_topic, recording.truths))[::_EVERY]


def _frames(bag: str, topic: str, truths: Any) -> Iterator[Shown]:
    with open_source(bag) as source:
        for message in source.messages():
            stamp_ns = messages.read_stamp_ns(message.cdr) if message.topic == topic else 0
            if stamp_ns in truths:
                pixels = decode_picture(message)
                if pixels is not None:
                    rgb = np.ascontiguousarray(pixels[:, :, ::-1])
                    yield Shown(stamp_ns, rgb, truths[stamp_ns])


class Exam:
    """Asks a model questions about frames, and judges what it says."""

    def __init__(self, model: Any, frames: Sequence[Shown], *, judges: bool) -> None:
        self._model = model
        self._judges = judges
        self._frames = frames
        self._questions = bag_questions(frame.boxes for frame in frames)
        self._truths = {frame.stamp_ns: frame.boxes for frame in frames}

    def answerer(self, threshold: float) -> Answerer:
        """A fresh one, measured and warm."""
        made = Answerer(self._model, VisionCache(threshold), AnswerSettings(max_tokens=32))
        made.warm_up()
        return made

    def question(self, number: int) -> BagQuestion:
        """The questions in turn."""
        return self._questions[number % len(self._questions)]

    def rights(self, answers: Sequence[Answer]) -> list[bool | None]:
        """Whether each answer is right; None where there is no truth to insist on."""
        if not self._judges:
            return [None] * len(answers)
        return [each.right for each in judge(answers, self._questions, self._truths)]

    def measure_deadlines(self, prompts: int) -> dict[str, Any]:
        """Answers in time and right, over all and by deadline."""
        rng, answerer = np.random.default_rng(0), self.answerer(_CACHE_THRESHOLD)
        low, high = np.log(SHORTEST_MS), np.log(LONGEST_MS)
        deadlines = np.exp(rng.uniform(low, high, prompts)).tolist()
        answers = []
        for number, deadline_ms in enumerate(deadlines):
            frame = self._frames[int(rng.integers(len(self._frames)))]
            told = {**self.question(number).request(number), "deadline_ms": deadline_ms}
            told["choices"] = tuple(told.get("choices", ()))
            answers.append(answerer.answer(Asked(Request(**told)), frame.picture()))
        rows = list(zip(deadlines, answers, self.rights(answers)))
        return {
            **_in_time(rows),
            "prompts": prompts,
            "image_sides_px": list(self._model.image_sides_px),
            "by_deadline_ms": {
                f"{low}-{high}": _in_time([row for row in rows if low <= row[0] < high])
                for low, high in pairwise(EDGES_MS)
            },
        }

    def measure_cache(self, scene: str, asked: int) -> dict[str, Any]:
        """Hit rate, TTFT with and without, and how often both say the same."""
        cached, plain = self.answerer(_CACHE_THRESHOLD), self.answerer(0.0)
        cached.cache.hits = cached.cache.misses = 0
        pairs = [
            tuple(one.answer(Asked(self._request(number)), picture) for one in (cached, plain))
            for number, picture in enumerate(self._pictures(scene, asked))
        ]
        hits, misses = cached.cache.hits, cached.cache.misses
        return {
            "asked": len(pairs),
            "hit_rate": round(hits / max(1, hits + misses), 4),
            "ttft_ms_with": _summary([one.ttft_ms for one, _ in pairs]),
            "ttft_ms_without": _summary([other.ttft_ms for _, other in pairs]),
            "agreement": round(float(np.mean([a.text == b.text for a, b in pairs])), 4),
        }

    def _request(self, number: int) -> Request:
        told = self.question(number).request(number)
        return Request(**{**told, "choices": tuple(told.get("choices", ()))})

    def _pictures(self, scene: str, count: int) -> Iterator[Picture]:
        rng = np.random.default_rng(1)
        for number in range(count):
            if scene == "moving":
                yield self._frames[number % len(self._frames)].picture()
            else:
                still = self._frames[0]
                noisy = still.pixels_rgb + rng.normal(0, NOISE, still.pixels_rgb.shape)
                yield still.picture(np.clip(noisy, 0, 255).astype(np.uint8))


def _in_time(rows: Sequence[tuple[float, Answer, bool | None]]) -> dict[str, Any]:
    judged = [right for _, _, right in rows if right is not None]
    sides = Counter(answer.image_side_px for _, answer, _ in rows)
    return {
        "n": len(rows),
        "in_time": _share([(answer.total_ms or 0) <= limit for limit, answer, _ in rows]),
        "answered": _share([bool(answer.text) for _, answer, _ in rows]),
        "right": _share(judged),
        "finish_reasons": dict(Counter(answer.finish_reason for _, answer, _ in rows)),
        "image_side_px": {str(side): count for side, count in sides.items()},
    }


def _share(values: Sequence[bool]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _summary(values_ms: Sequence[float | None]) -> dict[str, Any]:
    summary = LatencySummary.of_ns([round(ms * 1e6) for ms in values_ms if ms is not None])
    return {name: getattr(summary, name) for name in ("n", "p50", "p90")}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="default: the embedded one")
    parser.add_argument("--bag", help="default: the demo bag")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--asked", type=int, default=_ASKED, help="questions a scene of the cache")
    parser.add_argument(
        "--untrained", action="store_true", help="random weights: nothing is said of right answers"
    )
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    path = arguments.model or demo_vlm_manifest()
    model = open_model(ModelChoice(path, threads=arguments.threads))
    frames = read_frames(arguments.bag or str(carried_file("demo/demo.mcap")))
    exam = Exam(model, frames, judges=not arguments.untrained)
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "date": utc_now(),
        "code": describe_code(),
        "model": model.name,
        "backend": model.backend,
        "threads": arguments.threads,
        "weights": "random" if arguments.untrained else "trained",
        "load_1min": describe_state()["load_1min"],
    }
    for scene in ("still, noisy", "moving"):
        result.setdefault("cache", {})[scene] = exam.measure_cache(scene, arguments.asked)
        print(scene, json.dumps(result["cache"][scene]), flush=True)
    result["deadlines"] = exam.measure_deadlines(arguments.prompts)
    print(json.dumps(result["deadlines"], indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    model.close()


if __name__ == "__main__":
    main()
