"""A graph under test: node processes of this package, and this process as their world."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pictures import encode_file, raw_fields

rclpy = pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from tiny_models import write_detector
from vision_msgs.msg import Detection2DArray, LabelInfo

from edge_perception.nodes.messages import from_status, to_header

DATA = Path(__file__).resolve().parents[1] / "data"
RELIABLE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
# The id of each transition and the state it leads to.
TRANSITIONS = {
    "configure": (1, "inactive"),
    "cleanup": (2, "unconfigured"),
    "activate": (3, "active"),
    "deactivate": (4, "inactive"),
}
_namespaces = (f"/graph_{os.getpid()}_{i}" for i in itertools.count())

# What is published before the other side knows of the match too is lost to it.
_MATCHED_BY_BOTH_S = 0.2


class Graph:
    """One namespace of nodes, and what this process hears and says in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespace = next(_namespaces)
        self.node = rclpy.create_node("world", namespace=self.namespace)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.told: dict[str, DiagnosticArray] = {}
        self._stamp_ns = time.time_ns()
        self._publishers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_told, RELIABLE)

    # Processes.

    def start(
        self,
        module: str,
        remap: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        **parameters: Any,
    ) -> subprocess.Popen[bytes]:
        """Start ``edge_perception.nodes.<module>`` as a process, or a script of the tests' own.

        ``node__name=value`` sets a parameter of one node, ``name=value`` of every one.
        """
        number = len(self.processes)
        values = self.folder / f"{module}{number}.yaml"
        values.write_text(yaml.safe_dump(_by_node(parameters), sort_keys=False), encoding="utf-8")
        script = DATA / f"{module}.py"
        what = [str(script)] if script.exists() else ["-m", f"edge_perception.nodes.{module}"]
        command = [sys.executable, *what, *arguments, "--ros-args"]
        command += ["-r", f"__ns:={self.namespace}", "--params-file", str(values)]
        for old, new in (remap or {}).items():
            command += ["-r", f"{old}:={new}"]
        with (self.folder / f"{module}{number}.log").open("wb") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        return self.processes[-1]

    def start_container(self, manifest: Path, **parameters: Any) -> subprocess.Popen[bytes]:
        """Start a container that goes to active by itself, and wait until it is."""
        given = {"manifest": manifest, "threads": 1, "autostart": True, **parameters}
        process = self.start("container", **given)
        self.wait_for(lambda: self.level("detector") in ("ok", "warn"))
        return process

    def start_arrangement(
        self, arrangement: str, manifest: Path, transport: str, **parameters: Any
    ) -> None:
        """Start camera and detector, in one "container" or as "processes", over a transport."""
        parameters = {"camera__frame_transport": transport, **parameters}
        if arrangement == "container":
            self.start_container(manifest, **parameters)
            return
        given = {"manifest": manifest, "threads": 1, "autostart": True, **parameters}
        self.start("camera", share_frames=True, **given)
        self.start("detector", **given)
        for node in ("camera", "detector"):
            self.wait_for(lambda node=node: self.level(node) in ("ok", "warn"))

    def logs(self) -> str:
        """What every process printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    # Time.

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Spin until the condition holds; fail with the processes' logs if it never does."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s} s in vain\n{self.logs()}"
            self.executor.spin_once(timeout_sec=0.02)

    def spin_for(self, seconds: float) -> None:
        """Spin for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)

    # Topics.

    def listen(self, message_type: type, topic: str, qos: Any = RELIABLE) -> list[Any]:
        """Subscribe, wait for the publisher, and return the list that messages are put in."""
        heard: list[Any] = []
        subscription = self.node.create_subscription(message_type, topic, heard.append, qos)
        self.wait_for(lambda: subscription.get_publisher_count())
        return heard

    def listen_to_detections(
        self, send: Callable[[np.ndarray], Header] | None = None
    ) -> list[Detection2DArray]:
        """Listen, and send pictures until one is answered; return the list of what comes from then.

        A frame handle that is published before the detector's process and the camera's know of
        each other is lost, like any best-effort message.
        """
        heard = self.listen(Detection2DArray, "detections")

        def answered() -> bool:
            (send or self.send)(np.zeros((128, 128, 3), np.uint8))
            self.spin_for(0.1)
            return bool(heard)

        self.wait_for(answered)
        self.spin_for(0.2)  # what is still under way
        heard.clear()
        return heard

    def publisher(self, message_type: type, topic: str) -> Any:
        """Return the publisher of a topic once somebody listens to it."""
        if topic not in self._publishers:
            publisher = self.node.create_publisher(message_type, topic, RELIABLE)
            self._publishers[topic] = publisher
            self.wait_for(lambda: publisher.get_subscription_count())
            self.spin_for(_MATCHED_BY_BOTH_S)
        publisher = self._publishers[topic]
        self.wait_for(lambda: publisher.get_subscription_count())
        return publisher

    def next_header(self, frame_id: str = "camera_optical") -> Header:
        """Return a header later than every one before."""
        self._stamp_ns = max(self._stamp_ns + 1_000_000, time.time_ns())
        return to_header(self._stamp_ns, frame_id)

    def send(
        self,
        image: np.ndarray,
        encoding: str = "rgb8",
        padding: int = 0,
        *,
        topic: str = "image",
        header: Header | None = None,
        last_padding: bool = True,
    ) -> Header:
        """Publish a raw image and return its header."""
        header = header or self.next_header()
        fields = raw_fields(image, encoding, padding, last_padding=last_padding)
        self.publisher(Image, topic).publish(Image(header=header, **fields))
        return header

    def send_compressed(self, image: np.ndarray, suffix: str = ".jpg") -> Header:
        """Publish a compressed image and return its header."""
        header = self.next_header()
        message = CompressedImage(header=header, format=suffix[1:], data=encode_file(image, suffix))
        self.publisher(CompressedImage, "image/compressed").publish(message)
        return header

    def answer_to(self, header: Header, heard: list[Any]) -> Any:
        """Wait for the message that carries a header, and return it."""
        self.wait_for(lambda: any(message.header == header for message in heard))
        return next(message for message in heard if message.header == header)

    # Diagnostics, parameters, lifecycle.

    def _on_told(self, message: DiagnosticArray) -> None:
        prefix = f"{self.namespace.lstrip('/')}/"
        for status in message.status:
            if status.name.startswith(prefix):
                self.told[status.name[len(prefix) :]] = status

    def level(self, node: str) -> str:
        """The node's newest level, or "" before it told any."""
        status = self.told.get(node)
        return ["ok", "warn", "error", "stale"][status.level[0]] if status else ""

    def message(self, node: str) -> str:
        """The node's newest message."""
        return self.told[node].message if node in self.told else ""

    def counters(self, node: str, *, fresh: bool = True) -> dict[str, Any]:
        """What the node's next diagnostics tell, numbers parsed."""
        if fresh:
            self.told.pop(node, None)
            self.wait_for(lambda: node in self.told)
        return {
            key: float(value) if value.replace(".", "", 1).lstrip("-").isdigit() else value
            for key, value in from_status(self.told[node]).items()
        }

    def call(self, service_type: type, name: str, request: Any) -> Any:
        """Call a service of a node; None if no answer comes.

        A server that has not yet discovered the client drops its answer, so a new client waits
        a little, and whoever calls must be able to call again.
        """
        if name not in self._clients:
            self._clients[name] = self.node.create_client(service_type, name)
            self.wait_for(self._clients[name].service_is_ready)
            self.spin_for(0.1)
        future = self._clients[name].call_async(request)
        deadline = time.monotonic() + 5
        self.wait_for(lambda: future.done() or time.monotonic() > deadline)
        return future.result() if future.done() else None

    def set_parameters(self, node: str, **values: Any) -> Any:
        """Set parameters together and return the result."""
        request = SetParametersAtomically.Request(
            parameters=[Parameter(name, value=v).to_parameter_msg() for name, v in values.items()]
        )
        name = f"{node}/set_parameters_atomically"
        answer = self.call(SetParametersAtomically, name, request)
        return (answer or self.call(SetParametersAtomically, name, request)).result

    def change_state(self, node: str, transition: str) -> bool:
        """Ask for a transition and tell whether it succeeded."""
        request = ChangeState.Request()
        request.transition.id, goal = TRANSITIONS[transition]
        answer = self.call(ChangeState, f"{node}/change_state", request)
        return bool(answer.success) if answer else self.state(node) == goal

    def state(self, node: str) -> str:
        """The node's lifecycle state."""
        name = f"{node}/get_state"
        answer = self.call(GetState, name, GetState.Request())
        answer = answer or self.call(GetState, name, GetState.Request())
        return str(answer.current_state.label)

    def close(self) -> None:
        """End every process, and this world."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self.processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.executor.shutdown()
        self.node.destroy_node()


def _by_node(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a parameter file holds: what is meant for every node first, as later ones win."""
    by_node: dict[str, dict[str, Any]] = {"/**": {}}
    for name, value in parameters.items():
        node, parted, own_name = name.partition("__")
        given = by_node.setdefault(f"/**/{node}" if parted else "/**", {})
        given[own_name if parted else name] = str(value) if isinstance(value, Path) else value
    return {node: {"ros__parameters": values} for node, values in by_node.items() if values}


@pytest.fixture(scope="session")
def ros() -> Iterator[None]:
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def graph(ros: None, tmp_path: Path) -> Iterator[Graph]:
    """A graph of the test's own."""
    made = Graph(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def module_graph(ros: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    """A graph that the tests of a module share."""
    made = Graph(tmp_path_factory.mktemp("graph"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a tiny YOLOv8."""
    return write_detector(tmp_path_factory.mktemp("tiny"))


class RunningGraph(Graph):
    """A graph with a container that runs, and ears on what it publishes."""

    def __init__(self, folder: Path, manifest: Path) -> None:
        super().__init__(folder)
        self.container = self.start_container(manifest)
        self.detections = self.listen(Detection2DArray, "detections")
        self.label_info = self.listen(LabelInfo, "label_info", LATCHED)
        self.stages = self.listen(DiagnosticArray, "detector/stages")


@pytest.fixture(scope="module")
def running(
    ros: None, manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGraph]:
    """One container for all tests of a module."""
    made = RunningGraph(tmp_path_factory.mktemp("running"), manifest)
    yield made
    made.close()
