"""Prompts that wait for their turn: a bounded queue, out of which any can be cancelled."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from edge_perception.core.answers import Request


@dataclass
class Asked:
    """A request and when it came (``time.monotonic_ns``); ``cancelled`` may be set at any moment.

    ``is_caption`` tells the node's own requests from those that somebody waits for.
    """

    request: Request
    is_caption: bool = False
    arrived_ns: int = field(default_factory=time.monotonic_ns)
    cancelled: bool = False

    def left_ms(self, now_ns: int) -> float | None:
        """Time until the deadline, below 0 after it; None without one."""
        if self.request.deadline_ms is None:
            return None
        return self.request.deadline_ms - (now_ns - self.arrived_ns) / 1e6


class Inbox:
    """First come, first served; at most ``capacity`` wait. Not thread-safe: its owner locks."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._waiting: deque[Asked] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, asked: Asked) -> bool:
        """Queue a request; False where the inbox is full."""
        if len(self._waiting) >= self.capacity:
            return False
        self._waiting.append(asked)
        return True

    @property
    def is_urgent(self) -> bool:
        """Whether one that waits has a deadline."""
        return any(asked.request.deadline_ms is not None for asked in self._waiting)

    def take(self) -> Asked | None:
        """The request that has waited longest, or None."""
        return self._waiting.popleft() if self._waiting else None

    def cancel(self, request_id: str) -> list[Asked]:
        """Take out and mark the requests of an id; returns them."""
        found = [asked for asked in self._waiting if asked.request.id == request_id]
        for asked in found:
            asked.cancelled = True
            self._waiting.remove(asked)
        return found

    def clear(self) -> list[Asked]:
        """Take out everything, marked as cancelled."""
        found = list(self._waiting)
        self._waiting.clear()
        for asked in found:
            asked.cancelled = True
        return found
