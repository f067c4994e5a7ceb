"""The player node: a recording or a live device as a camera on the network.

The only image topic of a source is published where the graph listens, whatever it was recorded
on. Messages are published as the serialised bytes that the source yields, never deserialised on
the way, except ground truth, whose inner stamps move too.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.lifecycle import LifecyclePublisher
from rclpy.qos import QoSProfile
from rclpy.timer import Timer
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from vision_msgs.msg import Detection2DArray

from edge_perception.errors import ConfigError, EdgePerceptionError
from edge_perception.nodes.managed import OVERRIDABLE, ManagedNode
from edge_perception.nodes.messages import to_time
from edge_perception.nodes.params import Declaration
from edge_perception.nodes.runner import run
from edge_perception.replay import messages
from edge_perception.replay.playback import STAMPS, Playback, PlayOptions
from edge_perception.replay.schedule import MAX_RATE, MIN_RATE
from edge_perception.replay.source import DEFAULT_FPS, Source
from edge_perception.replay.sources import open_source

PARAMETERS = (
    Declaration("exit_on_failure", True, "End the process with status 1 where autostart fails."),
    Declaration("source", "", "Bag, folder of images, video file or /dev/videoN.", fixed=True),
    Declaration(
        "rate", 1.0, "Speed relative to the recording.", bounds=(MIN_RATE, MAX_RATE), fixed=True
    ),
    Declaration(
        "fps",
        0.0,
        "Images a second, evenly spaced; 0 keeps the recorded times.",
        bounds=(0.0, 1000.0),
        fixed=True,
    ),
    Declaration("loop", False, "Start again at the end, without a gap.", fixed=True),
    Declaration(
        "stamps",
        "shifted",
        "shifted: headers are moved to now; recorded: they are kept and /clock is published.",
        choices=STAMPS,
        fixed=True,
    ),
    Declaration(
        "topic_names",
        "graph",
        "graph: a topic that is the only one of its kind becomes image or image/compressed,"
        " camera_info, ground_truth; recorded: all keep their names. Both below the namespace.",
        choices=("graph", "recorded"),
        fixed=True,
    ),
    Declaration(
        "topics", ["*"], "Recorded topics to play; shell patterns, such as '/front/*'.", fixed=True
    ),
    Declaration(
        "wait_for_subscribers",
        1,
        "Subscribers that each image topic must have before playing starts; 0 starts at once.",
        bounds=(0, 64),
        fixed=True,
    ),
    Declaration(
        "wait_timeout_s",
        30.0,
        "Playing starts after this many seconds also without the subscribers.",
        bounds=(0.0, 3600.0),
        fixed=True,
    ),
    Declaration(
        "exit_at_end", True, "End the process when the recording has been played.", fixed=True
    ),
    Declaration("ledger", "", "File for one JSON line a message sent; empty for none.", fixed=True),
)

_MESSAGE_CLASSES: Mapping[str, type] = {
    messages.COMPRESSED_IMAGE: CompressedImage,
    messages.IMAGE: Image,
    messages.CAMERA_INFO: CameraInfo,
    messages.DETECTIONS: Detection2DArray,
}
# Where the graph listens by default, by message type.
_GRAPH_NAMES: Mapping[str, str] = {
    messages.COMPRESSED_IMAGE: "image/compressed",
    messages.IMAGE: "image",
    messages.CAMERA_INFO: "camera_info",
    messages.DETECTIONS: "ground_truth",
}
_CLOCK_PERIOD_S = 0.01
# A matched writer may know of its reader before the reader knows of it; best-effort messages sent
# in between are lost.
_SETTLE_S = 0.3
# Reliable readers tell what they have when a heartbeat asks, by default every 3 s in Fast DDS.
_ACKNOWLEDGE_S = 4.0
_QOS_DEPTH = 10


def published_names(topics: Mapping[str, str]) -> dict[str, str]:
    """Return the graph's names for those recorded topics that are the only ones of their kind.

    ``topics`` maps names to message types. Raw and compressed images are one kind.
    """
    kinds = {
        topic: "image" if msgtype in messages.IMAGE_TYPES else msgtype
        for topic, msgtype in topics.items()
    }
    counts = Counter(kinds.values())
    return {
        topic: _GRAPH_NAMES[msgtype]
        for topic, msgtype in topics.items()
        if counts[kinds[topic]] == 1
    }


def chosen_topics(topics: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Return those of a source's topics that match a shell pattern; ``ConfigError`` for none."""
    chosen = {
        topic: msgtype
        for topic, msgtype in topics.items()
        if any(fnmatchcase(topic, pattern) for pattern in patterns)
    }
    if not chosen:
        raise ConfigError(
            "parameter topics matches none of the source's",
            expected=f"patterns of {', '.join(topics)}",
            got=list(patterns),
        )
    return chosen


