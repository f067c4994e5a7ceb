"""One row a frame: what every stage took and when the result arrived; and a trace to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_perception.core.latency import STAGES


@dataclass(frozen=True)
class LedgerRow:
    """One frame as a planner sees it.

    ``stamp_ns`` and ``arrival_ns`` are ROS time; ``arrival_ns`` is the moment the detections
    reached the listener. ``stages_ns`` is empty and ``sequence`` None where the detector's own
    times could not be joined.
    """

    camera: str
    frame_id: str
    stamp_ns: int
    arrival_ns: int
    detections: int
    sequence: int | None
    stages_ns: Mapping[str, int]

    @property
    def end_to_end_ns(self) -> int:
        """Sensor stamp to arrival; negative where the source's clock is ahead."""
        return self.arrival_ns - self.stamp_ns

    @property
    def joined(self) -> bool:
        """Whether the detector's own times are known."""
        return self.sequence is not None

    def to_json(self) -> dict[str, Any]:
        """Return the row as it stands in the ledger file."""
        return {
            "camera": self.camera,
            "frame_id": self.frame_id,
            "sequence": self.sequence,
            "stamp_ns": self.stamp_ns,
            "arrival_ns": self.arrival_ns,
            "end_to_end_ns": self.end_to_end_ns,
            "joined": self.joined,
            "n_detections": self.detections,
            "stages_ns": dict(self.stages_ns),
        }

    def trace_events(self) -> list[dict[str, Any]]:
        """Return the stages as complete events of the Chrome trace format, times in us.

        Stages are laid end to end from the sensor's stamp; a camera is a thread of its own.
        """
        events = []
        start_ns = self.stamp_ns
        for stage in STAGES:
            if stage not in self.stages_ns:
                continue
            duration_ns = self.stages_ns[stage]
            events.append(
                {
                    "name": stage,
                    "ph": "X",
                    "pid": "edge_perception",
                    "tid": f"{self.camera} {stage}",
                    "ts": start_ns / 1e3,
                    "dur": duration_ns / 1e3,
                    "args": {"sequence": self.sequence},
                }
            )
            start_ns += duration_ns
        return events


def make_row(
    *,
    frame_id: str,
    stamp_ns: int,
    arrival_ns: int,
    detections: int,
    stage_values: Mapping[str, int] | None = None,
    camera: str = "",
) -> LedgerRow:
    """Join what the listener saw with what the detector told (``~/stages``), if it did.

    ``stage_values`` holds ``sequence``, ``receive_stamp_ns`` and one ``<stage>_ns`` each.
    """
    if stage_values is None:
        return LedgerRow(camera, frame_id, stamp_ns, arrival_ns, detections, None, {})
    stages = {"receive": stage_values["receive_stamp_ns"] - stamp_ns}
    for stage in STAGES:
        if f"{stage}_ns" in stage_values:
            stages[stage] = stage_values[f"{stage}_ns"]
    stages["deliver"] = arrival_ns - stamp_ns - sum(stages.values())
    sequence = stage_values["sequence"]
    return LedgerRow(camera, frame_id, stamp_ns, arrival_ns, detections, sequence, stages)
