"""Encoded pictures, used again while what the camera sees has not changed.

A robot that stands asks several questions about one view, and encoding is most of the time to the
first token. Two frames are never equal to the byte, so they are compared as people would: each is
averaged down to 48x36 cells of grey, which takes sensor noise away (a cell of a VGA frame averages
177 pixels), the median difference is taken off, which is what a change of exposure looks like, and
the largest difference that is left decides. Not the mean: a cup that was put on a table changes two
cells in a thousand. What a view is compared with is the picture that was encoded, not the frame
before, so that slow changes add up until they count.

The price: 0.4 ms a frame, and changes smaller than a cell or fainter than the threshold go unseen.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edge_perception.core.image import UInt8Array
from edge_perception.errors import RequestError
from edge_perception.vlm.answering import ImageFeatures

Cells = npt.NDArray[np.float32]
Region = tuple[float, float, float, float]

_CELLS = (48, 36)
_MOST_ENTRIES = 4


@dataclass(frozen=True)
class Picture:
    """One frame to be asked about: a copy of its pixels, uint8 RGB ``(height, width, 3)``.

    ``stamp_ns``, ``frame_id`` and ``receive_ns`` are the frame's (``core.frame.FrameInfo``).
    """

    pixels_rgb: UInt8Array
    stamp_ns: int
    frame_id: str
    receive_ns: int

    def crop(self, region: Region | None) -> UInt8Array:
        """The part inside ``region`` (left, top, right, bottom; px), cut at the picture's edges.

        Raises ``RequestError`` where nothing of it lies inside.
        """
        if region is None:
            return self.pixels_rgb
        height, width = self.pixels_rgb.shape[:2]
        left, top = (max(0, int(side)) for side in region[:2])
        right, bottom = min(width, round(region[2])), min(height, round(region[3]))
        if right <= left or bottom <= top:
            raise RequestError(
                "region lies outside the image", expected=f"inside {width}x{height}", got=region
            )
        return self.pixels_rgb[top:bottom, left:right]


def grey_cells(pixels_rgb: UInt8Array) -> Cells:
    """A picture as 48x36 averages of grey, 0 to 255."""
    # Averaging first: converting a 48x36 picture is nothing, converting a camera's is 1 ms.
    small = cv2.resize(pixels_rgb, _CELLS, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.float32)


def difference(one: Cells, other: Cells) -> float:
    """How much two pictures differ, in grey levels: the largest cell beyond the median change."""
    change = one - other
    return float(np.abs(change - np.median(change)).max())


@dataclass
class _Entry:
    cells: Cells
    features: ImageFeatures


class VisionCache:
    """Features of the newest pictures, one for each region and resolution; not thread-safe.

    ``threshold`` is the least difference in grey levels at which a picture counts as another one;
    0 keeps nothing.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[tuple[int, Region | None], _Entry] = OrderedDict()

    def find(
        self, pixels_rgb: UInt8Array, side_px: int, region: Region | None
    ) -> ImageFeatures | None:
        """Features of a picture that looks the same, or None; counted as hit or miss."""
        features = self._peek(grey_cells(pixels_rgb), side_px, region) if self.threshold else None
        self.hits += features is not None
        self.misses += features is None
        return features

    def encoded_side(
        self, pixels_rgb: UInt8Array, sides_px: tuple[int, ...], region: Region | None
    ) -> int | None:
        """The largest of ``sides_px`` at which such a picture has been encoded; None for none."""
        if not self.threshold or not self._entries:
            return None
        cells = grey_cells(pixels_rgb)
        found = [side for side in sides_px if self._peek(cells, side, region) is not None]
        return max(found, default=None)

    def keep(
        self,
        pixels_rgb: UInt8Array,
        side_px: int,
        region: Region | None,
        features: ImageFeatures,
    ) -> None:
        """Keep what was encoded; the entry used least recently makes room."""
        if not self.threshold:
            return
        self._entries[side_px, region] = _Entry(grey_cells(pixels_rgb), features)
        self._entries.move_to_end((side_px, region))
        if len(self._entries) > _MOST_ENTRIES:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget everything; memory is free once nothing else refers to the features."""
        self._entries.clear()

    def _peek(self, cells: Cells, side_px: int, region: Region | None) -> ImageFeatures | None:
        entry = self._entries.get((side_px, region))
        if entry is None or difference(entry.cells, cells) >= self.threshold:
            return None
        self._entries.move_to_end((side_px, region))
        return entry.features
