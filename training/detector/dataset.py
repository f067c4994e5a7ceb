"""A COCO folder as tensors that live on the training device.

Thirty thousand frames of 640x480 are 27 GB as uint8: they fit into the memory of one large GPU.
Decoded once, they need no loader processes, no pinned queues and no per-step copies.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

IGNORE = -1
"""Class of a region that is neither object nor background (COCO's ``iscrowd``)."""

EMPTY = -2
"""Class of a slot that holds nothing."""

_CHUNK = 512


@dataclass(frozen=True)
class FrameStore:
    """Frames and padded targets on one device.

    ``images`` uint8 (F, H, W, 3) BGR; ``boxes`` float32 (F, S, 4) xyxy px; ``classes`` int64
    (F, S) with :data:`IGNORE` and :data:`EMPTY`; ``image_ids`` are COCO's.
    """

    images: Tensor
    boxes: Tensor
    classes: Tensor
    image_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[1], self.images.shape[2]


def load_frames(folders: Sequence[Path], device: torch.device, *, threads: int = 16) -> FrameStore:
    """Load ``instances.json`` and ``images/`` of the folders, one after the other, onto a device.

    Folders are shards of one set: they share their categories, and image ids count anew where
    there are several. Raises FileNotFoundError on a missing or unreadable image, ValueError on
    images that differ in size and on categories that differ.
    """
    truths = [json.loads((folder / "instances.json").read_text()) for folder in folders]
    categories = truths[0]["categories"]
    if any(truth["categories"] != categories for truth in truths):
        raise ValueError("all shards must have the same categories")
    categories = sorted(categories, key=lambda category: int(category["id"]))
    paths: list[Path] = []
    ids: list[int] = []
    rows: list[list[tuple[list[float], int]]] = []
    for folder, truth in zip(folders, truths, strict=True):
        labels = _labels_by_image(truth, categories)
        for record in sorted(truth["images"], key=lambda image: int(image["id"])):
            paths.append(folder / "images" / Path(record["file_name"]).name)
            ids.append(int(record["id"]) if len(folders) == 1 else len(ids))
            rows.append(labels[int(record["id"])])
    boxes, classes = _pad(rows)
    return FrameStore(
        images=_load_images(paths, device, threads),
        boxes=boxes.to(device),
        classes=classes.to(device),
        image_ids=tuple(ids),
        class_names=tuple(str(category["name"]) for category in categories),
        category_ids=tuple(int(category["id"]) for category in categories),
    )


def _labels_by_image(
    truth: dict[str, Any], categories: list[dict[str, Any]]
) -> dict[int, list[tuple[list[float], int]]]:
    """Boxes (xyxy) and classes of every image of one COCO file."""
    index = {int(category["id"]): i for i, category in enumerate(categories)}
    rows: dict[int, list[tuple[list[float], int]]] = {int(i["id"]): [] for i in truth["images"]}
    for annotation in truth["annotations"]:
        crowd = bool(annotation.get("iscrowd", 0))
        label = IGNORE if crowd else index[int(annotation["category_id"])]
        x, y, w, h = annotation["bbox"]
        rows[int(annotation["image_id"])].append(([x, y, x + w, y + h], label))
    return rows


def _pad(rows: list[list[tuple[list[float], int]]]) -> tuple[Tensor, Tensor]:
    """Boxes (F, S, 4) and classes (F, S), S being the fullest frame's count."""
    slots = max([1, *(len(row) for row in rows)])
    boxes = torch.zeros(len(rows), slots, 4)
    classes = torch.full((len(rows), slots), EMPTY, dtype=torch.int64)
    for i, row in enumerate(rows):
        if row:
            boxes[i, : len(row)] = torch.tensor([box for box, _ in row])
            classes[i, : len(row)] = torch.tensor([label for _, label in row])
    return boxes, classes


def _load_images(paths: list[Path], device: torch.device, threads: int) -> Tensor:
    """Decode in a thread pool (OpenCV releases the GIL), a chunk at a time onto the device."""
    first = _read(paths[0])
    images = torch.empty((len(paths), *first.shape), dtype=torch.uint8, device=device)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(paths), _CHUNK):
            chunk = list(pool.map(_read, paths[start : start + _CHUNK]))
            if any(image.shape != first.shape for image in chunk):
                raise ValueError(f"every frame must be {first.shape}, as {paths[0].name} is")
            images[start : start + len(chunk)] = torch.from_numpy(np.stack(chunk))
    return images


def _read(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(f"cannot read the image {path}")
    return np.asarray(image, dtype=np.uint8)
