"""The profiler in this process: joining, counting, and the files it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from vision_msgs.msg import Detection2D, Detection2DArray

from edge_perception.nodes.messages import to_diagnostic_array, to_header, to_status
from edge_perception.nodes.profiler import ProfilerNode


@pytest.fixture
def make_profiler(ros: None) -> Iterator[Callable[..., ProfilerNode]]:
    made: list[ProfilerNode] = []

    def make(**parameters: Any) -> ProfilerNode:
        node = ProfilerNode(f"profiler_{len(made)}")
        node.set_parameters([Parameter(name, value=value) for name, value in parameters.items()])
        made.append(node)
        if node.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            node.trigger_activate()
        return node

    yield make
    for node in made:
        node.stop()
        node.destroy_node()


def answer(stamp_ns: int, detections: int = 1) -> Detection2DArray:
    message = Detection2DArray(header=to_header(stamp_ns, "camera"))
    message.detections = [Detection2D(header=message.header) for _ in range(detections)]
    return message


def stages(stamp_ns: int, **changes: Any) -> Any:
    values = {
        "sequence": 1,
        "receive_stamp_ns": stamp_ns + 1_000_000,
        "decode_ns": 2_000_000,
        "infer_ns": 5_000_000,
        **changes,
    }
    status = to_status("camera", DiagnosticStatus.OK, "stages", values)
    return to_diagnostic_array(to_header(stamp_ns, "camera"), status)


def now_ns(node: ProfilerNode) -> int:
    return int(node.get_clock().now().nanoseconds)


@pytest.mark.parametrize("stages_first", [True, False])
def test_halves_are_joined_in_either_order(
    make_profiler: Callable[..., ProfilerNode], stages_first: bool
) -> None:
    node = make_profiler()
    stamp_ns = now_ns(node)
    heard = [
        lambda: node._on_detections(answer(stamp_ns)),
        lambda: node._on_stages(stages(stamp_ns)),
    ]
    for hear in reversed(heard) if stages_first else heard:
        hear()
    told = node.counters()
    assert (told["frames"], told["joined"], told["unjoined_detections"]) == (1, 1, 0)
    assert told["infer.p50"] == 5
    assert told["receive.p50"] == 1
    assert told["infer.p90"] is None


def test_halves_that_never_meet_are_counted(make_profiler: Callable[..., ProfilerNode]) -> None:
    node = make_profiler()
    stamp_ns = now_ns(node)
    node._on_detections(answer(stamp_ns))
    node._on_detections(answer(stamp_ns + 1))
    node._on_stages(stages(stamp_ns + 2))
    node.trigger_deactivate()
    told = node.counters()
    assert (told["frames"], told["joined"]) == (2, 0)
    assert (told["unjoined_detections"], told["unjoined_stages"]) == (2, 1)


@pytest.mark.parametrize(
    "message",
    [
        stages(1, sequence="seven"),
        stages(1, infer_ns="nan"),
        stages(1, infer_ns=1.5),
        to_diagnostic_array(to_header(1, "camera")),
        to_diagnostic_array(to_header(1, ""), to_status("camera", DiagnosticStatus.OK, "", {})),
        to_diagnostic_array(to_header(1, ""), *[DiagnosticStatus()] * 2),
    ],
    ids=["no number", "nan", "fraction", "no status", "no values", "two"],
)
def test_stages_that_make_no_sense_are_counted(
    make_profiler: Callable[..., ProfilerNode], message: Any
) -> None:
    node = make_profiler()
    node._on_stages(message)
    assert node.counters()["malformed"] == 1


def test_misses_and_clocks_ahead_are_counted(make_profiler: Callable[..., ProfilerNode]) -> None:
    node = make_profiler(deadline_ms=50.0)
    for age_ms in (10, 100, 200, -1000):
        stamp_ns = now_ns(node) - age_ms * 1_000_000
        node._on_detections(answer(stamp_ns))
        node._on_stages(stages(stamp_ns))
    told = node.counters()
    assert told["deadline_misses"] == 2
    assert told["negative_age"] == 1
    assert node.health()[0] == DiagnosticStatus.WARN
    node.set_parameters([Parameter("deadline_ms", value=500.0)])
    stamp_ns = now_ns(node) - 300_000_000
    node._on_detections(answer(stamp_ns))
    node._on_stages(stages(stamp_ns))
    assert node.counters()["deadline_misses"] == 2


def test_files_hold_every_frame(make_profiler: Callable[..., ProfilerNode], tmp_path: Path) -> None:
    node = make_profiler(output_dir=str(tmp_path / "out"))
    stamp_ns = now_ns(node)
    node._on_detections(answer(stamp_ns, detections=3))
    node._on_stages(stages(stamp_ns))
    node._on_detections(answer(stamp_ns + 5, detections=0))
    node.trigger_deactivate()
    node.trigger_cleanup()

    rows = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").open()]
    assert [row["joined"] for row in rows] == [True, False]
    assert [row["n_detections"] for row in rows] == [3, 0]
    assert sum(rows[0]["stages_ns"].values()) == rows[0]["end_to_end_ns"]
    found = [json.loads(line) for line in (tmp_path / "out" / "detections.jsonl").open()]
    assert [len(row["detections"]) for row in found] == [3, 0]
    events = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert [e["name"] for e in events if e] == ["receive", "decode", "infer", "deliver"]
    counters = json.loads((tmp_path / "out" / "counters.json").read_text())
    assert counters["profiler"]["frames"] == 2


def test_silence_is_told(make_profiler: Callable[..., ProfilerNode]) -> None:
    assert make_profiler().health() == (DiagnosticStatus.WARN, "no detections yet")


def test_folder_that_cannot_be_written_fails_the_configuration_until_it_is_corrected(
    make_profiler: Callable[..., ProfilerNode], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    node = make_profiler(output_dir=str(tmp_path / "file" / "below"))
    assert node._health()[0] == DiagnosticStatus.ERROR
    assert "output_dir cannot be written" in node._health()[1]
    node.set_parameters([Parameter("output_dir", value=str(tmp_path / "out"))])
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert (tmp_path / "out" / "ledger.jsonl").is_file()


def vlm_work(start_ns: int, end_ns: int) -> Any:
    values = {"start_stamp_ns": start_ns, "end_stamp_ns": end_ns}
    status = to_status("vlm", DiagnosticStatus.OK, "work", values)
    return to_diagnostic_array(to_header(start_ns, "camera"), status)


def test_frames_beside_the_language_model_are_told_apart(
    make_profiler: Callable[..., ProfilerNode],
) -> None:
    profiler = make_profiler()
    for _ in range(3):
        stamp = now_ns(profiler) - 1_000_000
        profiler._on_detections(answer(stamp))
        profiler._on_stages(stages(stamp))
    profiler._on_vlm_work(vlm_work(now_ns(profiler) - 10_000_000, now_ns(profiler)))
    told = profiler.counters()
    assert told["end_to_end_with_vlm.n"] == 3
    assert "end_to_end_without_vlm.n" not in told
    profiler._on_vlm_work(to_diagnostic_array(to_header(0, "")))
    assert profiler.counters()["malformed"] == 1
