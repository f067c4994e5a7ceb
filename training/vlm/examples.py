"""A rendered data set as tensors on the training device: pictures, masks, objects, turns.

Every picture comes with the turns of its own facts and of the mirrored ones, so that a flip is a
matter of an index. Pictures are decoded and resized once, as the runtime resizes them. Text is made
by a pool of processes, for 50,000 pictures have some three million turns.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edge_perception.world.captions import CAPTION_PROMPTS, caption, locations
from edge_perception.world.dataset import sights_of
from edge_perception.world.questions import KINDS, answer_limits, questions_of
from edge_perception.world.spec import CLASS_NAMES, IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from training.vlm.model import COLOUR_NAMES
from training.vlm.tokens import PAD_ID, encode_turns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from edge_perception.world.sight import Sight

TURN_KINDS = (*KINDS, "locate")
"""Kinds of short turns; a turn's kind is its place here."""

MOVED = ("place", "locate", "way")
"""Kinds whose answers may change when the picture is shrunk and shifted."""

TURN_TOKENS = 24
CAPTION_TOKENS = 64
MAX_OBJECTS = 48
_TURNS = 32
_CAPTIONS = 2
_CHUNK = 256

Key = tuple[str, str, str]
Turns = list[tuple[str, str, Key]]
"""Prompt, answer, and (kind, subject, answer) of each turn."""


@dataclass(frozen=True)
class Examples:
    """N pictures and what is known of them; axis V is the picture as it is, and mirrored.

    ``images`` uint8 (N, side, side, 3) RGB; ``masks`` uint8 (N, 120, 160), 1 + the object's row, 0
    for none; ``objects`` float32 (N, 48, 5): class, colour (-1: none), middle x and y in -1..1, log
    metres; ``turns`` int16 (N, V, 32, 24) padded; ``kinds`` int8, ``weights`` float32 (N, V, 32);
    ``captions`` int16 (N, V, 2, 64).
    """

    images: Tensor
    masks: Tensor
    objects: Tensor
    turns: Tensor
    kinds: Tensor
    weights: Tensor
    captions: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Examples:
        """The same on another device."""
        return Examples(*[getattr(self, field.name).to(device) for field in fields(self)])


def sights_in(folder: Path) -> dict[str, Sight]:
    """The facts of a data set's pictures by file name."""
    return sights_of(json.loads((folder / "instances.json").read_text()))


def texts_of(sights: Sequence[Sight], seed: int) -> tuple[list[Turns], list[list[tuple[str, str]]]]:
    """Turns and captions of each sight; the same seed gives the same."""
    rng = np.random.default_rng([seed, 5])
    turns, captions = [], []
    for sight in sights:
        asked: Turns = [
            (q.prompt, q.answer, (q.kind, q.subject, q.answer)) for q in questions_of(sight, rng)
        ]
        asked += [(p, a, ("locate", "", "")) for p, a in locations(sight, rng)]
        turns.append(asked[:_TURNS])
        told = caption(sight)
        chosen = rng.permutation(len(CAPTION_PROMPTS))[:_CAPTIONS]
        captions.append([(CAPTION_PROMPTS[int(index)], told) for index in chosen])
    return turns, captions


def load_examples(
    folder: Path, tokenizer: Tokenizer, side: int, *, seed: int = 0, workers: int = 16
) -> Examples:
    """Load a data set that ``edge-perception world dataset`` wrote, into main memory."""
    sights = sights_in(folder)
    turns, kinds, weights, captions = _text_tensors(list(sights.values()), tokenizer, seed, workers)
    document = json.loads((folder / "instances.json").read_text())
    rows = _object_rows(document)
    images, masks = _load_pictures(folder, list(sights), rows, side, workers)
    return Examples(
        images=images,
        masks=masks,
        objects=_object_table(list(sights.values())),
        turns=turns,
        kinds=kinds,
        weights=weights,
        captions=captions,
    )


