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
from collections.abc import Callable, Sequence

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


def run(make_nodes: Callable[[], Sequence[ManagedNode]]) -> int:
    """Initialise ROS, spin the nodes until shutdown, and return the exit status."""
    end_with_parent()
    stop = _stop_on_signals()
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    nodes: Sequence[ManagedNode] = []
    try:
        nodes = make_nodes()
        failed = [node for node in nodes if not autostart(node)]
        if any(node.parameter_values()["exit_on_failure"] for node in failed):
            return 1
        gc.collect()
        gc.freeze()  # what lives until the end need not be walked by every collection
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        spin(nodes, stop)
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


def spin(nodes: Sequence[ManagedNode], stop: threading.Event) -> None:
    """Spin each node in a thread of its own until ``stop`` is set or ROS shuts down."""
    executors: list[SingleThreadedExecutor] = []
    threads: list[threading.Thread] = []
    for node in nodes:
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executors.append(executor)
        threads.append(
            threading.Thread(
                target=_spin_until_shutdown, args=(node, executor), name=node.get_name()
            )
        )
    for thread in threads:
        thread.start()
    while rclpy.ok() and not stop.wait(timeout=0.1):
        pass
    rclpy.try_shutdown()
    for thread in threads:
        thread.join()
    for executor in executors:
        executor.shutdown()


def _spin_until_shutdown(node: ManagedNode, executor: SingleThreadedExecutor) -> None:
    """Serve a node; an error that nobody foresaw fails the node, never its thread."""
    with contextlib.suppress(ExternalShutdownException):
        while rclpy.ok():
            try:
                executor.spin()
            except Exception as error:
                if rclpy.ok():  # while shutting down, handles vanish under the executor
                    traceback.print_exc()
                    node.fail(f"unexpected error: {error!r}")


def autostart(node: ManagedNode) -> bool:
    """Configure and activate a node whose parameter ``autostart`` says so; tell whether it went."""
    if not node.parameter_values()["autostart"]:
        return True
    transitions = (node.trigger_configure, node.trigger_activate)
    return all(transition() == TransitionCallbackReturn.SUCCESS for transition in transitions)


def end_with_parent(requested: str | None = None) -> None:
    """Ask the kernel to interrupt this process when its parent is gone.

    Only where the launch file asked for it by the environment: a node started by hand or by an
    init system may well outlive its parent.
    """
    if requested is None:
        requested = os.environ.get(END_WITH_PARENT, "")
    if requested == "1" and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
