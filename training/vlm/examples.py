"""A rendered data set as tensors on the training device: pictures, masks, objects, turns.

Every picture comes with the turns of its own facts and of the mirrored ones, so that a flip is a
matter of an index. Pictures are decoded and resized once, as the runtime resizes them.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edge_perception.world.dataset import sights_of
from edge_perception.world.spec import CLASS_NAMES, IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from training.vlm.model import COLOUR_NAMES
from training.vlm.texts import Texts, text_arrays

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from edge_perception.world.sight import Sight

MOVED = ("place", "locate", "way")
"""Kinds whose answers may change when the picture is shrunk and shifted."""

MAX_OBJECTS = 48


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


def load_examples(
    folder: Path, tokenizer: Tokenizer, side: int, *, seed: int = 0, workers: int = 16
) -> Examples:
    """Load a data set that ``edge-perception world dataset`` wrote, into main memory."""
    sights = sights_in(folder)
    texts = text_arrays(list(sights.values()), tokenizer, seed, workers)
    document = json.loads((folder / "instances.json").read_text())
    rows = _object_rows(document)
    images, masks = _load_pictures(folder, list(sights), rows, side, workers)
    return Examples(
        images=images,
        masks=masks,
        objects=object_table(list(sights.values())),
        **text_tensors(texts),
    )


def text_tensors(texts: Texts) -> dict[str, Tensor]:
    """The fields of ``Examples`` that hold texts."""
    return {
        name: torch.from_numpy(values).unflatten(0, (-1, 2)) for name, values in vars(texts).items()
    }


def object_table(sights: list[Sight]) -> Tensor:
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
