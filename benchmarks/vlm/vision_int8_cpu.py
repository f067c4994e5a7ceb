"""The embedded model's vision tower in float32 and with 8-bit inputs: answers, right ones, time.

    python -m benchmarks.vlm.vision_int8_cpu --out docs/benchmarks/vision_int8_cpu.json

Both see the same frames of the demo bag and are asked the same questions, in turns, so that other
work on the machine slows both alike. With ``--data`` (an exam as ``accuracy.py`` takes it) both sit
that too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.vlm.accuracy import interval, measure_onnx
from benchmarks.vlm.in_time import Exam, Shown, read_frames
from edge_perception.core.answers import Answer, Request
from edge_perception.core.machine import describe_code, describe_machine, describe_state, utc_now
from edge_perception.embedded import carried_file, demo_vlm_manifest
from edge_perception.vlm.answerer import Answerer, AnswerSettings
from edge_perception.vlm.inbox import Asked
from edge_perception.vlm.model_choice import ModelChoice
from edge_perception.vlm.models import open_model
from edge_perception.vlm.vision_cache import VisionCache
from training.vlm.exam import read_questions
from training.vlm.model import ModelSize

KINDS = {"float32": False, "int8": True}


def ask(answerer: Answerer, exam: Exam, frames: list[Shown], number: int) -> Answer:
    """The answer to the ``number``-th question, on a frame of its own."""
    told = exam.question(number).request(number)
    request = Request(**{**told, "choices": tuple(told.get("choices", ()))})
    return answerer.answer(Asked(request), frames[number % len(frames)].picture())


def encoding_ms(answerer: Answerer, frame: Shown) -> float:
    """What one encoding at the largest resolution takes."""
    start_s = time.perf_counter()
    answerer.model.encode_image(frame.pixels_rgb, answerer.sides_px[-1])
    return (time.perf_counter() - start_s) * 1e3


def sit_exam(data: Path) -> dict[str, Any]:
    """Shares of exactly right answers about held-out scenes."""
    questions, folder = read_questions(data), demo_vlm_manifest().parent
    right = {
        kind: measure_onnx(folder, questions, data, ModelSize().image_px, vision_int8=int8)
        for kind, int8 in KINDS.items()
    }
    shares = {kind: round(float(found.mean()), 4) for kind, found in right.items()}
    scenes = [asked.image.split("_")[0] for asked in questions]
    lost = interval(right["float32"] - right["int8"], scenes)
    return {"questions": len(questions), "right": shares, "interval_95_lost": lost}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--asked", type=int, default=300)
    parser.add_argument("--data", type=Path, help="a rendered exam")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    frames = read_frames(str(carried_file("demo/demo.mcap")))
    answerers = {}
    for kind, int8 in KINDS.items():
        choice = ModelChoice(demo_vlm_manifest(), threads=arguments.threads, vision_int8=int8)
        settings = AnswerSettings(max_tokens=32)
        answerers[kind] = Answerer(open_model(choice), VisionCache(0.0), settings)
    exam = Exam(answerers["float32"].model, frames, judges=True)
    answers: dict[str, list[Answer]] = {kind: [] for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(arguments.asked):
        for kind, answerer in answerers.items():
            answers[kind].append(ask(answerer, exam, frames, number))
            if number % 5 == 0:
                times[kind].append(encoding_ms(answerer, frames[number % len(frames)]))
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "date": utc_now(),
        "code": describe_code(),
        "load_1min": describe_state()["load_1min"],
        "model": answerers["float32"].model.name,
        "threads": arguments.threads,
        "asked": arguments.asked,
        "encode_ms_p50": {kind: round(float(np.median(times[kind])), 1) for kind in KINDS},
        "right": {kind: _share(exam.rights(answers[kind])) for kind in KINDS},
        "judged": sum(right is not None for right in exam.rights(answers["int8"])),
        "agreement": _share([a.text == b.text for a, b in zip(*answers.values(), strict=True)]),
    }
    if arguments.data is not None:
        result["exam"] = sit_exam(arguments.data)
    print(json.dumps(result, indent=1))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def _share(values: list[bool | None]) -> float:
    judged = [value for value in values if value is not None]
    return round(sum(judged) / len(judged), 4)


if __name__ == "__main__":
    main()
