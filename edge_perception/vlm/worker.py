"""The thread that answers: prompts first, captions when there is time, one at a time.

Answering takes seconds, and a prompt must be heard, cancelled or refused meanwhile, so it has a
thread of its own beside the node's. What passes between the two passes here, under one lock:
prompts and cancels one way, pictures on demand, answers the other way by ``Outlet``. A prompt with
a deadline ends a caption that is being written: somebody waits for the one, and the other will come
again. A prompt without one waits its turn, or captions would never be finished where many ask.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from edge_perception.core.answers import Answer, Request
from edge_perception.errors import EdgePerceptionError
from edge_perception.vlm.answerer import Answerer
from edge_perception.vlm.inbox import Asked, Inbox
from edge_perception.vlm.scene import SceneGate, SeenObject
from edge_perception.vlm.vision_cache import Picture

CAPTION_MODES = ("off", "rate", "change")
STALE_POLICIES = ("mark", "drop")

_ENOUGH_S = 3600.0  # longest sleep; whatever happens ends it


@dataclass(frozen=True)
class WorkerSettings:
    """See the node's parameters of the same names."""

    captions: str = "change"
    caption_prompt: str = "Describe the picture."
    caption_rate_hz: float = 1.0
    stale_answers: str = "mark"
    max_frame_age_ms: float = 500.0
    frame_timeout_ms: float = 1000.0


class Outlet(Protocol):
    """Where a worker's results go; called on the worker's thread."""

    def want_picture(self) -> None:
        """Have ``Worker.put_picture`` called soon, with the newest frame or None.

        After None it is called again with the next frame that comes.
        """

    def tell_partial(self, asked: Asked, picture: Picture, text: str) -> None:
        """Tell what has been written so far."""

    def tell_answer(self, asked: Asked, answer: Answer, picture: Picture | None) -> None:
        """Tell an answer or a caption."""

    def tell_work(self, picture: Picture, start_ns: int, end_ns: int) -> None:
        """Tell when the model was busy (``time.monotonic_ns``)."""

    def fail(self, reason: str) -> None:
        """The worker has ended by an error."""


