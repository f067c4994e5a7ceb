"""The classifier's result as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_perception.core.detections import Float32Array, Int32Array


@dataclass(frozen=True)
class Classification:
    """What one image may show, the likeliest first; valid and free of NaN once constructed.

    ``class_ids`` int32 ``(K,)``, ``scores`` float32 ``(K,)`` in 0..1, falling.

    Raises:
        ValueError: shapes disagree, or scores rise, are not finite or out of range. This is a
            defect of the classifier that made them, not of a user's input.
    """

    class_ids: Int32Array
    scores: Float32Array

    def __post_init__(self) -> None:
        if self.class_ids.shape != (len(self.scores),):
            raise ValueError(f"class_ids: expected shape {(len(self.scores),)}")
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise ValueError("scores must lie in 0..1")
        if (np.diff(self.scores) > 0).any():
            raise ValueError("scores must fall")

    def __len__(self) -> int:
        """Return K."""
        return len(self.scores)
