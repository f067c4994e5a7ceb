"""Detections that are known beforehand: of pictures for the tiny models, by hand, and by chance."""

from __future__ import annotations

import numpy as np
from pictures import BLOCK_CENTRE, BLOCK_SIZE, GREEN, RED, picture

from edge_perception.core.detections import Detections

Row = tuple[float, float, float, float, float, int]
FRAMES = 12
BOX_XYXY = np.array(
    [
        [
            BLOCK_CENTRE[0] - BLOCK_SIZE[0] / 2,
            BLOCK_CENTRE[1] - BLOCK_SIZE[1] / 2,
            BLOCK_CENTRE[0] + BLOCK_SIZE[0] / 2,
            BLOCK_CENTRE[1] + BLOCK_SIZE[1] / 2,
        ]
    ],
    np.float32,
)


def frame(index: int) -> tuple[np.ndarray, str]:
    """An RGB picture with one block, and the block's class."""
    colour, name = [(RED, "red_block"), (GREEN, "green_block")][index % 2]
    return picture(colour), name


def detections(*rows: Row) -> Detections:
    return Detections(
        np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[4] for row in rows], np.float32),
        np.array([row[5] for row in rows], np.int32),
    )


def random_detections(seed: int) -> Detections:
    noise = np.random.default_rng(seed)
    count = int(noise.integers(0, 30))
    corner = noise.uniform(0, 40, (count, 2))
    boxes = np.concatenate([corner, corner + noise.uniform(1, 40, (count, 2))], 1)
    return Detections(
        boxes.astype(np.float32),
        noise.random(count).astype(np.float32),
        noise.integers(0, 3, count).astype(np.int32),
    )
