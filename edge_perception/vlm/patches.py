"""A picture as the patches that an Idefics3 vision tower takes, in the order of pixel shuffle.

Idefics3 joins squares of neighbouring patches into one token of the language tower. Here patches
are laid out square by square from the start, so that whoever runs the tower joins them by a
reshape. A patch's position is the place of its corner, as a fraction of the picture, among the
places that the tower learnt: so smaller pictures use the same table (transformers'
``Idefics3VisionEmbeddings``).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from edge_perception.core.image import UInt8Array

FloatArray = npt.NDArray[np.float32]
Value = TypeVar("Value", bound=np.generic)


def picture_patches(
    pixels_rgb: UInt8Array, side_px: int, patch_px: int, pooling: int
) -> FloatArray:
    """Patches float32 (1, P, 3 * patch_px^2), -1..1, of a picture squeezed to a square.

    The filter is PIL's bilinear one, which the model's processor uses and it was trained with.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels_rgb))
    squeezed = np.asarray(picture.resize((side_px, side_px), Image.Resampling.BILINEAR))
    values = squeezed.astype(np.float32) / np.float32(127.5) - np.float32(1)
    grid = side_px // patch_px
    patches = values.reshape(grid, patch_px, grid, patch_px, 3).transpose(0, 2, 4, 1, 3)
    return _by_square(patches.reshape(grid, grid, -1), pooling)[None]


def patch_positions(
    side_px: int, patch_px: int, pooling: int, learnt: int
) -> npt.NDArray[np.int64]:
    """The row of the position table for each patch, int64 (P,).

    ``learnt`` is the number of patches along a side that the table is for.
    """
    grid = side_px // patch_px
    corners = np.arange(grid, dtype=np.float32) * np.float32(1.0 / grid)
    edges = np.arange(1 / learnt, 1.0, 1 / learnt).astype(np.float32)
    places = np.searchsorted(edges, np.minimum(corners, np.float32(1 - 1e-6)), side="right")
    table = places[:, None] * learnt + places[None, :]
    return _by_square(table[..., None], pooling)[:, 0].astype(np.int64)


def _by_square(grid: npt.NDArray[Value], pooling: int) -> npt.NDArray[Value]:
    """Rows (G, G, C) to (G * G, C), one square of ``pooling`` x ``pooling`` after the other."""
    side, _, channels = grid.shape
    squares = grid.reshape(side // pooling, pooling, side // pooling, pooling, channels)
    return squares.transpose(0, 2, 1, 3, 4).reshape(-1, channels)
