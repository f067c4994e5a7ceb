"""The VLM node: captions when something changes, answers when somebody asks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import String
from vision_msgs.msg import Detection2DArray

from edge_perception.core.answers import Answer, Request, parse_request
from edge_perception.errors import ConfigError, EdgePerceptionError, RequestError
from edge_perception.gpu.preprocess import to_rgb
from edge_perception.nodes.frame_streams import FrameStream, RemoteFrameStream
from edge_perception.nodes.managed import OVERRIDABLE, Health, ManagedNode, reliable
from edge_perception.nodes.messages import to_nanoseconds, to_seen_objects
from edge_perception.nodes.runner import run
from edge_perception.nodes.vlm_parameters import (
    PARAMETERS,
    answer_settings,
    model_choice,
    worker_settings,
)
from edge_perception.nodes.vlm_topics import VlmTopics
from edge_perception.vlm.answerer import Answerer
from edge_perception.vlm.answering import VisionLanguageModel
from edge_perception.vlm.inbox import Asked, Inbox
from edge_perception.vlm.model_choice import ModelChoice
from edge_perception.vlm.models import open_model
from edge_perception.vlm.scene import SceneGate, Views, mentioned
from edge_perception.vlm.turns import DetectorTurns
from edge_perception.vlm.vision_cache import Picture, VisionCache
from edge_perception.vlm.worker import Worker

_LOOK_AROUND_S = 0.25  # how often subscribers are counted


class VlmNode(ManagedNode):
    """Takes prompts on ``~/prompt``, publishes ``~/answer`` and ``caption`` (see docs/vlm.md).

    Beside them: ``~/caption_text`` for people, ``~/answer/partial`` while it is being written,
    ``~/debug_image`` and ``~/stages``. A node looks at one camera.

    ``streams`` are given by the container; a node of its own process reads the topic that its
    parameter ``frames_topic`` names. Frames are leased for as long as copying one takes, on this
    node's thread; the model runs on the worker's.
    """

    def __init__(
        self,
        name: str = "vlm",
        streams: Sequence[FrameStream] | None = None,
        open_model: Callable[[ModelChoice], VisionLanguageModel] = open_model,
        **node_options: Any,
    ) -> None:
        super().__init__(name, PARAMETERS, **node_options)
        self._given_streams = streams
        self._open_model = open_model
        self._stream: FrameStream | None = None
        self._model: VisionLanguageModel | None = None
        self._worker: Worker | None = None
        self._gate = SceneGate(0.5)
        self._turns = DetectorTurns(0.0)
        self._views = Views()
        self._topics: VlmTopics | None = None
        self._counts: Counter[str] = Counter()
        self._broken = ""
        self._picture_wanted = False
        self._ears: list[Any] = []
        self._detections: Any = None
        self._timer: Any = None
        self._look = self.create_guard_condition(self._take_frame)
        self._give_up = self.create_guard_condition(lambda: self.fail(self._broken))

    # The life cycle.

    def configure(self) -> None:
        """Open the model, measure it once, and make the publishers."""
        values = self.parameter_values()
        self._stream = self._choose_stream(values)
        self._model = self._open_model(model_choice(values))
        answerer = Answerer(
            self._model, VisionCache(values["cache_threshold"]), between=self._turns.give_way
        )
        self._gate = SceneGate(values["gate_far"], values["gate_patience"])
        inbox = Inbox(values["queue_size"])
        self._worker = Worker(answerer, self, worker_settings(values), inbox, self._gate)
        self.apply_parameters(values)
        answerer.warm_up()
        self._topics = VlmTopics(self)

    def activate(self) -> None:
        """Begin to listen and to answer."""
        assert self._stream is not None
        assert self._worker is not None
        self._worker.start()
        self._ears = [self._listen(String, "~/prompt", self._on_prompt, 32)]
        self._timer = self.create_steady_timer(_LOOK_AROUND_S, self._look_around)
        self._stream.start(self, self._on_frame, eager=False)
        self._look_around()

    def deactivate(self) -> None:
        """Answer what waits with "cancelled", and listen no more."""
        for ear in self._ears:
            self.destroy_subscription(ear)
        self._ears = []
        self._listen_to_detections(wanted=False)
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        if self._worker is not None:
            self._worker.stop()
        if self._stream is not None:
            self._stream.stop()

    def cleanup(self) -> None:
        """Release the model, last: a device that is lost may refuse even that."""
        model, self._model = self._model, None
        topics, self._topics = self._topics, None
        self._worker = self._stream = None
        self._views.clear()
        if topics is not None:
            topics.close()
        if model is not None:
            model.close()

    def apply_parameters(self, values: Mapping[str, Any]) -> None:
        """Take over everything that is not fixed, for the next answer."""
        assert self._worker is not None
        answerer = self._worker.answerer
        answerer.settings = answer_settings(values)
        answerer.cache.threshold = values["cache_threshold"]
        self._worker.settings = worker_settings(values)
        self._gate.far = values["gate_far"]
        self._gate.patience = values["gate_patience"]
        self._turns.longest_wait_s = values["yield_ms"] / 1e3
        self._turns.lead_s = values["yield_lead_ms"] / 1e3
        self._worker.wake()

    def counters(self) -> Mapping[str, object]:
        """Prompts, answers and captions by how they ended, the cache's hits, the model's pace."""
        if self._worker is None:
            return {}
        answerer = self._worker.answerer
        cache, pace = answerer.cache, answerer.pace
        side_px = answerer.sides_px[-1]
        return {
            **{name: self._worker.counts[name] for name in ("prompts", "answers", "captions")},
            **self._worker.counts,
            **self._counts,
            "last_error": self._worker.last_error,
            "cache_hits": cache.hits,
            "cache_misses": cache.misses,
            "cache_hit_rate": round(cache.hits / max(1, cache.hits + cache.misses), 4),
            "image_side_px": side_px,
            "first_token_ms": round(pace.first_token_ms(side_px, encoded=False), 3),
            "token_ms": round(pace.token_ms, 3),
            "waited_for_detector_ms": round(self._turns.waited_s * 1e3, 1),
            "memory_failures": answerer.memory_failures,
            "model": answerer.model.name,
            "backend": answerer.model.backend,
        }

    def health(self) -> Health:
        """Warn while memory is short or prompts go wrong."""
        assert self._worker is not None
        if self._worker.answerer.memory_failures:
            side_px = self._worker.answerer.sides_px[-1]
            return DiagnosticStatus.WARN, f"memory was short: pictures of {side_px} px from now on"
        if self.lately.grew("errors", self._errors()):
            return DiagnosticStatus.WARN, self._worker.last_error
        return DiagnosticStatus.OK, "active"

    def _errors(self) -> int:
        """Prompts and frames that went wrong so far."""
        assert self._worker is not None
        of_worker = (self._worker.counts[f"{kind}_error"] for kind in ("answers", "captions"))
        return self._counts["malformed"] + self._counts["frames_failed"] + sum(of_worker)

    # Prompts.

    def _on_prompt(self, message: String) -> None:
        worker = self._worker
        if worker is None or self._topics is None:
            return
        values = self.parameter_values()
        try:
            request = parse_request(message.data, values["max_prompt_bytes"])
        except RequestError as error:
            self._counts["malformed"] += 1
            worker.last_error = str(error)
            self._topics.tell_refusal(error)
            return
        if request.cancels:
            worker.cancel(request.id)
        else:
            worker.submit(_with_deadline(request, values["deadline_ms"]))

    # Frames and detections.

    def _listen(self, kind: type, topic: str, callback: Callable[..., None], depth: int) -> Any:
        return self.create_subscription(
            kind, topic, callback, reliable(depth), qos_overriding_options=OVERRIDABLE
        )

    def _choose_stream(self, values: Mapping[str, Any]) -> FrameStream:
        wanted: str = values["camera"]
        if self._given_streams is None:
            return RemoteFrameStream(self.resolve_topic_name(values["frames_topic"]))
        for stream in self._given_streams:
            if wanted in ("", stream.name):
                return stream
        names = ", ".join(stream.name for stream in self._given_streams)
        raise ConfigError("parameter camera names none", expected=f"one of {names}", got=wanted)

    def _on_frame(self) -> None:
        """A new frame is in the ring; on whatever thread wrote it."""
        if self._detections is not None:
            self._turns.begin()
        if self._picture_wanted:
            self._look.trigger()

    def _take_frame(self) -> None:
        """Copy the newest frame for the worker, on this node's own thread."""
        if self._worker is None or not self._picture_wanted:
            return
        picture = None
        try:
            picture = self._newest_picture()
        except EdgePerceptionError as error:
            self._counts["frames_failed"] += 1
            self._worker.last_error = str(error)
        self._picture_wanted = picture is None
        self._worker.put_picture(picture)

    def _newest_picture(self) -> Picture | None:
        """The newest frame not yet seen; None where the camera has made none since."""
        assert self._stream is not None
        lease = self._stream.acquire_newest()
        if lease is None:
            self._stream.want_next()
            lease = self._stream.acquire_newest()
        if lease is None:
            return None
        with lease:
            info = lease.info
            pixels_rgb = to_rgb(lease.to_host(), info.format)
        return Picture(pixels_rgb, info.stamp_ns, info.frame_id, info.receive_ns)

    def _look_around(self) -> None:
        """Work only for those who listen."""
        if self._worker is None or self._topics is None:
            return
        wanted = self._topics.captions_wanted
        self._listen_to_detections(wanted=wanted or self._topics.answers_wanted)
        if wanted != self._worker.captions_wanted:
            self._worker.captions_wanted = wanted
            self._worker.wake()

    def _listen_to_detections(self, *, wanted: bool) -> None:
        """Hear detections, which has the detector work, only while they are of use."""
        if wanted and self._detections is None:
            self._detections = self._listen(Detection2DArray, "detections", self._on_detections, 1)
        elif not wanted and self._detections is not None:
            self.destroy_subscription(self._detections)
            self._detections = None
            self._turns.end()

    def _on_detections(self, message: Detection2DArray) -> None:
        self._turns.end()
        objects = to_seen_objects(message)
        self._views.add(message.header.frame_id, to_nanoseconds(message.header.stamp), objects)
        if self._worker is not None:
            self._worker.see(objects)

    # What the worker tells, on its own thread.

    def want_picture(self) -> None:
        """Have the newest frame handed over."""
        self._picture_wanted = True
        self._look.trigger()

    def tell_partial(self, asked: Asked, picture: Picture, text: str) -> None:
        """Publish what has been written so far."""
        if self._topics is not None:
            self._topics.tell_partial(asked, picture, text)

    def tell_answer(self, asked: Asked, answer: Answer, picture: Picture | None) -> None:
        """Publish an answer or a caption, with the detections that it speaks of."""
        stamp_ns, seen = self._views.near(answer.frame_id, answer.stamp_ns)
        if stamp_ns is not None and answer.text:
            grounded = mentioned(answer.text, [seen_object.name for seen_object in seen])
            answer = replace(answer, grounded=grounded, grounded_stamp_ns=stamp_ns)
        if self._topics is not None:
            self._topics.tell_answer(asked, answer, picture, seen)

    def tell_work(self, picture: Picture, start_ns: int, end_ns: int) -> None:
        """Publish when the model was at work, for the profiler."""
        if self._topics is not None:
            self._topics.tell_work(picture, start_ns, end_ns)

    def fail(self, reason: str) -> None:
        """Leave the node unconfigured; from the worker's thread by way of this node's own."""
        if self._worker is not None and self._worker.is_current_thread():
            self._broken = reason
            self._give_up.trigger()
        else:
            super().fail(reason)


def _with_deadline(request: Request, default_ms: float) -> Request:
    if request.deadline_ms is not None or not default_ms:
        return request
    return replace(request, deadline_ms=default_ms)


def main() -> int:
    """Run the node in a process of its own."""
    return run(lambda: [VlmNode()])


if __name__ == "__main__":
    sys.exit(main())