class Worker:
    """Answers until stopped. All methods but ``run`` may be called on any thread."""

    def __init__(
        self,
        answerer: Answerer,
        outlet: Outlet,
        settings: WorkerSettings,
        inbox: Inbox,
        gate: SceneGate,
    ) -> None:
        self.answerer = answerer
        self.settings = settings
        self.captions_wanted = False
        self.counts: Counter[str] = Counter()
        self.last_error = ""
        self._outlet = outlet
        self._inbox = inbox
        self._gate = gate
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._running: Asked | None = None
        self._picture: Picture | None = None
        self._looked = False
        self._last_caption_s = 0.0

    # Called by the node.

    def start(self) -> None:
        """Begin to answer."""
        self._stopping = False
        self._thread = threading.Thread(target=self.run, name="vlm-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End what is being written, tell what still waits that it is cancelled, end the thread."""
        with self._changed:
            self._stopping = True
            waiting = self._inbox.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        for asked in waiting:
            self._tell(asked, self.answerer.tell(asked, None, "cancelled"), None)

    def submit(self, request: Request) -> None:
        """Queue a prompt, or answer at once that the queue is full."""
        asked = Asked(request)
        with self._changed:
            self.counts["prompts"] += 1
            accepted = not self._stopping and self._inbox.put(asked)
            self._changed.notify_all()
        if not accepted:
            self.counts["refused"] += 1
            full = f"{self._inbox.capacity} prompts wait already; ask again later"
            error = "the node stops answering" if self._stopping else full
            self._outlet.tell_answer(
                asked, self.answerer.tell(asked, None, "error", error=error), None
            )

    def cancel(self, request_id: str) -> None:
        """End the prompts of an id, the one being answered included."""
        with self._changed:
            waiting = self._inbox.cancel(request_id)
            if self._running is not None and self._running.request.id == request_id:
                self._running.cancelled = True
        for asked in waiting:
            self._tell(asked, self.answerer.tell(asked, None, "cancelled"), None)

    def put_picture(self, picture: Picture | None) -> None:
        """Hand over the newest frame; None where there is none newer than the last."""
        with self._changed:
            self._picture = picture or self._picture
            self._looked = True
            self._changed.notify_all()

    def see(self, objects: Sequence[SeenObject]) -> None:
        """Take the newest detections, by which the gate of captions goes."""
        with self._changed:
            self._gate.see(objects)
            if self._gate.is_open:
                self._changed.notify_all()

    def is_current_thread(self) -> bool:
        """Whether the caller runs on the worker's own thread."""
        return self._thread is threading.current_thread()

    def wake(self) -> None:
        """Look again at what there is to do: settings have changed."""
        with self._changed:
            self._changed.notify_all()

    # The worker's own thread.

    def run(self) -> None:
        """Answer until stopped, or until an error that no request is to blame for."""
        while (asked := self._await_work()) is not None:
            try:
                self._handle(asked)
            except BaseException as error:  # a thread that ends unheard would leave the node deaf
                with suppress(Exception):  # perhaps it was the telling that broke
                    self._give_up(asked, error)
                self._outlet.fail(f"answering failed: {_in_words(error)}")
                return

    def _await_work(self) -> Asked | None:
        with self._changed:
            while not self._stopping:
                self._running = self._inbox.take() or self._due_caption()
                if self._running is not None:
                    return self._running
                self._changed.wait(self._until_caption_s())
        return None

    def _due_caption(self) -> Asked | None:
        if self._until_caption_s() > 0:
            return None
        self._last_caption_s = time.monotonic()
        self._gate.close()
        return Asked(Request(self.settings.caption_prompt), is_caption=True)

    def _until_caption_s(self) -> float:
        settings = self.settings
        wanted = self.captions_wanted and settings.captions != "off"
        if not wanted or (settings.captions == "change" and not self._gate.is_open):
            return _ENOUGH_S
        return self._last_caption_s + 1 / settings.caption_rate_hz - time.monotonic()

    def _handle(self, asked: Asked) -> None:
        picture = self._await_picture(asked)
        if picture is None:
            self._tell(asked, self._answer_without_picture(asked), None)
            return
        start_ns = time.monotonic_ns()
        answer = self.answerer.answer(
            asked,
            picture,
            should_stop=lambda: self._why_stop(asked),
            on_text=lambda written: self._outlet.tell_partial(asked, picture, written),
        )
        self._outlet.tell_work(picture, start_ns, time.monotonic_ns())
        self._tell(asked, answer, picture)

    def _await_picture(self, asked: Asked) -> Picture | None:
        """A frame young enough, the newest there is; None where none comes in time."""
        until_s = time.monotonic() + self.settings.frame_timeout_ms / 1e3
        left_ms = asked.left_ms(time.monotonic_ns())
        if left_ms is not None:
            until_s = min(until_s, time.monotonic() + left_ms / 1e3)
        with self._changed:
            self._looked = False
        self._outlet.want_picture()
        with self._changed:
            while not self._why_stop(asked):
                if self._looked and self._picture is not None and self._is_young(self._picture):
                    return self._picture
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._changed.wait(left_s)
        return None

    def _is_young(self, picture: Picture) -> bool:
        return (time.monotonic_ns() - picture.receive_ns) / 1e6 <= self.settings.max_frame_age_ms

    def _answer_without_picture(self, asked: Asked) -> Answer:
        if reason := self._why_stop(asked):
            return self.answerer.tell(asked, None, reason)
        left_ms = asked.left_ms(time.monotonic_ns())
        if left_ms is not None and left_ms <= 0:
            return self.answerer.tell(asked, None, "deadline", error="no image came in time")
        error = f"no image younger than {self.settings.max_frame_age_ms:g} ms"
        return self.answerer.tell(asked, None, "error", error=error)

    def _why_stop(self, asked: Asked) -> str:
        with self._changed:
            preempted = asked.is_caption and self._inbox.is_urgent
            return "cancelled" if asked.cancelled or self._stopping or preempted else ""

    def _tell(self, asked: Asked, answer: Answer, picture: Picture | None) -> None:
        kind = "captions" if asked.is_caption else "answers"
        if answer.finish_reason == "error":
            self.last_error = answer.error
        if answer.stale and self.settings.stale_answers == "drop":
            answer = replace(answer, text="", finish_reason="stale", grounded=None)
        self.counts[f"{kind}_{answer.finish_reason}"] += 1
        if asked.is_caption and answer.finish_reason in ("cancelled", "error", "stale"):
            return  # nobody asked for it, and another one follows
        self.counts[kind] += 1
        self._outlet.tell_answer(asked, answer, picture)

    def _give_up(self, asked: Asked, error: BaseException) -> None:
        """Tell whoever waits that there will be no answer."""
        with self._changed:
            self._stopping = True
            waiting = [asked, *self._inbox.clear()]
        for each in waiting:
            self._tell(each, self.answerer.tell(each, None, "error", error=_in_words(error)), None)


def _in_words(error: BaseException) -> str:
    return (
        str(error) if isinstance(error, EdgePerceptionError) else f"{type(error).__name__}: {error}"
    )
