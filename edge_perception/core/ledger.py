"""One row a frame: what every stage took and when the result arrived; and a trace to look at."""

from __future__ import annotations

from collections import OrderedDict
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


Key = tuple[str, int]
"""A frame by its header: frame_id and stamp in nanoseconds."""

# How many frames may wait for their other half: at 1 kHz two seconds.
_MOST_WAITING = 2048
_LONGEST_WAIT_NS = 2_000_000_000


@dataclass(frozen=True)
class _Arrival:
    arrival_ns: int
    detections: int


@dataclass(frozen=True)
class _Stages:
    told_ns: int
    camera: str
    values: Mapping[str, int]


class LedgerJoiner:
    """Joins what a listener saw with what the detector told, by the frame's header.

    Either half may come first. A half that waits longer than two seconds, is one of too many, or
    meets a second one of the same header, will never be joined: an arrival then becomes a row
    without stages, stages are only counted. Every method returns the rows that are complete.
    """

    def __init__(self) -> None:
        self.unjoined_detections = 0
        self.unjoined_stages = 0
        self._arrivals: OrderedDict[Key, _Arrival] = OrderedDict()
        self._stages: OrderedDict[Key, _Stages] = OrderedDict()

    def add_arrival(self, key: Key, arrival_ns: int, detections: int) -> list[LedgerRow]:
        """Take detections that arrived at ``arrival_ns`` (ROS time)."""
        arrival = _Arrival(arrival_ns, detections)
        if key in self._stages:
            return [_join(key, arrival, self._stages.pop(key))]
        rows = [self._give_up(key)] if key in self._arrivals else []
        self._arrivals[key] = arrival
        return rows + self.expire(arrival_ns)

    def add_stages(
        self, key: Key, told_ns: int, camera: str, values: Mapping[str, int]
    ) -> list[LedgerRow]:
        """Take a frame's stages, which came at ``told_ns`` (ROS time)."""
        stages = _Stages(told_ns, camera, values)
        if key in self._arrivals:
            return [_join(key, self._arrivals.pop(key), stages)]
        self.unjoined_stages += self._stages.pop(key, None) is not None
        self._stages[key] = stages
        return self.expire(told_ns)

    def expire(self, now_ns: int) -> list[LedgerRow]:
        """Give up what has waited too long."""
        rows = []
        while self._arrivals:
            key, arrival = next(iter(self._arrivals.items()))
            if now_ns - arrival.arrival_ns < _LONGEST_WAIT_NS and not _too_many(self._arrivals):
                break
            rows.append(self._give_up(key))
        while self._stages:
            key, stages = next(iter(self._stages.items()))
            if now_ns - stages.told_ns < _LONGEST_WAIT_NS and not _too_many(self._stages):
                break
            del self._stages[key]
            self.unjoined_stages += 1
        return rows

    def finish(self) -> list[LedgerRow]:
        """Give up everything that still waits."""
        rows = [self._give_up(key) for key in tuple(self._arrivals)]
        self.unjoined_stages += len(self._stages)
        self._stages.clear()
        return rows

    def _give_up(self, key: Key) -> LedgerRow:
        self.unjoined_detections += 1
        return _join(key, self._arrivals.pop(key), None)


def _too_many(waiting: Mapping[Key, object]) -> bool:
    return len(waiting) > _MOST_WAITING


def _join(key: Key, arrival: _Arrival, stages: _Stages | None) -> LedgerRow:
    return make_row(
        frame_id=key[0],
        stamp_ns=key[1],
        arrival_ns=arrival.arrival_ns,
        detections=arrival.detections,
        stage_values=stages.values if stages else None,
        camera=stages.camera if stages else "",
    )