class PlayerNode(ManagedNode):
    """Plays one source from activation to deactivation, or to its end."""

    def __init__(self, **node_options: Any) -> None:
        super().__init__("player", PARAMETERS, **node_options)
        self.exit_status = 0
        self._source: Source | None = None
        self._options = PlayOptions()
        self._publishers_by_topic: dict[str, LifecyclePublisher] = {}
        self._playback: Playback | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._clock_publisher: LifecyclePublisher | None = None
        self._clock_timer: Timer | None = None

    def configure(self) -> None:
        """Open the source, to see what it holds, and advertise its topics."""
        values = self.parameter_values()
        options = PlayOptions(
            rate=float(values["rate"]),
            fps=float(values["fps"]),
            loop=bool(values["loop"]),
            stamps=str(values["stamps"]),
        )
        self._source = open_source(str(values["source"]), options.fps or DEFAULT_FPS)
        with self._source:  # closed again: readers may be bound to the thread that opens them
            played = chosen_topics(self._source.topics, values["topics"])
        self._options = replace(options, topics=frozenset(played))
        names = published_names(played) if values["topic_names"] == "graph" else {}
        for topic, msgtype in played.items():
            name = names.get(topic, topic.lstrip("/"))
            self._publishers_by_topic[topic] = self._advertise(name, msgtype)
        if self._options.stamps == "recorded":
            self._clock_publisher = self.create_lifecycle_publisher(Clock, "/clock", 10)

    def _advertise(self, topic: str, msgtype: str) -> LifecyclePublisher:
        return self.create_lifecycle_publisher(
            _MESSAGE_CLASSES[msgtype],
            topic,
            QoSProfile(depth=_QOS_DEPTH),
            qos_overriding_options=OVERRIDABLE,
        )

    def activate(self) -> None:
        """Start the playing thread."""
        assert self._source is not None
        ledger = str(self.parameter_values()["ledger"])
        self._playback = Playback(
            self._source, self._options, self._publish, Path(ledger) if ledger else None
        )
        if self._clock_publisher is not None:
            self._clock_timer = self.create_steady_timer(_CLOCK_PERIOD_S, self._publish_clock)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._play, name="playback", daemon=True)
        self._thread.start()

    def deactivate(self) -> None:
        """Stop playing; the next activation starts over."""
        self._stopping.set()
        if self._playback is not None:
            self._playback.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        if self._clock_timer is not None:
            self.destroy_timer(self._clock_timer)
            self._clock_timer = None

    def cleanup(self) -> None:
        """Take the topics back."""
        for publisher in self._publishers_by_topic.values():
            self.destroy_lifecycle_publisher(publisher)
        self._publishers_by_topic = {}
        if self._clock_publisher is not None:
            self.destroy_lifecycle_publisher(self._clock_publisher)
            self._clock_publisher = None
        self._source = None

    def counters(self) -> Mapping[str, object]:
        """Return what was played and how late the player itself was, in milliseconds."""
        if self._playback is None:
            return {}
        counts = asdict(self._playback.counts())
        lateness = counts.pop("lateness")
        return {**counts, **{f"lateness.{name}": value for name, value in lateness.items()}}

    def _publish(self, topic: str, cdr: bytes) -> None:
        publisher = self._publishers_by_topic.get(topic)
        if publisher is not None:
            publisher.publish(cdr)

    def _publish_clock(self) -> None:
        now_ns = None if self._playback is None else self._playback.recorded_now_ns()
        if now_ns is not None and self._clock_publisher is not None:
            self._clock_publisher.publish(Clock(clock=to_time(now_ns)))

    # The playing thread.

    def _play(self) -> None:
        assert self._playback is not None
        try:
            if self._await_subscribers():
                self._playback.run()
        except Exception as error:
            if rclpy.ok():
                self.exit_status = 1
                kind = "" if isinstance(error, EdgePerceptionError) else f"{type(error).__name__}: "
                self.get_logger().error(f"playing ended early: {kind}{error}")
            else:  # shut down while a message was on its way
                self.get_logger().debug(f"shut down while playing: {error}")
        if not self._stopping.is_set():
            self._finish()

    def _await_subscribers(self) -> bool:
        """Wait until each image topic has its subscribers; False if stopped meanwhile."""
        wanted = int(self.parameter_values()["wait_for_subscribers"])  # type: ignore[call-overload]
        timeout_s = float(self.parameter_values()["wait_timeout_s"])  # type: ignore[arg-type]
        if wanted == 0:
            return True
        waited_s = 0.0
        while waited_s < timeout_s and self._fewest_subscribers() < wanted:
            if self._stopping.wait(0.05):
                return False
            waited_s += 0.05
        if self._fewest_subscribers() < wanted:
            self.get_logger().warning(f"playing without {wanted} subscribers to each image topic")
        return not self._stopping.wait(_SETTLE_S)

    def _fewest_subscribers(self) -> int:
        """Of an image topic; without one there is nobody to wait for."""
        assert self._source is not None
        image_topics = [
            topic
            for topic in self._publishers_by_topic
            if self._source.topics[topic] in messages.IMAGE_TYPES
        ]
        counts = [self._publishers_by_topic[t].get_subscription_count() for t in image_topics]
        return min(counts, default=sys.maxsize)

    def _finish(self) -> None:
        assert self._playback is not None
        deadline = time.monotonic() + _ACKNOWLEDGE_S
        for publisher in self._publishers_by_topic.values():
            remaining_s = max(0.0, deadline - time.monotonic())
            publisher.wait_for_all_acked(Duration(seconds=remaining_s))
        counts = self._playback.counts()
        self.get_logger().info(
            f"played {counts.images} images in {counts.passes} passes;"
            f" late p50 {counts.lateness.p50} ms, max {counts.lateness.max} ms"
        )
        self.publish_diagnostics()
        if bool(self.parameter_values()["exit_at_end"]):
            rclpy.try_shutdown()


def main() -> int:
    """Run the player as a process; the exit status is 1 if the source failed while playing."""
    nodes: list[PlayerNode] = []

    def make_nodes() -> list[PlayerNode]:
        nodes.append(PlayerNode())
        return nodes

    status = run(make_nodes)
    return status or nodes[0].exit_status


if __name__ == "__main__":
    sys.exit(main())
