"""The profiler node: listens as a planner would, and tells what each stage took."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from vision_msgs.msg import Detection2DArray

from edge_perception.core.contention import ContentionSplit, SplitFrame
from edge_perception.core.lately import SILENT_S
from edge_perception.core.latency import LatencyWindow
from edge_perception.core.ledger import Key, LedgerJoiner, LedgerRow
from edge_perception.errors import ConfigError
from edge_perception.nodes.managed import OVERRIDABLE, Health, ManagedNode, reliable
from edge_perception.nodes.messages import from_detection2d_array, from_status, to_nanoseconds
from edge_perception.nodes.params import Declaration
from edge_perception.nodes.runner import run

PARAMETERS = (
    Declaration(
        "output_dir",
        "",
        "Folder for ledger.jsonl, detections.jsonl, trace.json and counters.json; empty writes"
        " none.",
        fixed=True,
    ),
    Declaration(
        "deadline_ms",
        100.0,
        "Age at arrival (sensor stamp to here) above which a result counts as a deadline miss.",
        bounds=(0.1, 60_000.0),
    ),
    Declaration(
        "stages",
        True,
        "Listen to the detector's stages too; false sees only what any planner would.",
        fixed=True,
    ),
    Declaration(
        "window",
        10_000,
        "Newest frames over which percentiles are told in diagnostics.",
        bounds=(100, 1_000_000),
        fixed=True,
    ),
)


class ProfilerNode(ManagedNode):
    """Joins ``detections`` with ``detector/stages`` by frame_id and stamp.

    Either half may come first; halves that never meet are counted. Counters of the other nodes,
    as they tell them on ``/diagnostics``, are kept for the report. By ``vlm/stages``, frames are
    told apart into those beside which the language model worked and the others.
    """

    def __init__(self, name: str = "profiler", **node_options: Any) -> None:
        super().__init__(name, PARAMETERS, **node_options)
        self._window = LatencyWindow()
        self._counts: Counter[str] = Counter()
        self._joiner = LedgerJoiner()
        self._split = ContentionSplit()
        self._told: dict[str, Mapping[str, str]] = {}
        self._deadline_ns = 0
        self._last_arrival_ns = 0
        self._last_arrival_s = 0.0
        self._arrived_since_report = 0
        self._rate_hz = 0.0
        self._rate_since_ns = 0
        self._files: _LedgerFiles | None = None
        self._subscriptions_made: list[Any] = []

    def configure(self) -> None:
        """Open the ledger's files, if they are wanted."""
        values = self.parameter_values()
        self.apply_parameters(values)
        self._window = LatencyWindow(values["window"])
        if values["output_dir"]:
            self._files = _LedgerFiles(Path(values["output_dir"]).expanduser())

    def activate(self) -> None:
        """Subscribe."""
        ears = [
            (Detection2DArray, "detections", self._on_detections),
            (DiagnosticArray, "/diagnostics", self._on_diagnostics),
        ]
        if self.parameter_values()["stages"]:
            ears.append((DiagnosticArray, "detector/stages", self._on_stages))
            ears.append((DiagnosticArray, "vlm/stages", self._on_vlm_work))
        self._subscriptions_made = [
            self.create_subscription(
                message_type, topic, callback, reliable(100), qos_overriding_options=OVERRIDABLE
            )
            for message_type, topic, callback in ears
        ]

    def deactivate(self) -> None:
        """Unsubscribe and write down what still waits."""
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self._subscriptions_made = []
        self._book(self._joiner.finish())
        self._tell_apart(self._split.finish())
        if self._files is not None:
            self._files.write_counters({"profiler": self.counters(), "nodes": self._told})

    def cleanup(self) -> None:
        """Close the files."""
        if self._files is not None:
            self._files.close()
            self._files = None

    def apply_parameters(self, values: Mapping[str, Any]) -> None:
        """Take over the deadline."""
        self._deadline_ns = int(values["deadline_ms"] * 1e6)

    def counters(self) -> Mapping[str, object]:
        """Rates, percentiles a stage in milliseconds, misses, and what could not be joined."""
        now_ns = self.get_clock().now().nanoseconds
        told: dict[str, object] = {
            "rate_hz": round(self._rate_hz, 2),
            "frames": self._counts["frames"],
            "joined": self._counts["joined"],
            "unjoined_detections": self._joiner.unjoined_detections,
            "unjoined_stages": self._joiner.unjoined_stages,
            "deadline_misses": self._counts["deadline_misses"],
            "negative_age": self._counts["negative_age"],
            "malformed": self._counts["malformed"],
            "stale_age_ms": (now_ns - self._last_arrival_ns) / 1e6
            if self._last_arrival_ns
            else None,
        }
        for stage, summary in self._window.summaries().items():
            for statistic, value in asdict(summary).items():
                told[f"{stage}.{statistic}"] = round(value, 4) if value is not None else None
        return told

    def publish_diagnostics(self) -> None:
        """Update the rate, then publish."""
        now_ns = self.get_clock().now().nanoseconds
        if self._rate_since_ns and now_ns > self._rate_since_ns:
            self._rate_hz = self._arrived_since_report * 1e9 / (now_ns - self._rate_since_ns)
        self._rate_since_ns, self._arrived_since_report = now_ns, 0
        self._book(self._joiner.expire(now_ns))
        self._tell_apart(self._split.expire(now_ns))
        super().publish_diagnostics()

    def health(self) -> Health:
        """Warn while deadlines are missed or no detections come."""
        missed = self.lately.grew("misses", self._counts["deadline_misses"])
        silent_s = time.monotonic() - self._last_arrival_s
        if not self._counts["frames"]:
            return DiagnosticStatus.WARN, "no detections yet"
        if silent_s > SILENT_S:
            return DiagnosticStatus.WARN, f"no detections for {silent_s:.0f} s"
        if missed:
            return DiagnosticStatus.WARN, f"{self._counts['deadline_misses']} deadline misses"
        return DiagnosticStatus.OK, "active"

    def _on_detections(self, message: Detection2DArray) -> None:
        arrival_ns, arrival_monotonic_ns = self.get_clock().now().nanoseconds, time.monotonic_ns()
        self._last_arrival_ns, self._last_arrival_s = arrival_ns, arrival_monotonic_ns / 1e9
        self._arrived_since_report += 1
        if self._files is not None:
            self._files.write_detections(message, arrival_monotonic_ns)
        self._book(self._joiner.add_arrival(_key(message), arrival_ns, len(message.detections)))

    def _on_stages(self, message: DiagnosticArray) -> None:
        try:
            (status,) = message.status
            values = {name: int(value) for name, value in from_status(status).items()}
            values["sequence"], values["receive_stamp_ns"]
        except (ValueError, KeyError):
            self._counts["malformed"] += 1
            return
        now_ns = self.get_clock().now().nanoseconds
        self._book(self._joiner.add_stages(_key(message), now_ns, status.name, values))

    def _on_vlm_work(self, message: DiagnosticArray) -> None:
        try:
            (status,) = message.status
            values = from_status(status)
            start_ns, end_ns = int(values["start_stamp_ns"]), int(values["end_stamp_ns"])
        except (ValueError, KeyError):
            self._counts["malformed"] += 1
            return
        self._tell_apart(self._split.add_work(start_ns, end_ns))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name != self.get_fully_qualified_name().lstrip("/"):
                self._told[status.name] = from_status(status)

    def _book(self, rows: Sequence[LedgerRow]) -> None:
        for row in rows:
            self._counts["frames"] += 1
            self._counts["joined"] += row.joined
            self._counts["deadline_misses"] += row.end_to_end_ns > self._deadline_ns
            self._counts["negative_age"] += row.end_to_end_ns < 0
            self._window.add("end_to_end", row.end_to_end_ns)
            self._split.add_frame(row.stamp_ns, row.arrival_ns)
            for stage, duration_ns in row.stages_ns.items():
                self._window.add(stage, duration_ns)
            if self._files is not None:
                self._files.write_row(row)

    def _tell_apart(self, frames: Iterable[SplitFrame]) -> None:
        for frame in frames:
            kind = "with_vlm" if frame.beside_work else "without_vlm"
            self._window.add(f"end_to_end_{kind}", frame.end_to_end_ns)


