"""Following objects from frame to frame: ByteTrack as the library ``trackers`` has it."""

from __future__ import annotations

import numpy as np
import supervision
from trackers import ByteTrackTracker

from edge_perception.core.detections import Detections


class Tracker:
    """Gives the detections of one camera their track ids."""

    def __init__(self) -> None:
        self._tracker = ByteTrackTracker(track_activation_threshold=0.5)
        self._last_stamp_ns = 0
        self._first_id = 0  # of the library's count, which begins anew with each reset
        self._highest_id = -1

    def update(self, detections: Detections, stamp_ns: int) -> Detections:
        """Return the detections with ``track_ids``; -1 until an object was seen twice.

        Args:
            detections: of one frame, any order.
            stamp_ns: the frame's stamp; where it does not advance (zero or backward stamps), the
                tracker starts anew, since motion cannot be predicted into the past. No id is
                given twice all the same.
        """
        if stamp_ns <= self._last_stamp_ns:
            self._tracker.reset()
            self._first_id = self._highest_id + 1
        self._last_stamp_ns = stamp_ns
        if not len(detections):
            self._tracker.update(supervision.Detections.empty(), timestamp=stamp_ns / 1e9)
            return detections
        followed = self._tracker.update(
            supervision.Detections(
                xyxy=detections.boxes_xyxy.astype(np.float64),
                confidence=detections.scores,
                data={"index": np.arange(len(detections))},
            ),
            timestamp=stamp_ns / 1e9,
        )
        track_ids = np.full(len(detections), -1, np.int32)
        known = followed.tracker_id >= 0
        track_ids[followed.data["index"][known]] = followed.tracker_id[known] + self._first_id
        self._highest_id = max(self._highest_id, int(track_ids.max()))
        return Detections(detections.boxes_xyxy, detections.scores, detections.class_ids, track_ids)
