"""Asking for the next frame early, so that it is ready when the model gets free, and not before.

Taking and decoding a frame costs some milliseconds, and who asks does it: a thread of its own.
Asked for when inference ends, the frame comes late, and the model idles meanwhile; asked for when
inference begins, it lies waiting and is stale by a whole inference. So the time that the model
will be busy is foretold from the frames before, and the frame is asked for as much earlier as it
takes longer to prepare than the model's thread takes to finish the last one. A wrong guess costs
a few milliseconds of staleness or of idling, never a frame: when inference ends unforeseen, the
frame is asked for at once. Where the model runs on the CPU's own cores nothing is gained by
asking early: fetching beside it slows it by as much. There the frame is fetched while the last
result is put together and published.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_WAKE_UP_NS = 300_000
"""What the asking thread takes to wake beside others that hold Python's lock."""

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
    """Asks once a frame, from a thread of its own.

    Used by the thread of one node, between ``start`` and ``stop``.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._early = self._stopping = False
        self._ask: Callable[[], object] | None = None
        self._due_ns: int | None = None
        self._began_ns = 0
        self._ended_ns = 0
        self._busy_ns, self._finish_ns, self._prepare_ns = _Average(), _Average(), _Average()

    def start(self, *, early: bool) -> None:
        """Start the thread; ``early`` asks before inference ends, not when it does."""
        self._early, self._stopping = early, False
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

    def begin(self, ask: Callable[[], object]) -> None:
        """Work on a frame begins; ``ask`` is to be called once before the next."""
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
        self._set_due(self._ended_ns)

    def finished(self, prepare_ns: int) -> None:
        """Learn from a frame that took the camera ``prepare_ns`` and is done with now."""
        self._busy_ns.add(self._ended_ns - self._began_ns)
        self._finish_ns.add(time.monotonic_ns() - self._ended_ns)
        self._prepare_ns.add(prepare_ns)

    @property
    def lead_ns(self) -> float:
        """How long before inference ends the next frame is asked for; 0 is not before."""
        if not self._early:
            return 0.0
        lead_ns = self._prepare_ns.value + _WAKE_UP_NS - self._finish_ns.value
        return min(max(lead_ns, 0.0), self._busy_ns.value)

    def _set_due(self, due_ns: int) -> None:
        with self._changed:
            self._due_ns = due_ns
            self._changed.notify()

    def _keep(self) -> None:
        while (ask := self._await_due()) is not None:
            ask()  # outside the lock: it takes as long as decoding a frame

    def _await_due(self) -> Callable[[], object] | None:
        """Return what to call when it is due, or None when asking ends."""
        with self._changed:
            while not self._stopping:
                if self._ask is None or self._due_ns is None:
                    self._changed.wait()
                elif (left_ns := self._due_ns - time.monotonic_ns()) > 0:
                    self._changed.wait(left_ns / 1e9)
                else:
                    ask, self._ask, self._due_ns = self._ask, None, None
                    return ask
        return None
