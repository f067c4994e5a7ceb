"""A prepared data set as tensors on the training device: pictures, masks, objects, turns.

Every picture comes with the turns of its own facts and of the mirrored ones, so that a flip is a
matter of an index.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MOVED = ("place", "locate", "way")
"""Kinds whose answers may change when the picture is shrunk and shifted."""


@dataclass(frozen=True)
class Examples:
    """N pictures and what is known of them; axis V is the picture as it is, and mirrored.

    ``images`` uint8 (N, side, side, 3) RGB; ``masks`` uint8 (N, 120, 160), 1 + the object's row, 0
    for none; ``objects`` float32 (N, 48, 5): class, colour (-1: none), middle x and y in -1..1, log
    metres; ``turns`` int16 (N, V, 32, 24) padded; ``kinds`` int8 (-1: no turn) and ``weights``
    float32 (N, V, 32); ``captions`` int16 (N, V, 2, 64).
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


def load_examples(folder: Path, device: torch.device) -> Examples:
    """What ``prepare`` wrote, on a device. Raises FileNotFoundError where it is not complete."""
    if not (folder / "prepared.json").exists():
        raise FileNotFoundError(f"{folder} holds no prepared data set: run training.vlm.prepare")
    return Examples(
        *[
            torch.from_numpy(np.load(folder / f"{field.name}.npy", mmap_mode="c")).to(device)
            for field in fields(Examples)
        ]
    )
