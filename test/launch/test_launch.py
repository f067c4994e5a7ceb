"""The launch files, run by the real launch: nodes become active, come back, and end cleanly."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="launch and launch_ros come with an installed ROS 2")
psutil = pytest.importorskip("psutil")
rclpy = pytest.importorskip("rclpy")
import numpy as np
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters
from sensor_msgs.msg import Image
from tiny_models import write_detector

from edge_perception.replay.bag_writer import BagWriter

RUNNER = Path(__file__).with_name("run_launch_file.py")
NODES = ("camera", "detector", "profiler")
TIMEOUT_S = 40.0
PERIOD_NS = 33_333_333


class Launched:
    """A launch file running in a session of its own, and what its nodes say of themselves."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(RUNNER), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("onlooker", context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def call(self, service_type: type, name: str, request: object) -> object | None:
        client = self.node.create_client(service_type, name)
        try:
            if not client.wait_for_service(timeout_sec=1.0):
                return None
            future = client.call_async(request)
            rclpy.spin_until_future_complete(self.node, future, self.executor, timeout_sec=2.0)
            return future.result()
        finally:
            self.node.destroy_client(client)

    def state(self, node: str) -> int | None:
        answer = self.call(GetState, f"{node}/get_state", GetState.Request())
        return answer.current_state.id if answer is not None else None

    def has_active(self, *nodes: str) -> bool:
        return all(self.state(node) == State.PRIMARY_STATE_ACTIVE for node in nodes)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals, everyone: bool = True) -> int:
        """Send a signal, by default as Ctrl-C does: to all; return the exit status."""
        (os.killpg if everyone else os.kill)(self.process.pid, number)
        return self.process.wait(timeout=TIMEOUT_S)


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_detector(tmp_path / "model")


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    running: list[Launched] = []

    def launch(*arguments: str) -> Launched:
        running.append(Launched(tmp_path / f"launch{len(running)}.log", *arguments))
        return running[-1]

    yield launch
    for one in running:
        print(one.log.read_text())
        one.close()


@pytest.mark.parametrize("processes", ["single", "separate"])
def test_graph_becomes_active_and_ends_cleanly_on_ctrl_c(
    launched: Callable[..., Launched], manifest: Path, processes: str
) -> None:
    graph = launched(
        "perception.launch.py",
        f"manifest:={manifest}",
        f"processes:={processes}",
        "namespace:=front",
        "image:=/wide/image_raw",
    )
    assert wait_for(lambda: graph.has_active(*(f"/front/{name}" for name in NODES)))
    # The camera subscribes to raw or compressed images once it sees which are published.
    publisher = graph.node.create_publisher(Image, "/wide/image_raw", 10)
    assert wait_for(lambda: publisher.get_subscription_count() == 1)
    assert "/front/detections" in dict(graph.node.get_topic_names_and_types())
    nodes = graph.children()
    assert graph.end(signal.SIGINT) == 0
    assert "process has died" not in graph.log.read_text()
    assert not any(node.is_running() for node in nodes)


def test_killed_container_comes_back_active(
    launched: Callable[..., Launched], manifest: Path
) -> None:
    graph = launched("perception.launch.py", f"manifest:={manifest}")
    assert wait_for(lambda: graph.has_active(*NODES))
    (container,) = graph.children()
    container.kill()
    assert wait_for(lambda: [child.pid for child in graph.children()] not in ([], [container.pid]))
    assert wait_for(lambda: graph.has_active(*NODES))


def test_node_deactivated_by_hand_stays_inactive(
    launched: Callable[..., Launched], manifest: Path
) -> None:
    graph = launched("perception.launch.py", f"manifest:={manifest}")
    assert wait_for(lambda: graph.has_active(*NODES))
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE))
    assert graph.call(ChangeState, "detector/change_state", request).success
    time.sleep(1.0)
    assert graph.state("detector") == State.PRIMARY_STATE_INACTIVE


def test_nodes_end_when_launch_is_killed(launched: Callable[..., Launched], manifest: Path) -> None:
    graph = launched("perception.launch.py", f"manifest:={manifest}", "processes:=separate")
    assert wait_for(lambda: graph.has_active(*NODES))
    nodes = graph.children()
    graph.end(signal.SIGKILL, everyone=False)
    assert wait_for(lambda: not any(node.is_running() for node in nodes))


def test_parameters_file_is_read_after_the_device_profile(
    launched: Callable[..., Launched], manifest: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("/**/detector:\n  ros__parameters:\n    track: true\n")
    graph = launched("perception.launch.py", f"manifest:={manifest}", f"params_file:={file}")
    assert wait_for(lambda: graph.has_active("detector"))
    request = GetParameters.Request(names=["track", "manifest"])
    track, manifest_value = graph.call(GetParameters, "detector/get_parameters", request).values
    assert track.bool_value
    assert manifest_value.string_value == str(manifest)


def test_replay_ends_with_the_recording_and_leaves_a_ledger(
    launched: Callable[..., Launched], manifest: Path, tmp_path: Path
) -> None:
    bag, ledger = tmp_path / "short.mcap", tmp_path / "ledger"
    with BagWriter(bag) as writer:
        for index in range(30):
            picture = np.full((64, 64, 3), index * 8, np.uint8)
            writer.write_image(1_700_000_000_000_000_000 + index * PERIOD_NS, _jpeg(picture))
    replay = launched(
        "replay.launch.py", f"source:={bag}", f"manifest:={manifest}", f"output_dir:={ledger}"
    )
    assert replay.process.wait(timeout=TIMEOUT_S) == 0
    assert (ledger / "ledger.jsonl").read_text().count("\n") > 0


def _jpeg(picture: np.ndarray) -> bytes:
    simplejpeg = pytest.importorskip("simplejpeg")
    return simplejpeg.encode_jpeg(picture, colorspace="BGR")
