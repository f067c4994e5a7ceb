"""The container: cameras, detector and profiler in one process, over one ring a camera.

One process is the default because streams of separate processes are time-sliced on a GPU, and
because a frame then reaches its readers as a pointer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rclpy.node import Node

from edge_perception.nodes.camera import CameraNode
from edge_perception.nodes.detector import DetectorNode
from edge_perception.nodes.frame_streams import LocalFrameStream
from edge_perception.nodes.managed import ManagedNode
from edge_perception.nodes.profiler import ProfilerNode
from edge_perception.nodes.runner import run


def compose(cameras: Sequence[str] = ("camera",)) -> list[ManagedNode]:
    """Return the nodes of one graph, not yet configured.

    One camera reads ``image``; several read ``<camera>/image`` each.
    """
    camera_nodes = [
        CameraNode(name, image_topic="image" if len(cameras) == 1 else f"{name}/image")
        for name in cameras
    ]
    streams = [LocalFrameStream(camera) for camera in camera_nodes]
    return [*camera_nodes, DetectorNode(streams=streams), ProfilerNode()]


def _camera_names() -> Sequence[str]:
    """Read the container's own parameter ``cameras``, then leave: it is no part of the graph."""
    node = Node("container")
    names: Sequence[str] = node.declare_parameter("cameras", ["camera"]).value
    node.destroy_node()
    return names


def main() -> int:
    """Run the container."""
    return run(lambda: compose(_camera_names()))


if __name__ == "__main__":
    sys.exit(main())
