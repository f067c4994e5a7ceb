"""The detector's result as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Detections:
    """N objects found in one image; valid and free of NaN once constructed.

    ``boxes_xyxy`` is float32 ``(N, 4)`` in source pixels, with ``x1 <= x2`` and ``y1 <= y2``;
    ``scores`` float32 ``(N,)`` in 0..1; ``class_ids`` int32 ``(N,)``; ``track_ids`` int32
    ``(N,)`` with -1 where an object has no track yet, or None where nothing tracks.

    Raises:
        ValueError: shapes disagree, or a value is not finite or out of range. This is a defect
            of the decoder that made them, not of a user's input.
    """

    boxes_xyxy: Float32Array
    scores: Float32Array
    class_ids: Int32Array
    track_ids: Int32Array | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes_xyxy.shape != (count, 4):
            raise ValueError(f"boxes_xyxy: expected shape {(count, 4)}: {self.boxes_xyxy.shape}")
        for name in ("scores", "class_ids", "track_ids"):
            values = getattr(self, name)
            if values is not None and values.shape != (count,):
                raise ValueError(f"{name}: expected shape {(count,)}: {values.shape}")
        self._check_values()

    def _check_values(self) -> None:
        boxes = self.boxes_xyxy
        if not (np.isfinite(boxes).all() and np.isfinite(self.scores).all()):
            raise ValueError("boxes and scores must be finite")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise ValueError("boxes must have x1 <= x2 and y1 <= y2")
        if ((self.scores < 0) | (self.scores > 1)).any():
            raise ValueError("scores must lie in 0..1")

    def __len__(self) -> int:
        """Return N."""
        return len(self.scores)

    @classmethod
    def empty(cls) -> Detections:
        """Return the result of an image with nothing in it."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))

    def select(self, index: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Detections:
        """Return the objects that a boolean mask or an index array names, in its order."""
        tracks = None if self.track_ids is None else self.track_ids[index]
        return Detections(self.boxes_xyxy[index], self.scores[index], self.class_ids[index], tracks)
