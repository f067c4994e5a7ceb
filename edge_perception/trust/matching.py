"""Which detection of one model is which of the other's, on one frame.

The float model stands for the truth: a user's own bag has no labels, and what INT8 changes is by
definition what differs from float. Pairs are one to one, of one class, and made by overlap alone,
best overlap first. That is simpler than the assignment of least total cost, and makes the pairs at
IoU 0.75 a subset of those at 0.5, so that one matching serves every threshold. Scores play no
part: a detection whose score fell from 0.9 to 0.4 is still the same detection.

A detection without a partner is then explained, since "lost" may mean three things to a user: the
other model saw the object but not surely enough, called it by another name, or did not see it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_perception.core.boxes import iou_matrix
from edge_perception.core.detections import Detections

# Below this overlap two boxes are not taken for the same object.
SAME_OBJECT_IOU = 0.5

FATES = ("kept", "below_threshold", "other_class", "absent")
KEPT, BELOW_THRESHOLD, OTHER_CLASS, ABSENT = range(4)

IntArray = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Side:
    """One model's N detections at or above the threshold, and what the other made of them.

    ``partner`` is the index of each one's partner among the other side's, -1 without one; ``iou``
    the overlap with it, 0 without one; ``fate`` an index into ``FATES``: ``below_threshold`` where
    the other model found it with too low a score, ``other_class`` where it found something else
    there, ``absent`` where nothing.
    """

    detections: Detections
    partner: IntArray
    iou: npt.NDArray[np.float32]
    fate: npt.NDArray[np.int8]

    def __len__(self) -> int:
        """Return N."""
        return len(self.detections)


@dataclass(frozen=True)
class FrameComparison:
    """Both sides of one frame."""

    float_side: Side
    int8_side: Side


def compare_frame(
    float_found: Detections, int8_found: Detections, threshold: float
) -> FrameComparison:
    """Compare what two models found in one image, in source pixels.

    Both must have been told down to a score below ``threshold``: what lies below serves only to
    explain what is missing above.
    """
    surely = [found.select(found.scores >= threshold) for found in (float_found, int8_found)]
    barely = [found.select(found.scores < threshold) for found in (float_found, int8_found)]
    overlap = iou_matrix(surely[0].boxes_xyxy, surely[1].boxes_xyxy)
    first, second = _pair(np.where(_same_class(*surely), overlap, 0))
    partners = [np.full(len(found), -1, np.intp) for found in surely]
    partners[0][first], partners[1][second] = second, first
    return FrameComparison(
        _explain(surely[0], partners[0], overlap, surely[1], partners[1], barely[1]),
        _explain(surely[1], partners[1], overlap.T, surely[0], partners[0], barely[0]),
    )


def _explain(
    own: Detections,
    partner: IntArray,
    overlap: npt.NDArray[np.float32],
    other: Detections,
    other_partner: IntArray,
    other_barely: Detections,
) -> Side:
    iou = np.zeros(len(own), np.float32)
    fate = np.full(len(own), ABSENT, np.int8)
    kept = np.flatnonzero(partner >= 0)
    iou[kept], fate[kept] = overlap[kept, partner[kept]], KEPT

    lost = np.flatnonzero(partner < 0)
    free = np.flatnonzero(other_partner < 0)
    renamed, _ = _pair(np.where(_same_class(own, other), 0, overlap)[np.ix_(lost, free)])
    fate[lost[renamed]] = OTHER_CLASS
    faint = iou_matrix(own.boxes_xyxy[lost], other_barely.boxes_xyxy)
    found, _ = _pair(np.where(_same_class(own.select(lost), other_barely), faint, 0))
    fate[lost[found]] = BELOW_THRESHOLD
    return Side(own, partner, iou, fate)


def _same_class(first: Detections, second: Detections) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = first.class_ids[:, None] == second.class_ids[None, :]
    return same


def _pair(overlap: npt.NDArray[np.float32]) -> tuple[IntArray, IntArray]:
    """Pair rows with columns, best overlap first; return the indices of both, ``(K,)`` each."""
    rows, columns = np.nonzero(overlap >= SAME_OBJECT_IOU)
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for index in np.argsort(-overlap[rows, columns], kind="stable"):
        row, column = int(rows[index]), int(columns[index])
        if row not in pairs and column not in taken:
            pairs[row] = column
            taken.add(column)
    return np.array(list(pairs), np.intp), np.array(list(pairs.values()), np.intp)