def _text_tensors(
    sights: list[Sight], tokenizer: Tokenizer, seed: int, workers: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tensors of turns, kinds, weights and captions; see ``Examples``."""
    both = list(chain.from_iterable((sight, sight.mirrored()) for sight in sights))
    chunks = [both[at : at + _CHUNK] for at in range(0, len(both), _CHUNK)]
    seeds = range(seed * len(chunks), (seed + 1) * len(chunks))
    if workers > 1 and len(chunks) > workers:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            made = list(pool.map(texts_of, chunks, seeds))
    else:
        made = list(map(texts_of, chunks, seeds))
    turns = list(chain.from_iterable(part[0] for part in made))
    captions = list(chain.from_iterable(part[1] for part in made))
    keys = [[key for _, _, key in asked] for asked in turns]
    pairs = [[(prompt, answer) for prompt, answer, _ in asked] for asked in turns]
    views = (len(sights), 2)
    return (
        _padded(tokenizer, pairs, _TURNS, TURN_TOKENS).view(*views, _TURNS, TURN_TOKENS),
        _filled([[TURN_KINDS.index(k[0]) for k in row] for row in keys], -1)
        .to(torch.int8)
        .view(*views, _TURNS),
        _filled(_weights(keys), 0.0).view(*views, _TURNS),
        _padded(tokenizer, captions, _CAPTIONS, CAPTION_TOKENS).view(
            *views, _CAPTIONS, CAPTION_TOKENS
        ),
    )


def _padded(
    tokenizer: Tokenizer, rows: list[list[tuple[str, str]]], slots: int, length: int
) -> Tensor:
    """Token ids int16 (rows, slots, length); a turn too long for its slot is left out."""
    table = np.full((len(rows), slots, length), PAD_ID, np.int16)
    flat = encode_turns(tokenizer, list(chain.from_iterable(rows)))
    places = ((row, slot) for row, pairs in enumerate(rows) for slot in range(len(pairs)))
    for (row, slot), ids in zip(places, flat, strict=True):
        if len(ids) <= length:
            table[row, slot, : len(ids)] = ids
    return torch.from_numpy(table)


def _filled(rows: list[list[Any]], empty: float) -> Tensor:
    table = np.full((len(rows), _TURNS), empty, np.float32)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(table)


def _weights(keys: list[list[Key]]) -> list[list[float]]:
    """How often each turn is to be drawn: answers balanced within a subject, kinds alike."""
    counts = Counter(chain.from_iterable(keys))
    limits = answer_limits(counts)
    limits["locate", ""] = counts["locate", "", ""]
    share = {key: min(1.0, limits[key[:2]] / count) for key, count in counts.items()}
    mass: Counter[str] = Counter()
    for key, count in counts.items():
        mass[key[0]] += share[key] * count  # type: ignore[assignment]
    return [[1e3 * share[key] / max(mass[key[0]], 1e-9) for key in row] for row in keys]


def _object_table(sights: list[Sight]) -> Tensor:
    """Class, colour, middle and log distance of each picture's objects, (N, 48, 5)."""
    table = np.zeros((len(sights), MAX_OBJECTS, 5), np.float32)
    for row, sight in zip(table, sights, strict=True):
        for place, thing in zip(row, sight.objects, strict=False):
            x1, y1, x2, y2 = thing.box_xyxy
            place[:] = (
                CLASS_NAMES.index(thing.class_name),
                COLOUR_NAMES.index(thing.colour) if thing.colour else -1,
                (x1 + x2) / IMAGE_WIDTH_PX - 1,
                (y1 + y2) / IMAGE_HEIGHT_PX - 1,
                np.log(thing.distance_m),
            )
    return torch.from_numpy(table)


def _object_rows(document: dict[str, Any]) -> list[NDArray[np.uint8]]:
    """For each picture a table from instance id to 1 + the object's row, 0 for none."""
    tables = {image["id"]: np.zeros(256, np.uint8) for image in document["images"]}
    filled: Counter[int] = Counter()
    for annotation in document["annotations"]:
        image = annotation["image_id"]
        filled[image] += 1
        if filled[image] <= MAX_OBJECTS:
            tables[image][annotation["instance_id"]] = filled[image]
    return list(tables.values())


def _load_pictures(
    folder: Path, names: list[str], rows: list[NDArray[np.uint8]], side: int, threads: int
) -> tuple[Tensor, Tensor]:
    """Pictures at ``side`` pixels and masks of object rows, decoded in a pool of threads."""

    def load(place: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        path = folder / "masks" / names[place]
        mask = cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_UNCHANGED)
        return read_square(folder / "images" / names[place], side), rows[place][mask]

    images = torch.empty((len(names), side, side, 3), dtype=torch.uint8)
    masks: list[NDArray[np.uint8]] = []
    with ThreadPoolExecutor(threads) as pool:
        for place, (image, mask) in enumerate(pool.map(load, range(len(names)))):
            images[place] = torch.from_numpy(image)
            masks.append(mask)
    return images, torch.from_numpy(np.stack(masks))


def read_square(path: Path, side: int) -> NDArray[np.uint8]:
    """A picture squeezed to a square of ``side``, RGB, by the filter of the model's processor."""
    with Image.open(path) as picture:
        resized = picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.array(resized)
