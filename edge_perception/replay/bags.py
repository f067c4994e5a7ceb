"""Reads ROS 2 bags: MCAP and sqlite3, as a file or a folder, plain or compressed by zstd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from edge_perception.errors import BagError
from edge_perception.replay import messages
from edge_perception.replay.source import TimedMessage
from edge_perception.replay.typestore import load_typestore


class BagSource:
    """The images, camera infos and detections of a bag; what else it holds is left out.

    Also left out, and named in ``foreign_topics``, are topics whose type has the right name but
    other fields, such as the ``vision_msgs`` of before 2022.
    """

    live = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.topics: Mapping[str, str] = {}
        self.foreign_topics: tuple[str, ...] = ()
        self._reader: Reader | None = None
        self._connections: list[Connection] = []

    def __enter__(self) -> BagSource:
        """Open the bag and see what it holds."""
        try:
            self._reader = Reader(self.path)
            self._reader.open()
        except Exception as error:  # the parsers trust their file: a bad one raises anything
            raise self._unreadable(error) from error
        try:
            self._choose_connections(self._reader.connections)
        except BagError:
            self._reader.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the bag."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def messages(self) -> Iterator[TimedMessage]:
        """Yield the messages as recorded; their bytes are not looked into."""
        yield from self._read(self._connections)

    def image_times_ns(self) -> list[int]:
        """Return the recorded times of the first image topic; reads the whole bag once."""
        first = next(c for c in self._connections if c.msgtype in messages.IMAGE_TYPES)
        return [message.recorded_ns for message in self._read([first])]

    def _read(self, connections: list[Connection]) -> Iterator[TimedMessage]:
        if self._reader is None:
            raise ValueError("the bag is not open; use BagSource in a with statement")
        try:
            for connection, recorded_ns, cdr in self._reader.messages(connections):
                yield TimedMessage(recorded_ns, connection.topic, connection.msgtype, cdr)
        except Exception as error:  # as above
            raise self._unreadable(error) from error

    def _choose_connections(self, connections: list[Connection]) -> None:
        stamped = [c for c in connections if c.msgtype in messages.STAMPED_TYPES]
        self._connections = [c for c in stamped if _has_known_fields(c)]
        self.foreign_topics = tuple(c.topic for c in stamped if not _has_known_fields(c))
        self.topics = {c.topic: c.msgtype for c in self._connections}
        if not any(c.msgtype in messages.IMAGE_TYPES and c.msgcount for c in self._connections):
            raise BagError(
                f"bag {str(self.path)!r} holds no images",
                expected="messages of sensor_msgs/msg/Image or CompressedImage",
                got={c.topic: (c.msgtype, c.msgcount) for c in connections},
            )

    def _unreadable(self, error: Exception) -> BagError:
        return BagError(
            f"bag {str(self.path)!r} cannot be read",
            expected="a whole MCAP or sqlite3 bag of ROS 2",
            got=f"{type(error).__name__}: {error}",
            mend="If its recording was cut off, repair it by `mcap recover` or `ros2 bag reindex`.",
        )


def _has_known_fields(connection: Connection) -> bool:
    """Compare the type's hash, which bags of Humble and older do not have."""
    known = load_typestore().hash_rihs01(connection.msgtype)
    return connection.digest in ("", known)
