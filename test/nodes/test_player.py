"""The player as a process of its own, heard over DDS by another process: this one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from vision_msgs.msg import Detection2DArray

from edge_perception.nodes.player import published_names
from edge_perception.replay.bag_writer import BagWriter
from edge_perception.replay.messages import CAMERA_INFO, COMPRESSED_IMAGE, DETECTIONS, IMAGE
from edge_perception.replay.playback import read_ledger

FIRST_NS = 1_700_000_000_000_000_000
INTERVAL_NS = 20_000_000
FRAMES = 25
RELIABLE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)


def to_ns(header: Any) -> int:
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


class Listener:
    """A node that keeps what it hears."""

    def __init__(self, context: Any) -> None:
        self.node = rclpy.create_node("listener", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)

    def listen(self, message_type: type, topic: str, qos: Any = RELIABLE) -> list[Any]:
        heard: list[Any] = []
        self.node.create_subscription(message_type, topic, heard.append, qos)
        return heard

    def spin_until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.05)


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> int:
    """Return a domain of our own, so that no other graph on this network is heard."""
    domain_id = random.randint(1, 100)
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain_id))
    return domain_id


@pytest.fixture
def listener(domain: int) -> Iterator[Listener]:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    heard = Listener(context)
    yield heard
    heard.executor.shutdown()
    heard.node.destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    path = tmp_path / "demo.mcap"
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            stamp_ns = FIRST_NS + index * INTERVAL_NS
            writer.write_image(stamp_ns, b"\xff\xd8" + bytes([index]) * 20_000)
            writer.write_ground_truth(stamp_ns, np.array([[1, 2, 3, 4]], np.float32), ["mug"])
    return path


@pytest.fixture
def start_player(domain: int) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def start(
        source: Path | str, *, arguments: tuple[str, ...] = (), **parameters: object
    ) -> subprocess.Popen[str]:
        given = {"source": str(source), "autostart": True, **parameters}
        settings = [
            text
            for name, value in given.items()
            for text in ("-p", f"{name}:={str(value).lower() if value in (True, False) else value}")
        ]
        command = [sys.executable, "-m", "edge_perception.nodes.player", "--ros-args", *settings]
        command += arguments
        processes.append(
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_every_frame_arrives_with_its_truth_and_the_player_ends_by_itself(
    listener: Listener, bag: Path, start_player: Callable[..., Any], tmp_path: Path
) -> None:
    images = listener.listen(CompressedImage, "/image/compressed")
    truths = listener.listen(Detection2DArray, "/ground_truth")
    before_ns = time.time_ns()
    player = start_player(bag, ledger=tmp_path / "player.jsonl")
    listener.spin_until(lambda: player.poll() is not None)
    listener.spin_until(lambda: len(truths) == FRAMES, timeout_s=2)

    assert player.wait(timeout=10) == 0
    stamps = [to_ns(image.header) for image in images]
    assert [stamp - stamps[0] for stamp in stamps] == [i * INTERVAL_NS for i in range(FRAMES)]
    assert before_ns < stamps[0] < time.time_ns()
    assert [to_ns(truth.header) for truth in truths] == stamps
    assert [to_ns(truth.detections[0].header) for truth in truths] == stamps
    assert [image.data[2] for image in images] == list(range(FRAMES))
    assert truths[0].detections[0].results[0].hypothesis.class_id == "mug"
    sent = read_ledger(tmp_path / "player.jsonl")
    assert [row.stamp_ns for row in sent if row.topic == "/image/compressed"] == stamps


@pytest.mark.parametrize(
    ("names", "expected"), [("graph", "/robot/image/compressed"), ("recorded", "/robot/left/image")]
)
def test_only_camera_of_a_bag_is_published_where_the_graph_listens(
    listener: Listener,
    start_player: Callable[..., Any],
    tmp_path: Path,
    names: str,
    expected: str,
) -> None:
    path = tmp_path / "named.mcap"
    with BagWriter(path, namespace="/left/image") as writer:
        writer.write_image(FIRST_NS, b"\xff\xd8jpeg")
    topic = expected if names == "graph" else f"{expected}/image/compressed"
    images = listener.listen(CompressedImage, topic)
    start_player(path, topic_names=names, arguments=("-r", "__ns:=/robot"))
    listener.spin_until(lambda: bool(images))
    assert len(images) == 1


@pytest.mark.parametrize(
    ("topics", "names", "reason"),
    [
        ({"/a/image_raw": IMAGE}, {"/a/image_raw": "image"}, "one camera"),
        ({"/a": IMAGE, "/b": COMPRESSED_IMAGE}, {}, "two image topics keep their names"),
        (
            {"/a": COMPRESSED_IMAGE, "/i": CAMERA_INFO, "/t": DETECTIONS},
            {"/a": "image/compressed", "/i": "camera_info", "/t": "ground_truth"},
            "a camera with its truth",
        ),
        (
            {"/a": IMAGE, "/i": CAMERA_INFO, "/j": CAMERA_INFO},
            {"/a": "image"},
            "two camera infos keep their names",
        ),
        ({}, {}, "nothing"),
    ],
)
def test_published_names(topics: dict[str, str], names: dict[str, str], reason: str) -> None:
    assert published_names(topics) == names, reason


def test_topics_are_chosen_by_patterns(
    listener: Listener, bag: Path, start_player: Callable[..., Any]
) -> None:
    images = listener.listen(CompressedImage, "/image/compressed")
    truths = listener.listen(Detection2DArray, "/ground_truth")
    player = start_player(bag, topics="['/image/*']")
    listener.spin_until(lambda: player.poll() is not None)
    assert player.wait(timeout=10) == 0
    assert len(images) == FRAMES
    assert not truths


def test_nobody_is_waited_for_where_no_images_are_played(
    bag: Path, start_player: Callable[..., Any], tmp_path: Path
) -> None:
    ledger = tmp_path / "player.jsonl"
    player = start_player(bag, topics="['/ground_truth']", wait_timeout_s=3600.0, ledger=ledger)
    assert player.wait(timeout=100) == 0
    assert len(read_ledger(ledger)) == FRAMES


def test_topics_that_the_source_lacks_are_told(bag: Path, start_player: Callable[..., Any]) -> None:
    player = start_player(bag, topics="['/imaeg/*']")
    _, told = player.communicate(timeout=60)
    assert player.returncode == 1
    assert "patterns of /image/compressed, /ground_truth" in told


def test_recorded_stamps_come_with_a_clock(
    listener: Listener, bag: Path, start_player: Callable[..., Any]
) -> None:
    images = listener.listen(CompressedImage, "/image/compressed", qos_profile_sensor_data)
    clock = listener.listen(Clock, "/clock")
    player = start_player(bag, stamps="recorded")
    listener.spin_until(lambda: player.poll() is not None)

    assert [to_ns(image.header) for image in images] == [
        FIRST_NS + i * INTERVAL_NS for i in range(FRAMES)
    ]
    told = [message.clock.sec * 1_000_000_000 + message.clock.nanosec for message in clock]
    assert told == sorted(told)
    assert told[0] >= FIRST_NS
    assert told[-1] >= FIRST_NS + (FRAMES - 1) * INTERVAL_NS


def test_a_subscriber_that_never_reads_delays_nothing(
    listener: Listener, bag: Path, start_player: Callable[..., Any], tmp_path: Path
) -> None:
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
    listener.listen(CompressedImage, "/image/compressed", qos)  # and never spun
    player = start_player(bag, fps=200.0, ledger=tmp_path / "player.jsonl")
    assert player.wait(timeout=60) == 0
    rows = [r for r in read_ledger(tmp_path / "player.jsonl") if r.topic == "/image/compressed"]
    due = [row.due_monotonic_ns - rows[0].due_monotonic_ns for row in rows]
    assert due == [i * 5_000_000 for i in range(FRAMES)]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nowhere/at/all.mcap", "nothing to play there"),
        ("garbage.mcap", "cannot be read"),
    ],
)
def test_a_source_that_cannot_be_played_is_told(
    start_player: Callable[..., Any], tmp_path: Path, source: str, reason: str
) -> None:
    (tmp_path / "garbage.mcap").write_bytes(bytes(range(256)) * 10)
    player = start_player(tmp_path / source)
    _, told = player.communicate(timeout=60)
    assert player.returncode == 1
    assert reason in told


def test_an_unknown_kind_of_stamps_is_told(bag: Path, start_player: Callable[..., Any]) -> None:
    player = start_player(bag, stamps="mine")
    _, told = player.communicate(timeout=60)
    assert player.returncode == 1
    assert "shifted" in told


def test_interrupt_ends_a_looping_player_cleanly(
    listener: Listener, bag: Path, start_player: Callable[..., Any]
) -> None:
    images = listener.listen(CompressedImage, "/image/compressed")
    player = start_player(bag, loop=True)
    listener.spin_until(lambda: len(images) > FRAMES)
    assert len(images) > FRAMES
    player.send_signal(signal.SIGINT)
    _, told = player.communicate(timeout=30)
    assert player.returncode == 0
    assert "Traceback" not in told
