"""What every source of a replay is: serialised messages, each with its recorded time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

DEFAULT_FPS = 30.0

# Sources without times of their own start here: a stamp of zero would mean "not set".
FIRST_FRAME_NS = 1_000_000_000


@dataclass(frozen=True)
class TimedMessage:
    """A serialised message and when it was recorded, in nanoseconds of its source's clock."""

    recorded_ns: int
    topic: str
    msgtype: str
    cdr: bytes


class Source(Protocol):
    """A context manager that yields messages in the order of their recorded times.

    ``topics`` maps each topic's name to its message type once the source is open. A ``live``
    source makes its messages now: they cannot be scheduled and never end by themselves.
    """

    live: bool
    topics: Mapping[str, str]

    def __enter__(self) -> Source:
        """Open the source; raises ``BagError`` if it cannot be read or holds no image."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the source."""

    def messages(self) -> Iterator[TimedMessage]:
        """Yield all messages; each call starts over. Raises ``BagError`` on damaged data."""

    def image_times_ns(self) -> list[int]:
        """Return the recorded times of the first image topic's messages."""


def even_time_ns(index: int, fps: float) -> int:
    """Return the time of frame ``index`` of a source that has only a rate."""
    return FIRST_FRAME_NS + round(index * 1e9 / fps)