def _key(message: Detection2DArray | DiagnosticArray) -> Key:
    return message.header.frame_id, to_nanoseconds(message.header.stamp)


class _LedgerFiles:
    """The four files of one run; complete up to the last line also after a kill."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._ledger = _open_lines(folder / "ledger.jsonl")
            self._detections = _open_lines(folder / "detections.jsonl")
            self._trace = _open_lines(folder / "trace.json")
        except OSError as error:
            raise ConfigError(f"output_dir cannot be written: {error}") from error
        self._counters = folder / "counters.json"
        self._trace.write("[\n")  # the format allows the closing bracket to be missing

    def write_row(self, row: LedgerRow) -> None:
        self._ledger.write(json.dumps(row.to_json()) + "\n")
        for event in row.trace_events():
            self._trace.write(json.dumps(event) + ",\n")

    def write_detections(self, message: Detection2DArray, arrival_monotonic_ns: int) -> None:
        told = from_detection2d_array(message)
        row = {**told, "arrival_monotonic_ns": arrival_monotonic_ns}
        self._detections.write(json.dumps(row) + "\n")

    def write_counters(self, counters: Mapping[str, object]) -> None:
        self._counters.write_text(json.dumps(counters, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        self._trace.write("{}]\n")
        for file in (self._ledger, self._detections, self._trace):
            file.close()


def _open_lines(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", buffering=1)


def main() -> int:
    """Run the node in a process of its own."""
    return run(lambda: [ProfilerNode()])


if __name__ == "__main__":
    sys.exit(main())
