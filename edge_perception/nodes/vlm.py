"""The VLM node: captions when something changes, answers when somebody asks."""

from __future__ import annotations

import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String
from vision_msgs.msg import Detection2DArray

from edge_perception.core.answers import Answer, Request, parse_request
from edge_perception.core.sampling import Sampling
from edge_perception.detection.drawing import draw_caption
from edge_perception.embedded import demo_vlm_manifest
from edge_perception.errors import ConfigError, EdgePerceptionError, RequestError
from edge_perception.gpu.preprocess import to_rgb
from edge_perception.nodes.frame_streams import FrameStream, RemoteFrameStream
from edge_perception.nodes.managed import Health, ManagedNode
from edge_perception.nodes.messages import (
    to_diagnostic_array,
    to_header,
    to_image,
    to_nanoseconds,
    to_seen_objects,
    to_status,
)
from edge_perception.nodes.runner import run
from edge_perception.nodes.vlm_parameters import PARAMETERS
from edge_perception.vlm.answerer import Answerer, AnswerSettings
from edge_perception.vlm.answering import VisionLanguageModel
from edge_perception.vlm.inbox import Asked, Inbox
from edge_perception.vlm.models import ModelChoice, open_model
from edge_perception.vlm.scene import SceneGate, SeenObject, mentioned
from edge_perception.vlm.turns import DetectorTurns
from edge_perception.vlm.vision_cache import Picture, VisionCache
from edge_perception.vlm.worker import Worker, WorkerSettings

_LOOK_AROUND_S = 0.25  # how often subscribers are counted
_NEAR_NS = 500_000_000  # detections of a frame so near may stand for those of an answer's own
_MOST_VIEWS = 64  # frames whose detections are remembered, two seconds of a usual camera

