"""COCO data sets of the rendered world, drawn by a pool of processes and resumable.

A scene is the unit of work: its pictures and one small JSON under ``scenes/``, written last, so a
scene is done exactly when that file is there. ``instances.json`` is put together from them in the
order of the seeds: neither the number of workers nor an interruption changes a byte of it.
Category ids are class ids plus one, as COCO counts; ``iscrowd`` marks objects to be ignored.

Beside it lie ``questions.jsonl`` (image, type, question, answer; balanced, see ``questions``),
``captions.jsonl`` and ``masks/``: instance ids at a quarter of the picture's resolution.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_perception.errors import ConfigError
from edge_perception.world.captions import caption
from edge_perception.world.frames import Frame, render_frames
from edge_perception.world.questions import Question, balanced, questions_of
from edge_perception.world.scenes import another_view, make_scene
from edge_perception.world.sight import Sight, object_facts, way_is_free
from edge_perception.world.spec import (
    CLASS_NAMES,
    IMAGE_HEIGHT_PX,
    IMAGE_WIDTH_PX,
    WORLD_VERSION,
    SceneSpec,
    Split,
)

if TYPE_CHECKING:
    from edge_perception.world.renderer import Renderer

SEEDS_A_DATASET = 1_000_000
"""Data sets of different seeds share no scene: scene seeds start at seed times this."""

QUESTIONS_VERSION = 1
"""Raised whenever the same pictures would get other facts, questions or captions."""

MASK_STEP = 4
"""Masks hold every fourth pixel of every fourth row, from the middle of each such square."""

_FRAMES_A_QUESTION = 2
"""Of each kind there is one question for so many frames, if as many can be balanced."""

_MOST_FRAMES_ASKED = 4000
"""Questions are written about so many frames, the first ones; they are for exams."""


@dataclass(frozen=True)
class DatasetPlan:
    """What a data set holds; the same plan always gives the same scenes.

    ``frames`` in all, ``views_per_scene`` of them of each scene, every one under its own light.
    """

    split: Split
    frames: int
    seed: int
    views_per_scene: int = 8

    def __post_init__(self) -> None:
        for name in ("frames", "views_per_scene"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} too small", expected="1 or more", got=getattr(self, name)
                )
        if self.seed < 0:
            raise ConfigError("A negative seed", expected="0 or more", got=self.seed)

    def scenes(self) -> list[tuple[int, int]]:
        """(scene seed, number of views) of every scene."""
        full, rest = divmod(self.frames, self.views_per_scene)
        counts = [self.views_per_scene] * full + ([rest] if rest else [])
        return [(self.seed * SEEDS_A_DATASET + i, count) for i, count in enumerate(counts)]

    def describe(self) -> dict[str, Any]:
        """The plan as JSON, with the version of the world it is drawn from."""
        versions = {"world_version": WORLD_VERSION, "questions_version": QUESTIONS_VERSION}
        return {**asdict(self), "split": self.split.value, **versions}


def write_dataset(plan: DatasetPlan, folder: Path, *, workers: int = 1) -> Iterator[int]:
    """Render what is missing of ``plan`` into ``folder``; yields the frames of each scene done.

    Raises ``ConfigError`` where the folder holds another plan's data.
    """
    for part in ("images", "masks", "scenes"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _claim(plan, folder)
    missing = []
    for seed, views in plan.scenes():
        if _scene_file(folder, seed).exists():
            yield views
        else:
            missing.append((folder, plan.split, seed, views))
    if workers > 1:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            for job in as_completed([pool.submit(_write_scene, *scene) for scene in missing]):
                yield job.result()
    else:
        for scene in missing:
            yield _write_scene(*scene)
    _assemble(plan, folder)


def _claim(plan: DatasetPlan, folder: Path) -> None:
    """Note the plan in the folder, or check that it is the one already there."""
    note = folder / "plan.json"
    if not note.exists():
        _write_json(note, plan.describe())
    elif (found := json.loads(note.read_text())) != plan.describe():
        raise ConfigError(
            f"{folder} holds another data set",
            expected=f"{plan.describe()}",
            got=found,
            mend="Choose another folder or delete this one.",
        )


def _scene_file(folder: Path, seed: int) -> Path:
    return folder / "scenes" / f"{seed:09d}.json"


@lru_cache(maxsize=1)
def _process_renderer() -> Renderer:
    from edge_perception.world.renderer import Renderer

    return Renderer()


def scene_views(scene: SceneSpec, count: int) -> Iterator[tuple[SceneSpec, float]]:
    """``count`` views of a scene, each with a moment on its path."""
    moments = np.random.default_rng([scene.seed, 99]).uniform(0, scene.path.duration_s, count)
    for index, moment in enumerate(moments):
        yield another_view(scene, index), float(moment)


def _write_scene(folder: Path, split: Split, seed: int, views: int) -> int:
    """Render one scene's pictures and note their annotations; gives the number of frames."""
    scene = make_scene(seed, split)
    images = []
    for index, (view, moment) in enumerate(scene_views(scene, views)):
        frame = next(render_frames(_process_renderer(), view, [moment]))
        name = f"{seed:09d}_{index:02d}.jpg"
        jpeg = encode_jpeg(frame, view.sensor.jpeg_quality)
        (folder / "images" / name).write_bytes(jpeg)
        (folder / "masks" / name).with_suffix(".png").write_bytes(_encode_mask(frame))
        images.append(_image_record(name, view, frame, hashlib.sha256(jpeg).hexdigest()))
    _write_json(_scene_file(folder, seed), images)
    return views


