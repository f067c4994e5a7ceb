"""Taking messages only while somebody wants one, so that the rest cost nothing.

An executor normally takes every message. A camera faster than its readers then spends Python's
time, and the interpreter lock, on frames that nobody will see, while inference waits for both. A
subscription in this callback group is left out of the executor's wait set: DDS keeps the newest
message meanwhile (KEEP_LAST 1), replacing it without any Python. A reader that asks takes it on its
own thread; only where none is there does the executor listen, until one comes. Why, and what it
brought: docs/adr/0002-one-thread-a-node.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node

Wake = Callable[[], None]


class Demand(MutuallyExclusiveCallbackGroup):
    """The readers of one camera, and which of them wait for a frame.

    ``join``, ``leave`` and ``ask`` may be called on any thread; ``begin``, ``serve`` and ``fail``
    on whichever takes a message, one at a time. Without a reader, or with ``always_open``, every
    message is taken.
    """

    def __init__(self, node: Node, take_waiting: Callable[[], None]) -> None:
        """``take_waiting`` takes the message that waits, if any, on the calling thread."""
        super().__init__()
        self.always_open = False
        self._take_waiting = take_waiting
        self._readers: dict[int, Wake] = {}
        self._eager: set[int] = set()
        self._waiting: set[int] = set()
        # Triggering it makes the executor look at can_execute again.
        self._reopen = node.create_guard_condition(lambda: None)

    def join(self, wake: Wake, *, eager: bool) -> int:
        """Add a reader that wants the next frame, or, ``eager``, every one; returns its token."""
        token = max(self._readers, default=0) + 1
        if eager:
            self._eager.add(token)
        self._waiting.add(token)
        self._readers = {**self._readers, token: wake}
        self._reopen.trigger()
        return token

    def leave(self, token: int) -> None:
        """Remove a reader; unknown tokens are ignored."""
        self._readers = {known: wake for known, wake in self._readers.items() if known != token}
        self._waiting.discard(token)
        self._eager.discard(token)
        self._reopen.trigger()

    def ask(self, token: int) -> None:
        """Ask for the next frame; returns once the message that waited, if any, is a frame."""
        self._waiting.add(token)
        if not self._listens_always():
            self._take_waiting()
        if token in self._waiting:  # no message was there, or none that makes a frame
            self._reopen.trigger()

    def _listens_always(self) -> bool:
        return bool(self._eager) or not self._readers or self.always_open

    def can_execute(self, entity: Any) -> bool:
        """Tell the executor whether to listen for messages now."""
        is_open = bool(self._waiting) or self._listens_always()
        return is_open and super().can_execute(entity)

    def begin(self) -> set[int]:
        """Stop asking while a frame is under way; returns who waits for it.

        Before the frame can be seen, not after: a reader that takes it may ask again at once.
        """
        waiting, self._waiting = self._waiting, set()
        return waiting

    def serve(self) -> None:
        """Wake every reader: a frame is there."""
        for wake in self._readers.values():
            wake()

    def fail(self, waiting: set[int]) -> None:
        """Go on asking for those who did not get their frame."""
        self._waiting |= waiting & self._readers.keys()
