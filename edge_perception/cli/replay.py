"""``edge-perception replay``: the player alone, for a graph that runs elsewhere."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "replay",
        help="publish a bag, a folder of images, a video or a camera as topics",
        description="Becomes the player node, active at once. Everything else is a ROS"
        " parameter of that node (docs/replay.md).",
    )
    parser.add_argument("source", help="bag, folder, video file or /dev/videoN")
    parser.add_argument("--rate", type=float, default=1.0, help="speed; default: %(default)s")
    parser.add_argument("--fps", type=float, default=0.0, help="images a second; default: recorded")
    parser.add_argument("--loop", action="store_true", help="start again at the end")
    parser.add_argument("--stamps", choices=("shifted", "recorded"), default="shifted")
    parser.add_argument("--wait", type=int, default=1, help="subscribers to wait for")
    parser.add_argument("--ledger", default="", help="file for one JSON line a message")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Replace this process by the player's; returns only if that fails."""
    from edge_perception.replay.graph_process import ros_arguments

    parameters = {
        "autostart": True,
        "source": options.source,
        "rate": options.rate,
        "fps": options.fps,
        "loop": options.loop,
        "stamps": options.stamps,
        "wait_for_subscribers": options.wait,
        "ledger": options.ledger,
    }
    arguments = ["-m", "edge_perception.nodes.player", *ros_arguments(parameters)]
    os.execv(sys.executable, [sys.executable, *arguments])
    return 1