Key = tuple[str, int]


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
        self._views: OrderedDict[Key, tuple[SeenObject, ...]] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._last_error = ""
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
        self._model = self._open_model(_model_choice(values))
        answerer = Answerer(
            self._model, VisionCache(values["cache_threshold"]), between=self._turns.give_way
        )
        self._gate = SceneGate(values["gate_far"], values["gate_patience"])
        inbox = Inbox(values["queue_size"])
        self._worker = Worker(answerer, self, WorkerSettings(), inbox, self._gate)
        self.apply_parameters(values)
        answerer.warm_up()
        reliable = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        publisher = self.create_lifecycle_publisher
        self._caption = publisher(String, "caption", reliable)
        self._caption_text = publisher(String, "~/caption_text", reliable)
        self._answer = publisher(String, "~/answer", reliable)
        self._partial = publisher(String, "~/answer/partial", 10)
        self._debug_image = publisher(Image, "~/debug_image", 1)
        self._stages = publisher(DiagnosticArray, "~/stages", reliable)

    def activate(self) -> None:
        """Begin to listen and to answer."""
        assert self._stream is not None
        assert self._worker is not None
        reliable = QoSProfile(depth=32, reliability=ReliabilityPolicy.RELIABLE)
        self._worker.start()
        self._ears = [self.create_subscription(String, "~/prompt", self._on_prompt, reliable)]
        self._timer = self.create_timer(_LOOK_AROUND_S, self._look_around)
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
        """Release the model."""
        if self._model is not None:
            self._model.close()
        self._model = self._worker = self._stream = None
        self._views.clear()
        for name in (
            *("_caption", "_caption_text", "_answer", "_partial", "_debug_image", "_stages"),
        ):
            if hasattr(self, name):
                self.destroy_lifecycle_publisher(getattr(self, name))
                delattr(self, name)

    def apply_parameters(self, values: Mapping[str, Any]) -> None:
        """Take over everything that is not fixed, for the next answer."""
        assert self._worker is not None
        answerer = self._worker.answerer
        answerer.settings = _answer_settings(values)
        answerer.cache.threshold = values["cache_threshold"]
        self._worker.settings = _worker_settings(values)
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
            "last_error": self._last_error or self._worker.last_error,
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
        if error := self._last_error or self._worker.last_error:
            return DiagnosticStatus.WARN, error
        return DiagnosticStatus.OK, "active"

    # Prompts.

    def _on_prompt(self, message: String) -> None:
        worker = self._worker
        if worker is None:
            return
        values = self.parameter_values()
        try:
            request = parse_request(message.data, values["max_prompt_bytes"])
        except RequestError as error:
            self._refuse(error)
            return
        if request.cancels:
            worker.cancel(request.id)
        else:
            worker.submit(_with_deadline(request, values["deadline_ms"]))

    def _refuse(self, error: RequestError) -> None:
        """Answer what is no request."""
        self._counts["malformed"] += 1
        self._last_error = str(error)
        answer = Answer(
            id=error.request_id, prompt="", text="", finish_reason="error", error=str(error)
        )
        self._answer.publish(String(data=answer.to_json()))

    # Frames and detections.

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
            self._last_error = str(error)
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
        if self._worker is None:
            return
        captions = (self._caption, self._caption_text, self._debug_image)
        wanted = any(publisher.get_subscription_count() for publisher in captions)
        self._listen_to_detections(wanted=wanted or bool(self._answer.get_subscription_count()))
        if wanted != self._worker.captions_wanted:
            self._worker.captions_wanted = wanted
            self._worker.wake()

    def _listen_to_detections(self, *, wanted: bool) -> None:
        """Hear detections, which has the detector work, only while they are of use."""
        if wanted and self._detections is None:
            newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
            self._detections = self.create_subscription(
                Detection2DArray, "detections", self._on_detections, newest
            )
        elif not wanted and self._detections is not None:
            self.destroy_subscription(self._detections)
            self._detections = None
            self._turns.end()

    def _on_detections(self, message: Detection2DArray) -> None:
        self._turns.end()
        objects = to_seen_objects(message)
        self._views[message.header.frame_id, to_nanoseconds(message.header.stamp)] = objects
        while len(self._views) > _MOST_VIEWS:
            self._views.popitem(last=False)
        if self._worker is not None:
            self._worker.see(objects)

    # What the worker tells, on its own thread.

    def want_picture(self) -> None:
        """Have the newest frame handed over."""
        self._picture_wanted = True
        self._look.trigger()

    def tell_partial(self, asked: Asked, picture: Picture, text: str) -> None:
        """Publish what has been written so far, to those who listen."""
        if not asked.is_caption and self._partial.get_subscription_count():
            partial = Answer(
                id=asked.request.id,
                prompt=asked.request.prompt,
                text=text,
                finish_reason="",
                stamp_ns=picture.stamp_ns,
                frame_id=picture.frame_id,
            )
            self._partial.publish(String(data=partial.to_json()))

    def tell_answer(self, asked: Asked, answer: Answer, picture: Picture | None) -> None:
        """Publish an answer or a caption, and the picture with both for people."""
        stamp_ns, seen = self._detections_near(answer)
        if stamp_ns is not None and answer.text:
            names = [seen_object.name for seen_object in seen]
            grounded = mentioned(answer.text, names)
            answer = replace(answer, grounded=grounded, grounded_stamp_ns=stamp_ns)
        message = String(data=answer.to_json())
        if asked.is_caption:
            self._caption.publish(message)
            self._caption_text.publish(String(data=answer.text))
        else:
            self._answer.publish(message)
        if picture is not None and self._debug_image.get_subscription_count():
            self._publish_debug_image(answer, picture, seen)

    def _detections_near(self, answer: Answer) -> tuple[int | None, tuple[SeenObject, ...]]:
        """The detections of an answer's frame, or else the nearest in time; and their stamp."""
        views = {
            stamp_ns: seen
            for (frame_id, stamp_ns), seen in tuple(self._views.items())
            if frame_id == answer.frame_id and abs(stamp_ns - answer.stamp_ns) <= _NEAR_NS
        }
        if not views:
            return None, ()
        nearest = min(views, key=lambda stamp_ns: abs(stamp_ns - answer.stamp_ns))
        return nearest, views[nearest]

    def tell_work(self, picture: Picture, start_ns: int, end_ns: int) -> None:
        """Publish when the model was busy, for the profiler."""
        if not self._stages.get_subscription_count():
            return
        to_ros_ns = self.get_clock().now().nanoseconds - time.monotonic_ns()
        values = {"start_stamp_ns": start_ns + to_ros_ns, "end_stamp_ns": end_ns + to_ros_ns}
        status = to_status(self.get_name(), DiagnosticStatus.OK, "work", values)
        header = to_header(picture.stamp_ns, picture.frame_id)
        self._stages.publish(to_diagnostic_array(header, status))

    def fail(self, reason: str) -> None:
        """Leave the node unconfigured; from the worker's thread by way of this node's own."""
        if self._worker is not None and self._worker.is_current_thread():
            self._broken = reason
            self._give_up.trigger()
        else:
            super().fail(reason)

    def _publish_debug_image(
        self, answer: Answer, picture: Picture, seen: Sequence[SeenObject]
    ) -> None:
        spoken_of = answer.grounded or ()
        boxes = [
            (seen_object.name, seen_object.box_xyxy, index in spoken_of)
            for index, seen_object in enumerate(seen)
        ]
        text = answer.text if not answer.id else f"{answer.prompt} {answer.text}"
        drawn = draw_caption(picture.pixels_rgb[:, :, ::-1], boxes, text or answer.error)
        header = to_header(picture.stamp_ns, picture.frame_id)
        self._debug_image.publish(to_image(drawn, header))


def _model_choice(values: Mapping[str, Any]) -> ModelChoice:
    path = values["model"]
    return ModelChoice(
        path=Path(path).expanduser() if path else demo_vlm_manifest(),
        device=values["torch_device"],
        threads=values["threads"],
        context=values["context"],
        segments=values["segments"],
    )


def _answer_settings(values: Mapping[str, Any]) -> AnswerSettings:
    return AnswerSettings(
        system_prompt=values["system_prompt"],
        sampling=Sampling(values["temperature"], values["top_k"], values["top_p"], values["seed"]),
        max_tokens=values["max_tokens"],
        max_image_side=values["max_image_side"],
        max_stale_ms=values["max_stale_ms"],
    )


def _worker_settings(values: Mapping[str, Any]) -> WorkerSettings:
    return WorkerSettings(
        captions=values["captions"],
        caption_prompt=values["caption_prompt"],
        caption_rate_hz=values["caption_rate_hz"],
        stale_answers=values["stale_answers"],
        max_frame_age_ms=values["max_frame_age_ms"],
        frame_timeout_ms=values["frame_timeout_ms"],
    )


def _with_deadline(request: Request, default_ms: float) -> Request:
    if request.deadline_ms is not None or not default_ms:
        return request
    return replace(request, deadline_ms=default_ms)


def main() -> int:
    """Run the node in a process of its own."""
    return run(lambda: [VlmNode()])


if __name__ == "__main__":
    sys.exit(main())
