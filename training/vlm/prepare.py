"""Turn a rendered data set into arrays that training maps into memory, once.

    python -m training.vlm.prepare DATA --out FOLDER [--image-px 320] [--workers 16]

A process of the pool takes scenes one by one, from their files, and writes its rows in place:
decoded pictures, masks, objects, and the turns and captions of each picture as it is and mirrored.
Training then begins within seconds, however busy the machine is, and begins again as fast. FOLDER
receives one ``.npy`` a field of ``Examples``, ``tokenizer.json``, and ``prepared.json`` at the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image
from tokenizers import Tokenizer

from edge_perception.world.materials import COLOURS
from edge_perception.world.sight import Sight
from edge_perception.world.spec import CLASS_NAMES, IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from training.vlm.texts import (
    CAPTION_TOKENS,
    CAPTIONS,
    TURN_KINDS,
    TURN_TOKENS,
    TURNS,
    Key,
    drawing_weights,
    filled,
    padded,
    texts_of,
)
from training.vlm.tokens import train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

MAX_OBJECTS = 48
COLOUR_NAMES = tuple(COLOURS)
_TOKENIZER_SCENES = 400
_SCENES_A_CHUNK = 16


def fields_of(side: int) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
    """Type and shape of one picture's row in each array; see ``examples.Examples``."""
    return {
        "images": (np.uint8, (side, side, 3)),
        "masks": (np.uint8, (IMAGE_HEIGHT_PX // 4, IMAGE_WIDTH_PX // 4)),
        "objects": (np.float32, (MAX_OBJECTS, 5)),
        "turns": (np.int16, (2, TURNS, TURN_TOKENS)),
        "kinds": (np.int8, (2, TURNS)),
        "weights": (np.float32, (2, TURNS)),
        "captions": (np.int16, (2, CAPTIONS, CAPTION_TOKENS)),
    }


@dataclass(frozen=True)
class _Chunk:
    """Scenes whose pictures are the rows from ``first`` on."""

    data: Path
    out: Path
    scenes: tuple[Path, ...]
    first: int


def prepare(data: Path, out: Path, side: int, workers: int) -> int:
    """Write the arrays of the data set at ``data`` into ``out``; returns the number of pictures."""
    out.mkdir(parents=True, exist_ok=True)
    scenes = sorted((data / "scenes").glob("*.json"))
    plan = json.loads((data / "plan.json").read_text())
    count, views = int(plan["frames"]), int(plan["views_per_scene"])
    create: Any = open_memmap
    for name, (kind, shape) in fields_of(side).items():
        create(out / f"{name}.npy", "w+", kind, (count, *shape))
    make_tokenizer(scenes[:_TOKENIZER_SCENES]).save(str(out / "tokenizer.json"))
    chunks = [
        _Chunk(data, out, tuple(scenes[at : at + _SCENES_A_CHUNK]), at * views)
        for at in range(0, len(scenes), _SCENES_A_CHUNK)
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        keys = list(chain.from_iterable(pool.map(_prepare_chunk, chunks)))
    kinds = filled([[TURN_KINDS.index(key[0]) for key in row] for row in keys], -1, np.int8)
    _array(out, "kinds")[:] = kinds.reshape(count, 2, TURNS)
    weights = filled(drawing_weights(keys), 0.0, np.float32)
    _array(out, "weights")[:] = weights.reshape(count, 2, TURNS)
    facts = {"images": count, "side_px": side, "data": plan}
    (out / "prepared.json").write_text(json.dumps(facts, indent=1))
    return count


def make_tokenizer(scenes: Sequence[Path]) -> Tokenizer:
    """A tokenizer of the texts about these scenes' pictures."""
    sights = [sight for path in scenes for _, sight in _pictures_of(path)]
    turns, _, captions = texts_of(sights, seed=0)
    pairs = chain.from_iterable((*turns, *captions))
    return train_tokenizer(list(chain.from_iterable(pairs)))


def _pictures_of(scene: Path) -> Iterator[tuple[Mapping[str, Any], Sight]]:
    """The records of a scene's file, each with its facts."""
    for record in json.loads(scene.read_text()):
        yield record, Sight.from_coco(record, record["annotations"])


def _array(out: Path, name: str) -> NDArray[Any]:
    array: NDArray[Any] = np.load(out / f"{name}.npy", mmap_mode="r+")
    return array


def _prepare_chunk(chunk: _Chunk) -> list[list[Key]]:
    """Fill a chunk's rows; returns the keys of its turns, two rows a picture."""
    cv2.setNumThreads(1)
    pictures = [found for scene in chunk.scenes for found in _pictures_of(scene)]
    rows = slice(chunk.first, chunk.first + len(pictures))
    images, masks = _array(chunk.out, "images")[rows], _array(chunk.out, "masks")[rows]
    for index, (record, _) in enumerate(pictures):
        name = record["file_name"]
        images[index] = read_square(chunk.data / "images" / name, images.shape[1])
        masks[index] = _object_rows(record, chunk.data / "masks" / name)
    sights = [sight for _, sight in pictures]
    _array(chunk.out, "objects")[rows] = object_table(sights)
    both = list(chain.from_iterable((sight, sight.mirrored()) for sight in sights))
    turns, keys, captions = texts_of(both, seed=chunk.first)
    tokenizer = Tokenizer.from_file(str(chunk.out / "tokenizer.json"))
    for name, texts in (("turns", turns), ("captions", captions)):
        array = _array(chunk.out, name)
        ids = padded(tokenizer, texts, *array.shape[2:])
        array[rows] = ids.reshape(len(sights), *array.shape[1:])
    return keys


def read_square(path: Path, side: int) -> NDArray[np.uint8]:
    """A picture squeezed to a square of ``side``, RGB, by the filter of the model's processor."""
    with Image.open(path) as picture:
        resized = picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.array(resized)


def _object_rows(record: Mapping[str, Any], path: Path) -> NDArray[np.uint8]:
    """A picture's mask with 1 + the object's row in place of its instance id, 0 for none."""
    table = np.zeros(256, np.uint8)
    for row, annotation in enumerate(record["annotations"][:MAX_OBJECTS]):
        table[annotation["instance_id"]] = row + 1
    mask = cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_UNCHANGED)
    return np.asarray(table[np.asarray(mask)], np.uint8)


def object_table(sights: Sequence[Sight]) -> NDArray[np.float32]:
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
    return table


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="prepare a rendered data set for training")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--image-px", type=int, default=320)
    parser.add_argument("--workers", type=int, default=16)
    options = parser.parse_args()
    count = prepare(options.data, options.out, options.image_px, options.workers)
    print(f"{count} pictures in {options.out}")


if __name__ == "__main__":
    main()
