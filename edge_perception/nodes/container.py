"""The container: cameras, detector, VLM and profiler in one process, over one ring a camera.

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
from edge_perception.nodes.vlm import VlmNode


def compose(
    cameras: Sequence[str] = ("camera",), profile: bool = True, vlm: bool = False
) -> list[ManagedNode]:
    """Return the nodes of one graph, not yet configured.

    One camera reads ``image``; several read ``<camera>/image`` each. ``profile`` adds the
    profiler, ``vlm`` the node that answers and captions.
    """
    camera_nodes = [
        CameraNode(name, image_topic="image" if len(cameras) == 1 else f"{name}/image")
        for name in cameras
    ]
    readers: list[ManagedNode] = [DetectorNode(streams=_streams(camera_nodes))]
    if vlm:
        readers.append(VlmNode(streams=_streams(camera_nodes)))
    if profile:
        readers.append(ProfilerNode())
    return [*camera_nodes, *readers]


def _streams(camera_nodes: Sequence[CameraNode]) -> list[LocalFrameStream]:
    """A stream of every camera, for one reader: each counts what it has seen for itself."""
    return [LocalFrameStream(camera) for camera in camera_nodes]


def _compose_as_told() -> list[ManagedNode]:
    """Compose by the container's own parameters, ``cameras``, ``profile`` and ``vlm``."""
    node = Node("container")  # only to read them: it is no part of the graph
    cameras: Sequence[str] = node.declare_parameter("cameras", ["camera"]).value
    profile: bool = node.declare_parameter("profile", True).value
    vlm: bool = node.declare_parameter("vlm", False).value
    node.destroy_node()
    return compose(cameras, profile, vlm)


def main() -> int:
    """Run the container."""
    return run(_compose_as_told)


if __name__ == "__main__":
    sys.exit(main())
