"""The whole kit: one command, one JSON with the machine, for a robot as for a desk."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edge_perception.benchmark import graph
from edge_perception.benchmark.graph import Load, Model, Tell
from edge_perception.core.machine import describe_code, describe_machine, describe_state, utc_now
from edge_perception.errors import BagError
from edge_perception.replay.bag_writer import BagWriter
from edge_perception.replay.messages import COMPRESSED_IMAGE
from edge_perception.replay.pictures import decode_picture
from edge_perception.replay.sources import open_source

SCHEMA = "edge_perception/graph-benchmark/1"
RAW_SIZES = {"480p": (480, 640), "1080p": (1080, 1920)}
_RAW_FRAMES = 60


@dataclass(frozen=True)
class Effort:
    """How long to measure; ``quick`` is for trying the kit, not for figures."""

    rounds: int
    seconds: float
    memory_frames: int
    memory_fps: float

    @classmethod
    def full(cls) -> Effort:
        """Return the effort behind published figures."""
        return cls(rounds=7, seconds=8.0, memory_frames=20_000, memory_fps=200.0)

    @classmethod
    def quick(cls) -> Effort:
        """Return about two minutes' worth."""
        return cls(rounds=1, seconds=6.0, memory_frames=1_000, memory_fps=100.0)


def run_graph(bag: Path, model: Model, effort: Effort, out: Path, tell: Tell) -> None:
    """Measure the graph and its baselines, and write the JSON, also after each part.

    Args:
        bag: recorded ``CompressedImage`` frames.
        model: what every system runs.
        effort: how much to measure.
        out: the JSON; replaced when the run begins.
        tell: gets a line of progress.
    """
    result: dict[str, object] = {
        "schema": SCHEMA,
        "date": utc_now(),
        **describe_code(),
        "machine": describe_machine(),
        "threads": model.threads,
        "manifest": model.manifest.name if model.manifest else "embedded demo model",
        "bag": bag.name,
        "state_before": describe_state(),
    }

    def keep(name: str, value: object) -> None:
        result[name] = value
        result["state_after"] = describe_state()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    capacity = _capacity_fps(bag, model, tell)
    keep("capacity_fps", capacity)
    fast = Load(bag, True, 2 * capacity, effort.seconds)
    slow = Load(bag, True, capacity / 2, effort.seconds)
    keep("overload", graph.overload(fast, model, effort.rounds, tell))
    underload = graph.underload(slow, model, effort.rounds, tell)
    keep("underload", {**underload, "non_inference_p50_ms": {}})
    with tempfile.TemporaryDirectory(prefix="edge_perception_bench_") as scratch:
        own = {}
        for name, size in RAW_SIZES.items():
            raw_bag = _write_raw_bag(bag, Path(scratch) / f"{name}.mcap", size)
            load = Load(raw_bag, False, min(30.0, capacity / 2), effort.seconds)
            run = graph.measure(graph.OURS, load, model, stages=True)
            keep(f"stages_raw_{name}", run.stages_p50_ms)
            own[name] = p50 = run.non_inference_ms.p50 if run.non_inference_ms else None
            taken = "an unknown time" if p50 is None else f"{p50:.2f} ms (p50)"
            tell(f"raw {name}: everything but inference takes {taken}")
    keep("underload", {**underload, "non_inference_p50_ms": own})
    keep("idle", graph.idle(slow, model))
    load = Load(bag, True, effort.memory_fps, 0.0)
    growth = graph.memory_growth(load, model, effort.memory_frames, tell)
    keep("memory", growth)
    keep("memory_growth_mb", growth["memory_growth_mb"])


def _capacity_fps(bag: Path, model: Model, tell: Tell) -> float:
    """Return the rate that the depth-1 baseline reaches with a camera it cannot follow.

    Measured twice: a flood itself takes time from the cores, and from the model with it.
    """
    flood_fps = 200.0
    for _ in range(2):
        capacity = graph.measure(graph.DEPTH_1, Load(bag, True, flood_fps, 6.0), model).fps
        tell(f"capacity: {capacity:.1f} fps with a camera at {flood_fps:.1f}")
        flood_fps = 2 * capacity
    return capacity


def _write_raw_bag(bag: Path, path: Path, size: tuple[int, int]) -> Path:
    """Decode a bag's first frames, resized to ``size`` (height, width), into raw bgr8 images."""
    frames = 0
    with BagWriter(path, compress=False) as writer, open_source(str(bag)) as source:
        for message in source.messages():
            if message.msgtype != COMPRESSED_IMAGE or frames == _RAW_FRAMES:
                continue
            picture = decode_picture(message)
            if picture is not None:
                pixels = np.asarray(cv2.resize(picture, size[::-1]), np.uint8)
                writer.write_raw_image(frames * 33_333_333 + 1, pixels, "bgr8")
                frames += 1
    if not frames:
        raise BagError("the bag holds no compressed images to decode", got=str(bag))
    return path