def encode_jpeg(frame: Frame, quality: int) -> bytes:
    """The frame's picture as JPEG bytes of ``quality`` 1..100."""
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR), options)[1])


def _encode_mask(frame: Frame) -> bytes:
    """The instance ids of a quarter of the rows and columns as PNG bytes."""
    import cv2

    middle = MASK_STEP // 2
    return bytes(cv2.imencode(".png", frame.mask[middle::MASK_STEP, middle::MASK_STEP])[1])


def _image_record(name: str, view: SceneSpec, frame: Frame, sha256: str) -> dict[str, Any]:
    facts = object_facts(frame, view)
    annotations = [
        {
            "category_id": int(frame.class_ids[i]) + 1,
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "area": int(frame.visible_pixels[i]),
            "iscrowd": int(frame.ignored[i]),
            "occlusion": round(float(frame.occlusion[i]), 4),
            "instance_id": int(frame.instance_ids[i]),
            **facts[i],
        }
        for i, (x1, y1, x2, y2) in enumerate(frame.boxes_xyxy)
    ]
    return {
        "file_name": name,
        "width": IMAGE_WIDTH_PX,
        "height": IMAGE_HEIGHT_PX,
        "scene_id": view.seed,
        "layout": view.layout,
        "rig": view.lighting.rig,
        "way_free": way_is_free(frame, view),
        "sha256": sha256,
        "annotations": annotations,
    }


def _assemble(plan: DatasetPlan, folder: Path) -> None:
    """Write ``instances.json`` and the texts from the scenes' files, then ``manifest.json``."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for seed, _ in plan.scenes():
        for record in json.loads(_scene_file(folder, seed).read_text()):
            image_id = len(images) + 1
            for annotation in record.pop("annotations"):
                number = len(annotations) + 1
                annotations.append({"id": number, "image_id": image_id, **annotation})
            images.append({"id": image_id, **record})
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASS_NAMES)]
    info = {"description": "edge_perception rendered world", **plan.describe()}
    document = {
        "info": info,
        "categories": categories,
        "images": images,
        "annotations": annotations,
    }
    _write_json(folder / "instances.json", document)
    digest = hashlib.sha256((folder / "instances.json").read_bytes()).hexdigest()
    pictures = hashlib.sha256("".join(image["sha256"] for image in images).encode()).hexdigest()
    _write_texts(plan, folder, sights_of(document))
    _write_json(folder / "manifest.json", {**info, "instances": digest, "pictures": pictures})


def sights_of(document: Mapping[str, Any]) -> dict[str, Sight]:
    """The facts of every image of a parsed ``instances.json``, by file name, in its order."""
    found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        found[annotation["image_id"]].append(annotation)
    return {
        image["file_name"]: Sight.from_coco(image, found[image["id"]])
        for image in document["images"]
    }


def _write_texts(plan: DatasetPlan, folder: Path, sights: Mapping[str, Sight]) -> None:
    """Write balanced questions, and a caption an image, as JSON lines."""
    rng = np.random.default_rng([plan.seed, 77])
    candidates: list[tuple[str, Question]] = [
        (name, question)
        for name, sight in islice(sights.items(), _MOST_FRAMES_ASKED)
        for question in questions_of(sight, rng)
    ]
    per_kind = -(-min(plan.frames, _MOST_FRAMES_ASKED) // _FRAMES_A_QUESTION)
    chosen = balanced(candidates, lambda item: item[1], rng, per_kind)
    _write_lines(
        folder / "questions.jsonl",
        [
            {"image": name, "type": asked.kind, "question": asked.prompt, "answer": asked.answer}
            for name, asked in chosen
        ],
    )
    captions = [{"image": name, "caption": caption(sight)} for name, sight in sights.items()]
    _write_lines(folder / "captions.jsonl", captions)


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    _write(path, "".join(f"{json.dumps(record)}\n" for record in records))


def _write_json(path: Path, document: object) -> None:
    _write(path, json.dumps(document))


def _write(path: Path, text: str) -> None:
    """Write whole or not at all."""
    draft = path.with_suffix(".part")
    draft.write_text(text)
    os.replace(draft, path)
