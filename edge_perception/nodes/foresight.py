"""Asking for the next frame early, so that it is ready when the model gets free, and not before.

Taking and decoding a frame costs the camera's thread some milliseconds. Asked for when inference
ends, the frame comes late, and the model idles meanwhile; asked for when inference begins, it
lies waiting and is stale by a whole inference. So the time that the model will be busy is foretold
from the frames before, and the frame is asked for as much earlier as it takes longer to prepare
than this thread takes to finish the last one. A wrong guess costs a few milliseconds of staleness
or of idling, never a frame: when inference ends unforeseen, the frame is asked for at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_WAKE_UP_NS = 1_000_000
"""What the camera's executor takes to notice: two turns of its wait set, in Python."""

_NEWEST_WEIGHT = 0.1


class _Average:
    """An exponential moving average that begins with the first value; 0 before."""

    def __init__(self) -> None:
        self.value = 0.0
        self._empty = True

    def add(self, value: float) -> None:
        weight = 1.0 if self._empty else _NEWEST_WEIGHT
        self.value += weight * (value - self.value)
        self._empty = False


class Foresight:
    """Asks once a frame, from a thread of its own or on ``inference_ended``.

    Used by the thread of one node, between ``start`` and ``stop``.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._ask: Callable[[], None] | None = None
        self._due_ns: int | None = None
        self._began_ns = 0
        self._ended_ns = 0
        self._busy_ns, self._finish_ns, self._prepare_ns = _Average(), _Average(), _Average()

    def start(self) -> None:
        """Start the thread."""
        self._stopping = False
        self._thread = threading.Thread(target=self._keep, name="foresight", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask for nothing more, and end the thread."""
        with self._changed:
            self._stopping, self._ask = True, None
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def begin(self, ask: Callable[[], None]) -> None:
        """Work on a frame begins; ``ask``, called on any thread, must return at once."""
        self._began_ns = time.monotonic_ns()
        with self._changed:
            self._ask = ask
            lead_ns = self.lead_ns
            self._due_ns = (
                round(self._began_ns + self._busy_ns.value - lead_ns) if lead_ns else None
            )
            if lead_ns:
                self._changed.notify()

    def inference_ended(self) -> None:
        """Ask for the next frame, unless that was done."""
        self._ended_ns = time.monotonic_ns()
        with self._changed:
            self._ask_once()

    def finished(self, prepare_ns: int) -> None:
        """Learn from a frame that took the camera ``prepare_ns`` and is done with now."""
        self._busy_ns.add(self._ended_ns - self._began_ns)
        self._finish_ns.add(time.monotonic_ns() - self._ended_ns)
        self._prepare_ns.add(prepare_ns)

    @property
    def lead_ns(self) -> float:
        """How long before inference ends the next frame is asked for; 0 is not before."""
        lead_ns = self._prepare_ns.value + _WAKE_UP_NS - self._finish_ns.value
        return min(max(lead_ns, 0.0), self._busy_ns.value)

    def _ask_once(self) -> None:
        self._due_ns = None
        if self._ask is not None:
            self._ask()
            self._ask = None

    def _keep(self) -> None:
        with self._changed:
            while not self._stopping:
                if self._due_ns is None:
                    self._changed.wait()
                elif (left_ns := self._due_ns - time.monotonic_ns()) > 0:
                    self._changed.wait(left_ns / 1e9)
                else:
                    self._ask_once()
