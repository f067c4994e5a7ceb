"""What the detection kernels are told of a head, and what they return; no CUDA needed here."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_perception.core.letterbox import Letterbox
from edge_perception.errors import EngineError

MAX_CANDIDATES = 4096
MAX_LEVELS = 4
_HEAD_CODES = {"yolov8": 0, "yolov5": 1, "yolox": 2}
DECODABLE_HEADS = frozenset(_HEAD_CODES)


class _LevelArgument(ctypes.Structure):
    _fields_ = (
        ("stride", ctypes.c_int),
        ("columns", ctypes.c_int),
        ("first_anchor", ctypes.c_int),
    )


class HeadLayoutArgument(ctypes.Structure):
    """``HeadLayout`` of detections.cu."""

    _fields_ = (
        ("head", ctypes.c_int),
        ("anchors", ctypes.c_int),
        ("classes", ctypes.c_int),
        ("levels", ctypes.c_int),
        ("level", _LevelArgument * MAX_LEVELS),
    )


class PlacementArgument(ctypes.Structure):
    """``Placement`` of detections.cu."""

    _fields_ = tuple(
        (name, ctypes.c_float)
        for name in ("pad_left", "pad_top", "scale_x", "scale_y", "width", "height")
    )

    @classmethod
    def of(cls, letterbox: Letterbox) -> PlacementArgument:
        """Lay a letterbox out as the kernels read it."""
        return cls(
            letterbox.pad_left,
            letterbox.pad_top,
            letterbox.scale_x,
            letterbox.scale_y,
            letterbox.source_width,
            letterbox.source_height,
        )


@dataclass(frozen=True)
class GridLevel:
    """One level of YOLOX's grid: px a cell, cells a row, index of the level's first anchor."""

    stride: int
    columns: int
    first_anchor: int


@dataclass(frozen=True)
class DeviceDetections:
    """What survived, best first, in source pixels: ``(N, 4)``, ``(N,)``, ``(N,)``.

    ``candidates`` is how many passed the threshold. Above ``MAX_CANDIDATES`` some were left out at
    random: decode on the CPU instead.
    """

    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int32]
    candidates: int

    @property
    def complete(self) -> bool:
        """Whether every candidate took part."""
        return self.candidates <= MAX_CANDIDATES


def head_layout(
    head: str, anchors: int, classes: int, levels: Sequence[GridLevel] = ()
) -> HeadLayoutArgument:
    """Lay a head's description out as the kernels read it.

    Raises:
        EngineError: a head without raw boxes, or levels where none belong.
    """
    needed = range(1, MAX_LEVELS + 1) if head == "yolox" else range(1)
    if head not in _HEAD_CODES or len(levels) not in needed or anchors < 1 or classes < 1:
        raise EngineError(
            f"head {head!r} cannot be decoded on the GPU",
            expected=f"one of {', '.join(_HEAD_CODES)}; levels for yolox alone",
            got=(anchors, classes, tuple(levels)),
        )
    layout = HeadLayoutArgument(_HEAD_CODES[head], anchors, classes, len(levels))
    for at, level in zip(layout.level, levels, strict=False):
        at.stride, at.columns = level.stride, level.columns
        at.first_anchor = level.first_anchor
    return layout
