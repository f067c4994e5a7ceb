"""The container as a process of its own, over DDS: what a planner gets, and what it costs."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

rclpy = pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticArray
from pictures import (
    BLOCK_CENTRE,
    BLOCK_SIZE,
    BLUE,
    GREEN,
    RED,
    WHITE,
    picture,
)
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from tiny_models import CLASS_NAMES
from vision_msgs.msg import Detection2DArray

from edge_perception.core.image import ENCODINGS
from edge_perception.core.latency import STAGES
from edge_perception.nodes.messages import from_status, to_nanoseconds


def detect(running: Any, image: Any, **sending: Any) -> Any:
    """Send an image, again if the first was lost, and return its detections."""
    header = running.send(image, **sending)
    return running.answer_to(header, running.detections)


def only_block(message: Any) -> tuple[str, Any]:
    (detection,) = message.detections
    (result,) = detection.results
    return result.hypothesis.class_id, detection


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("padding", [0, 7], ids=["packed", "padded"])
def test_every_raw_encoding_gives_the_same_box(running: Any, encoding: str, padding: int) -> None:
    colour = WHITE if encoding == "mono8" else RED
    name, detection = only_block(
        detect(running, picture(colour), encoding=encoding, padding=padding)
    )
    centre = detection.bbox.center.position
    assert name == "red_block"
    assert (centre.x, centre.y) == BLOCK_CENTRE
    assert (detection.bbox.size_x, detection.bbox.size_y) == BLOCK_SIZE
    assert 0.8 < detection.results[0].hypothesis.score <= 1


def test_quality_of_service_is_the_users_to_choose(graph: Any, manifest: Path) -> None:
    topic = f"qos_overrides.{graph.namespace}/detections"
    best_effort = {
        f"detector__{topic}.publisher.reliability": "best_effort",
        f"profiler__{topic}.subscription.reliability": "best_effort",
    }
    graph.start_container(manifest, **best_effort)
    (published,) = graph.node.get_publishers_info_by_topic(f"{graph.namespace}/detections")
    (heard,) = graph.node.get_subscriptions_info_by_topic(f"{graph.namespace}/detections")
    for endpoint in (published, heard):
        assert endpoint.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    (stages,) = graph.node.get_publishers_info_by_topic(f"{graph.namespace}/detector/stages")
    assert stages.qos_profile.reliability == ReliabilityPolicy.RELIABLE, "its own, not theirs"
    assert graph.change_state("detector", "deactivate")
    assert graph.change_state("detector", "cleanup")
    assert graph.change_state("detector", "configure"), "what is declared stays declared"


def test_last_rows_padding_may_be_missing(running: Any) -> None:
    answer = detect(running, picture(GREEN), padding=5, last_padding=False)
    assert only_block(answer)[0] == "green_block"


def test_classes_are_told_by_readable_names(running: Any) -> None:
    names = [only_block(detect(running, picture(colour)))[0] for colour in (RED, GREEN, BLUE)]
    assert names == list(CLASS_NAMES)


@pytest.mark.parametrize(
    ("sec", "nanosec", "frame_id"),
    [
        (0, 0, ""),
        (1, 999_999_999, "left/camera optical frame"),
        (2**31 - 1, 1, "kamera_öß_相机"),
        (-5, 7, "x" * 1000),
    ],
    ids=["all zero", "spaces", "latest stamp, unicode", "before 1970, long"],
)
def test_header_comes_back_unchanged(running: Any, sec: int, nanosec: int, frame_id: str) -> None:
    header = Header(frame_id=frame_id)
    header.stamp.sec, header.stamp.nanosec = sec, nanosec
    answer = detect(running, picture(), header=header)
    assert answer.header == header
    assert all(detection.header == header for detection in answer.detections)


def test_image_without_objects_gives_an_empty_answer(running: Any) -> None:
    assert detect(running, picture((0, 0, 0))).detections == []


def test_label_info_waits_for_late_listeners(running: Any) -> None:
    running.wait_for(lambda: running.label_info)
    (told,) = running.label_info
    assert [(c.class_id, c.class_name) for c in told.class_map] == list(enumerate(CLASS_NAMES))
    assert told.threshold == pytest.approx(0.3)


def test_stages_carry_the_header_and_every_stage_in_nanoseconds(running: Any) -> None:
    answer = detect(running, picture())
    stages = running.answer_to(answer.header, running.stages)
    (status,) = stages.status
    values = {key: int(value) for key, value in from_status(status).items()}
    assert status.name == "camera"
    assert values["sequence"] > 0
    assert values["receive_stamp_ns"] >= to_nanoseconds(answer.header.stamp)
    told = {stage for stage in STAGES if f"{stage}_ns" in values}
    assert told == set(STAGES) - {"receive", "track", "deliver"}
    assert all(values[f"{stage}_ns"] >= 0 for stage in told)


def test_debug_image_is_made_only_while_somebody_looks(running: Any) -> None:
    info = running.node.get_topic_names_and_types()
    assert any(name.endswith("/detector/debug_image") for name, _ in info)
    debug = running.listen(Image, "detector/debug_image")
    answer = detect(running, picture(GREEN))
    shown = running.answer_to(answer.header, debug)
    assert (shown.encoding, shown.height, shown.width, shown.step) == ("bgr8", 128, 128, 384)
    pixels = bytes(shown.data)
    assert pixels[(24 * 128 + 40) * 3 : (24 * 128 + 40) * 3 + 3] == bytes(GREEN)
    assert pixels[(20 * 128 + 24) * 3 : (20 * 128 + 24) * 3 + 3] != bytes(3)  # the box's edge


# Parameters.


def test_thresholds_change_between_two_frames(running: Any) -> None:
    grey = picture((153, 0, 0))
    assert len(detect(running, grey).detections) == 1
    assert running.set_parameters("detector", score_threshold=0.7).successful
    assert len(detect(running, grey).detections) == 0
    assert running.set_parameters("detector", score_threshold=0.3).successful
    assert len(detect(running, grey).detections) == 1


def test_class_filter_takes_patterns(running: Any) -> None:
    assert running.set_parameters("detector", classes=["gr*", "*ue_block"]).successful
    assert len(detect(running, picture(RED)).detections) == 0
    assert len(detect(running, picture(GREEN)).detections) == 1
    assert running.set_parameters("detector", classes=["*"]).successful
    assert len(detect(running, picture(RED)).detections) == 1


@pytest.mark.parametrize(
    ("node", "values", "reason"),
    [
        ("detector", {"score_threshold": 1.5}, "range"),
        ("detector", {"score_threshold": -0.1}, "range"),
        ("detector", {"max_detections": 0}, "range"),
        ("detector", {"score_threshold": "high"}, "type"),
        ("detector", {"classes": ["zebra"]}, "does not know"),
        ("detector", {"manifest": "other.yaml"}, "cannot change while configured"),
        ("camera", {"slots": 6}, "cannot change while configured"),
        ("camera", {"image_transport": "smoke"}, "cannot change while configured"),
        ("camera", {"max_image_bytes": 1}, "range"),
        ("profiler", {"deadline_ms": 0.0}, "range"),
    ],
)
def test_parameter_that_cannot_be_is_refused(
    running: Any, node: str, values: dict[str, Any], reason: str
) -> None:
    result = running.set_parameters(node, **values)
    assert not result.successful
    assert reason in result.reason
    assert len(detect(running, picture()).detections) == 1


def test_size_limit_changes_at_run_time(running: Any) -> None:
    before = running.counters("camera")["rejected"]
    assert running.set_parameters("camera", max_image_bytes=1024).successful
    running.send(picture())
    running.wait_for(lambda: running.counters("camera")["rejected"] == before + 1)
    assert "max_image_bytes" in running.counters("camera")["last_rejection"]
    assert running.set_parameters("camera", max_image_bytes=1 << 20).successful
    assert len(detect(running, picture()).detections) == 1


def test_tracking_gives_ids_while_it_is_on(running: Any) -> None:
    assert running.set_parameters("detector", track=True).successful
    ids = [detect(running, picture()).detections[0].id for _ in range(5)]
    assert ids[-1] == ids[-2] != ""
    assert running.set_parameters("detector", score_threshold=0.31).successful
    assert detect(running, picture()).detections[0].id == ids[-1]  # other parameters lose no track
    assert running.set_parameters("detector", score_threshold=0.3).successful
    assert running.set_parameters("detector", track=False).successful
    assert detect(running, picture()).detections[0].id == ""


# Counting.


def test_newest_only_every_frame_is_processed_dropped_or_rejected(running: Any) -> None:
    running.set_parameters("detector", track=False)
    detect(running, picture())
    for _ in range(200):  # as fast as this process can: faster than the detector
        running.send(picture())
    last = detect(running, picture(BLUE))
    assert only_block(last)[0] == "blue_block"
    camera, detector = running.counters("camera"), running.counters("detector")
    assert camera["received"] == camera["rejected"] + camera["ring_written"]
    done = detector["processed"] + detector["dropped"] + detector["failed"]
    assert camera["ring_written"] == done + detector["not_wanted"]
    stamps = [to_nanoseconds(m.header.stamp) for m in running.detections[-20:]]
    assert len(set(stamps)) == len(stamps)


def test_profiler_counts_the_frames_and_joins_them(running: Any) -> None:
    for _ in range(12):
        detect(running, picture())
    told = running.counters("profiler")
    assert told["frames"] >= 12
    assert told["joined"] + told["unjoined_detections"] == told["frames"]
    assert told["joined"] > 0.9 * told["frames"]
    for stage in ("end_to_end", "receive", "decode", "wait", "infer", "publish", "deliver"):
        assert f"{stage}.p50" in told
    assert told["end_to_end.max"] >= told["end_to_end.p90"] >= told["end_to_end.p50"]


def test_diagnostics_tell_each_node_once_a_second(running: Any) -> None:
    heard = running.listen(DiagnosticArray, "/diagnostics")
    running.spin_for(2.5)
    prefix = running.namespace.lstrip("/")
    for node in ("camera", "detector", "profiler"):
        times = [
            to_nanoseconds(message.header.stamp)
            for message in heard
            if message.status[0].name == f"{prefix}/{node}"
        ]
        assert 2 <= len(times) <= 4, node


def test_listener_that_never_reads_delays_nobody(running: Any) -> None:
    deaf = rclpy.create_node("deaf", namespace=running.namespace)
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
    for topic_type, topic in (
        (Detection2DArray, "detections"),
        (DiagnosticArray, "detector/stages"),
        (Image, "detector/debug_image"),
    ):
        deaf.create_subscription(topic_type, topic, lambda _: None, qos)  # and never spun
    running.spin_for(0.3)
    for _ in range(100):
        detect(running, picture())
    deaf.destroy_node()


# Graphs of their own.


def test_without_a_subscriber_there_is_no_inference(graph: Any, manifest: Path) -> None:
    graph.start_container(manifest, profile=False)  # the profiler would be a subscriber
    for _ in range(5):
        graph.send(picture())
        graph.spin_for(0.05)
    counters = graph.counters("detector")
    assert counters["processed"] == 0
    assert counters["not_wanted"] > 0
    detections = graph.listen(Detection2DArray, "detections")
    graph.answer_to(graph.send(picture()), detections)
    assert graph.counters("detector")["processed"] == 1


def test_compressed_images_are_found_where_no_raw_ones_are(graph: Any, manifest: Path) -> None:
    graph.start_container(manifest)
    detections = graph.listen(Detection2DArray, "detections")
    for suffix in (".jpg", ".png"):
        answer = graph.answer_to(graph.send_compressed(picture(BLUE), suffix), detections)
        assert only_block(answer)[0] == "blue_block"


def test_two_cameras_are_told_apart_and_served_in_turn(graph: Any, manifest: Path) -> None:
    graph.start_container(manifest, cameras=["left", "right"])
    detections = graph.listen(Detection2DArray, "detections")
    stages = graph.listen(DiagnosticArray, "detector/stages")
    for i in range(6):
        side, colour = (("left", RED), ("right", GREEN))[i % 2]
        header = graph.next_header(frame_id=f"{side}_optical")
        graph.send(picture(colour), topic=f"{side}/image", header=header)
        answer = graph.answer_to(header, detections)
        assert only_block(answer)[0] == ("red_block", "green_block")[i % 2]
        assert graph.answer_to(header, stages).status[0].name == side
    for side in ("left", "right"):
        assert graph.counters(side)["received"] == 3


def test_flood_of_one_camera_does_not_starve_the_other(graph: Any, manifest: Path) -> None:
    graph.start_container(manifest, cameras=["left", "right"])
    detections = graph.listen(Detection2DArray, "detections")
    answered = 0
    for _ in range(10):
        for _ in range(20):
            graph.send(picture(RED), topic="left/image")
        header = graph.send(picture(GREEN), topic="right/image")
        answered += only_block(graph.answer_to(header, detections))[0] == "green_block"
    assert answered == 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signal_ends_the_container_cleanly_and_its_ledger_is_whole(
    graph: Any, manifest: Path, number: signal.Signals
) -> None:
    ledger = graph.folder / "ledger"
    container = graph.start_container(manifest, profiler__output_dir=ledger)
    detections = graph.listen(Detection2DArray, "detections")
    headers = [graph.send(picture())]
    graph.answer_to(headers[0], detections)
    for _ in range(9):
        headers.append(graph.send(picture()))
        graph.answer_to(headers[-1], detections)
    graph.spin_for(0.3)
    container.send_signal(number)
    assert container.wait(timeout=10) == 0
    assert "Traceback" not in graph.logs()

    rows = [json.loads(line) for line in (ledger / "ledger.jsonl").read_text().splitlines()]
    assert [row["stamp_ns"] for row in rows] == [to_nanoseconds(h.stamp) for h in headers]
    for row in rows:
        assert row["joined"]
        assert row["n_detections"] == 1
        assert sum(row["stages_ns"].values()) == row["end_to_end_ns"]
        assert all(row["stages_ns"][s] >= 0 for s in set(STAGES) - {"track", "deliver"})
    found = [json.loads(line) for line in (ledger / "detections.jsonl").read_text().splitlines()]
    assert [row["detections"][0]["class"] for row in found] == ["red_block"] * 10
    assert json.loads((ledger / "trace.json").read_text())
    counters = json.loads((ledger / "counters.json").read_text())
    assert counters["profiler"]["frames"] == 10
    assert f"{graph.namespace.lstrip('/')}/camera" in counters["nodes"]
