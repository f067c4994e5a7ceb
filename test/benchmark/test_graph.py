"""The graph benchmark: what it makes of ledgers, and one short run of each system for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest

pytest.importorskip("rclpy")
from pictures import RED, picture
from tiny_models import write_detector

from edge_perception.benchmark import graph
from edge_perception.benchmark.graph import OURS, SYSTEMS, Load, Measured, Model
from edge_perception.core.latency import LatencySummary
from edge_perception.errors import EdgePerceptionError
from edge_perception.replay.bag_writer import BagWriter

MS = 1_000_000


def row(index: int, end_to_end_ms: int, **stages_ms: int) -> dict[str, Any]:
    stages = {stage: ms * MS for stage, ms in stages_ms.items()}
    return {
        "arrival_ns": index * 100 * MS,
        "end_to_end_ns": end_to_end_ms * MS,
        "joined": bool(stages),
        "stages_ns": stages,
    }


def test_what_arrives_while_warming_up_is_left_out() -> None:
    rows = [row(i, 900 if i < 16 else 20) for i in range(40)]
    measured = graph._judge(OURS, rows)
    assert measured.end_to_end_ms.max == 20
    assert measured.fps == pytest.approx(10)


def test_time_outside_the_nodes_and_inference_is_no_overhead() -> None:
    stages = {"receive": 50, "decode": 2, "wait": 1, "infer": 30, "publish": 3, "deliver": 40}
    measured = graph._judge(OURS, [row(i, 126, **stages) for i in range(40)])
    assert measured.non_inference_ms is not None
    assert measured.non_inference_ms.p50 == 6
    assert measured.stages_p50_ms == stages


def test_baseline_without_stages_has_no_overhead_to_tell() -> None:
    measured = graph._judge("baseline_depth_1", [row(i, 10) for i in range(40)])
    assert measured.non_inference_ms is None
    assert measured.stages_p50_ms == {}


def test_silence_is_an_error_not_a_figure() -> None:
    with pytest.raises(EdgePerceptionError, match="hardly a result arrived"):
        graph._judge(OURS, [row(0, 10)])


def test_results_of_the_warm_up_alone_are_an_error_not_a_figure() -> None:
    with pytest.raises(EdgePerceptionError, match="came while warming up"):
        graph._judge(OURS, [row(i, 10) for i in range(5)])


def test_percentile_of_too_few_frames_is_refused() -> None:
    few = Measured(OURS, 10.0, LatencySummary.of_ns([MS] * 50), None, {})
    with pytest.raises(EdgePerceptionError, match="too few frames"):
        graph._p99(few)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    path = tmp_path_factory.mktemp("bag") / "small.mcap"
    jpeg = cv2.imencode(".jpg", picture(RED))[1].tobytes()
    with BagWriter(path) as writer:
        for index in range(1, 31):
            writer.write_image(index * 33 * MS, jpeg)
    return Load(path, compressed=True, fps=40.0, seconds=1.5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_system_is_measured_through_real_processes(
    system: str, load: Load, tmp_path: Path
) -> None:
    measured = graph.measure(system, load, Model(write_detector(tmp_path), threads=1), stages=True)
    assert measured.system == system
    assert measured.end_to_end_ms.n > 10
    assert (measured.end_to_end_ms.p50 or 0) > 0
    assert (measured.non_inference_ms is not None) == (system == OURS)


def test_idle_graph_is_measured_without_a_listener(load: Load, tmp_path: Path) -> None:
    told = graph.idle(load, Model(write_detector(tmp_path), threads=1))
    assert told["seconds"] == load.seconds
    assert told["camera_fps"] == load.fps
    # The kernel counts in ticks of 10 ms: a graph that does next to nothing may use none.
    assert 0 <= float(str(told["cpu_share_of_one_core"])) < 1
