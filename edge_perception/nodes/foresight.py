"""Asking for the next frame at the right moment.

Taking and decoding a frame costs some milliseconds, and who asks does it. While a GPU works, a
thread of its own does: asked for when inference ends, the frame would come late, and the model idle
meanwhile; asked for when inference begins, it would lie waiting and be stale by a whole inference.
So the time that the model will be busy is foretold from the frames before, and the frame is asked
for as much earlier as it takes longer to prepare than the model's thread takes to finish the last
one. A wrong guess costs a few milliseconds of staleness or of idling, never a frame: when inference
ends unforeseen, the frame is asked for at once.

Where the model runs on the CPU's own cores nothing is gained by a second thread: what it does
beside inference slows inference by as much, and what it does beside Python waits for the
interpreter's lock. There the node's own thread asks when all else is done, and has the newest frame
there is.
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
    """Asks once a frame.

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
        """Begin; ``early`` asks on another thread before inference ends, otherwise after all."""
        self._early, self._stopping = early, False
        if early:
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
        """Have the next frame asked for, unless that was done or is too early."""
        self._ended_ns = time.monotonic_ns()
        if self._early:
            self._set_due(self._ended_ns)

    def finished(self, prepare_ns: int) -> None:
        """Ask at the latest now, and learn from a frame that took the camera ``prepare_ns``."""
        if self._early:
            self._busy_ns.add(self._ended_ns - self._began_ns)
            self._finish_ns.add(time.monotonic_ns() - self._ended_ns)
            self._prepare_ns.add(prepare_ns)
        elif self._ask is not None:
            ask, self._ask = self._ask, None
            ask()

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
