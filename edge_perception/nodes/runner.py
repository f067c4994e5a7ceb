"""Running managed nodes in one process: one executor and one thread a node.

The MultiThreadedExecutor is avoided: it submits the same ready handle again and again and starves
images (docs/adr/0002-one-thread-a-node.md has the figures).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from edge_perception.nodes.managed import ManagedNode

END_WITH_PARENT = "EDGE_PERCEPTION_END_WITH_PARENT"
_PR_SET_PDEATHSIG = 1
# A fifth of Python's default. Beside a thread busy in Python a lease then takes 2.4 ms instead of
# 10.5, and that thread gets 1% less done (docs/benchmarks/frames_cpu.json, switch_interval).
_SWITCH_INTERVAL_S = 0.001
_LOOK_S = 0.01  # how often a start that is under way is looked at


def run(make_nodes: Callable[[], Sequence[ManagedNode]]) -> int:
    """Initialise ROS, start and spin the nodes until shutdown, and return the exit status."""
    end_with_parent()
    stop = _stop_on_signals()
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    nodes: Sequence[ManagedNode] = []
    try:
        nodes = make_nodes()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        with _served(nodes) as servers:
            failed = autostart_in_turn(servers, stop)
            if any(node.parameter_values()["exit_on_failure"] for node in failed):
                return 1
            gc.collect()
            gc.freeze()  # what lives until the end need not be walked by every collection
            while rclpy.ok() and not stop.wait(timeout=0.1):
                pass
        return 0
    finally:
        for node in reversed(nodes):  # readers first, so that a ring is closed without leases
            node.stop()
            node.destroy_node()
        rclpy.try_shutdown()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # under launch a second one comes about now


def _stop_on_signals() -> threading.Event:
    """Return what SIGINT and SIGTERM set from now on, however often they come.

    Neither rclpy's handlers nor KeyboardInterrupt will do: those run in a thread that can outlive
    the interpreter, and this one, raised inside Thread.join, makes Python up to 3.12 take a live
    thread for ended (bpo-45274). Both end in an abort.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


class _Server:
    """The executor of one node, spinning in a thread of its own until ROS shuts down."""

    def __init__(self, node: ManagedNode) -> None:
        self.node = node
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(node)
        self.thread = threading.Thread(target=self._spin, name=node.get_name())
        self.thread.start()

    def call(self, function: Callable[[ManagedNode], bool]) -> bool | None:
        """Run a function of the node on its thread; None where ROS shuts down before it has."""
        task = self.executor.create_task(function, self.node)
        while not task.done() and self.thread.is_alive():
            self.thread.join(timeout=_LOOK_S)
        result: bool | None = task.result()
        return result

    def _spin(self) -> None:
        """Serve the node; an error that nobody foresaw fails the node, never its thread."""
        with contextlib.suppress(ExternalShutdownException):
            while rclpy.ok():
                try:
                    self.executor.spin()
                except Exception as error:
                    if rclpy.ok():  # while shutting down, handles vanish under the executor
                        traceback.print_exc()
                        self.node.fail(f"unexpected error: {error!r}")


@contextlib.contextmanager
def _served(nodes: Sequence[ManagedNode]) -> Iterator[list[_Server]]:
    """Serve the nodes inside the block; at its end ROS shuts down, and no thread is left."""
    servers = [_Server(node) for node in nodes]
    try:
        yield servers
    finally:
        rclpy.try_shutdown()
        for server in servers:
            server.thread.join()
            server.executor.shutdown()


def autostart_in_turn(servers: Sequence[_Server], stop: threading.Event) -> list[ManagedNode]:
    """Start one node after the other, each on its own thread; return those that failed.

    All are served meanwhile: an engine may be built for minutes, and neither the camera nor
    anybody's diagnostics and services wait for that. Only their starts do, because a build times
    kernels and a model looks at the memory that is left. A stop waits for the start under way.
    """
    failed = []
    for server in servers:
        if stop.is_set():
            break
        if server.call(autostart) is False:
            failed.append(server.node)
    return failed


def autostart(node: ManagedNode) -> bool:
    """Configure and activate a node whose parameter ``autostart`` says so; tell whether it went.

    Where somebody else has asked for a transition meanwhile, the node's state is theirs.
    """
    if not node.parameter_values()["autostart"]:
        return True
    transitions = (node.trigger_configure, node.trigger_activate)
    try:
        return all(transition() == TransitionCallbackReturn.SUCCESS for transition in transitions)
    except RuntimeError as error:  # RCLError, which rclpy exports nowhere: no such transition now
        node.get_logger().warning(f"autostart is left to who asked before: {error}")
        return True


def end_with_parent(requested: str | None = None) -> None:
    """Ask the kernel to interrupt this process when its parent is gone.

    Only where the launch file asked for it by the environment: a node started by hand or by an
    init system may well outlive its parent.
    """
    if requested is None:
        requested = os.environ.get(END_WITH_PARENT, "")
    if requested == "1" and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
