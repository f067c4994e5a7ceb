"""The detector node: the newest frame in, its results out, everything else counted as dropped."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Classification as ClassificationMessage
from vision_msgs.msg import Detection2DArray, LabelInfo

from edge_perception.core.classification import Classification
from edge_perception.core.detections import Detections
from edge_perception.core.latency import SpanRecorder
from edge_perception.detection.classifier import Classifier, make_model
from edge_perception.detection.detector import DetectionSettings, Detector, open_by
from edge_perception.detection.drawing import draw_result
from edge_perception.errors import ConfigError, ImageError
from edge_perception.gpu.lease import FrameLease
from edge_perception.gpu.preprocess import to_bgr
from edge_perception.nodes.detection_cdr import encoder_for
from edge_perception.nodes.detector_parameters import (
    PARAMETERS,
    detection_settings,
    manifest_path,
    runtime_choice,
)
from edge_perception.nodes.foresight import Foresight
from edge_perception.nodes.frame_streams import FrameStream, RemoteFrameStream
from edge_perception.nodes.managed import OVERRIDABLE, Health, ManagedNode, reliable
from edge_perception.nodes.messages import (
    to_classification,
    to_diagnostic_array,
    to_header,
    to_image,
    to_label_info,
    to_status,
)
from edge_perception.nodes.runner import run

if TYPE_CHECKING:
    from edge_perception.detection.tracker import Tracker

# Frames that follow one another are processed in one callback, for so long at most.
_SERVE_AFTER_S = 0.5
# How long the next of them is awaited. A frame asked for in time is there sooner.
_PATIENCE_S = 0.004

# Where a model's results go, by its kind, which its manifest tells.
_RESULTS = {
    Detector: (Detection2DArray, "detections"),
    Classifier: (ClassificationMessage, "classification"),
}


class DetectorNode(ManagedNode):
    """Publishes ``detections``, ``label_info``, ``~/debug_image`` and ``~/stages``.

    A classifier's manifest makes it publish ``classification`` instead of ``detections``.

    Services and parameters are served between frames, at the latest every half second.
    ``streams`` are given by the container; a node of its own process reads the topics that its
    parameter ``frames`` names. With several cameras the detections of all go to one topic, and the
    header's frame_id tells them apart.
    """

    def __init__(
        self,
        name: str = "detector",
        streams: Sequence[FrameStream] | None = None,
        **node_options: Any,
    ) -> None:
        super().__init__(name, PARAMETERS, **node_options)
        self._given_streams = streams
        self._streams: Sequence[FrameStream] = ()
        self._next_stream = 0
        self._model: Detector | Classifier | None = None
        self._settings = DetectionSettings()
        self._make_tracker: Callable[[], Tracker] | None = None
        self._trackers: dict[str, Tracker] = {}
        self._counts: Counter[str] = Counter()
        self._last_error = ""
        self._foresight = Foresight()
        self._to_message: Callable[[Any, Header], Any] = lambda *_: None
        self._frame_came = threading.Event()
        self._work = self.create_guard_condition(self._process_waiting)

    def configure(self) -> None:
        """Load the model, warm it up, and make the publishers."""
        values = self.parameter_values()
        self._model = open_by(
            make_model,
            manifest_path(values["manifest"]),
            runtime_choice(values),
            self._tell_progress,
        )
        self._to_message = _message_maker(self._model)
        self.apply_parameters(values)
        self._streams = self._given_streams or [
            RemoteFrameStream(self.resolve_topic_name(topic)) for topic in values["frames"]
        ]
        latched = QoSProfile(
            depth=1,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        publisher = self.create_lifecycle_publisher
        topic = _RESULTS[type(self._model)]
        self._results = publisher(*topic, reliable(5), qos_overriding_options=OVERRIDABLE)
        self._label_info = publisher(LabelInfo, "label_info", latched)
        self._debug_image = publisher(Image, "~/debug_image", 1, qos_overriding_options=OVERRIDABLE)
        self._stages = publisher(DiagnosticArray, "~/stages", reliable(5))

    def activate(self) -> None:
        """Publish the class table and begin to take frames."""
        assert self._model is not None
        self._publish_label_info()
        self._foresight.start(early=not self._model.backend.on_cpu)
        for stream in self._streams:
            stream.start(self, self._wake, eager=len(self._streams) > 1)

    def deactivate(self) -> None:
        """Take no more frames."""
        self._foresight.stop()
        for stream in self._streams:
            stream.stop()

    def cleanup(self) -> None:
        """Release the model."""
        if self._model is not None:
            self._model.close()
            self._model = None
        for name in ("_results", "_label_info", "_debug_image", "_stages"):
            if hasattr(self, name):
                self.destroy_lifecycle_publisher(getattr(self, name))
                delattr(self, name)

    def apply_parameters(self, values: Mapping[str, Any]) -> None:
        """Take over thresholds, the class filter and tracking."""
        assert self._model is not None
        self._settings = detection_settings(values, self._model.manifest.class_names)
        self._make_tracker = _tracker_class() if values["track"] else None
        if self._make_tracker is None:
            self._trackers.clear()

    def counters(self) -> Mapping[str, object]:
        """Frames processed, dropped and failed, and frame handles refused."""
        return {
            "processed": self._counts["processed"],
            "dropped": sum(stream.skipped for stream in self._streams),
            "failed": self._counts["failed"],
            "not_wanted": self._counts["not_wanted"],
            "last_error": self._last_error,
            "refused": sum(stream.refused for stream in self._streams),
            "last_refusal": self._last_refusal(),
            "frame_transport": ", ".join(s.transport for s in self._streams if s.transport),
            "frame_way": self._frame_way(),
            "model": self._model.manifest.name if self._model else "",
            "backend": self._model.backend.name if self._model else "",
        }

    def health(self) -> Health:
        """Warn while frames fail or handles are refused."""
        failed = self.lately.grew("failed", self._counts["failed"])
        refused = self.lately.grew("refused", sum(stream.refused for stream in self._streams))
        if failed:
            return DiagnosticStatus.WARN, f"frames failed: {self._last_error}"
        if refused:
            return DiagnosticStatus.WARN, f"frame handles refused: {self._last_refusal()}"
        return DiagnosticStatus.OK, "active"

    def _tell_progress(self, told: str) -> None:
        """Log what the making of an engine has come to, at most once in five seconds."""
        self.get_logger().info(f"engine: {told}", throttle_duration_sec=5.0)

    def _frame_way(self) -> str:
        """Say where frames lie and the model reads them; a copy between the two costs every one."""
        if self._model is None or not any(stream.transport for stream in self._streams):
            return ""
        on_gpu = isinstance(self._model, Detector) and self._model.reads_device_frames
        read = "gpu" if on_gpu else "host"
        lying = {"gpu" if s.transport.startswith("cuda") else "host" for s in self._streams}
        return ", ".join(read if at == read else f"{at} to {read}" for at in sorted(lying))

    def _last_refusal(self) -> str:
        return next((s.last_refusal for s in self._streams if s.last_refusal), "")

    # One frame's way.

    def _wake(self) -> None:
        """Tell this node's thread, which may wait here or in the executor, of a frame."""
        self._frame_came.set()
        self._work.trigger()

    def _process_waiting(self) -> None:
        """Process frames as long as they come without a pause.

        The executor takes longer to wake than a frame to publish, so a frame that is about to
        come is awaited here; but services and parameters must not wait for a gap in the traffic.
        """
        until_s = time.monotonic() + _SERVE_AFTER_S
        while self._active and self._process_next():
            if time.monotonic() > until_s:
                self._work.trigger()
                return
            if self._given_streams:  # handles from elsewhere come by this thread's own executor
                self._frame_came.wait(_PATIENCE_S)

    def _process_next(self) -> bool:
        """Process the newest frame of the next camera that has one; tell whether there was one."""
        self._frame_came.clear()
        for offset in range(len(self._streams)):
            index = (self._next_stream + offset) % len(self._streams)
            lease = self._streams[index].acquire_newest()
            if lease is not None:
                self._next_stream = index + 1
                try:
                    with lease:
                        self._process(lease, self._streams[index])
                except Exception as error:
                    # A runtime that breaks must not take the process along; but the lease ends
                    # first: its end is marked on the model's stream, which failing closes.
                    self.fail(f"inference failed: {type(error).__name__}: {error}")
                return True
        return False

    def _process(self, lease: FrameLease, stream: FrameStream) -> None:
        if not self._wanted():
            self._counts["not_wanted"] += 1
            stream.want_next()
            return
        self._foresight.begin(stream.want_next)
        recorder = SpanRecorder()
        recorder.add("decode", lease.info.receive_ns, lease.info.decoded_ns)
        recorder.add("wait", lease.info.decoded_ns, time.monotonic_ns())
        try:
            result = self._perceive(lease, stream, recorder)
        except ImageError as error:
            self._counts["failed"] += 1
            self._last_error = str(error)
            self._foresight.inference_ended()
            self._foresight.finished(0)
            return
        self._counts["processed"] += 1
        self._publish(lease, stream.name, result, recorder)
        self._foresight.finished(lease.info.decoded_ns - lease.info.receive_ns)

    def _wanted(self) -> bool:
        """Whether anybody listens: without a subscriber there is no inference."""
        return bool(
            self._results.get_subscription_count() or self._debug_image.get_subscription_count()
        )

    def _perceive(
        self, lease: FrameLease, stream: FrameStream, recorder: SpanRecorder
    ) -> Detections | Classification:
        assert self._model is not None
        asking = self._foresight.inference_ended
        if isinstance(self._model, Classifier):
            pixels, image_format = lease.to_host(), lease.info.format
            return self._model.classify(pixels, image_format, self._settings, recorder, asking)
        detections = self._model.detect_frame(lease, self._settings, recorder, asking)
        camera = stream.name
        if self._make_tracker is not None:
            with recorder.stage("track"):
                if camera not in self._trackers:
                    self._trackers[camera] = self._make_tracker()
                detections = self._trackers[camera].update(detections, lease.info.stamp_ns)
        return detections

    def _publish(
        self,
        lease: FrameLease,
        camera: str,
        result: Detections | Classification,
        recorder: SpanRecorder,
    ) -> None:
        assert self._model is not None
        header = to_header(lease.info.stamp_ns, lease.info.frame_id)
        with recorder.stage("publish"):
            self._results.publish(self._to_message(result, header))
        if self._stages.get_subscription_count():
            self._publish_stages(lease, camera, header, recorder)
        if self._debug_image.get_subscription_count():
            names = self._model.manifest.class_names
            picture = draw_result(to_bgr(lease.to_host(), lease.info.format), result, names)
            self._debug_image.publish(to_image(picture, header))

    def _publish_stages(
        self, lease: FrameLease, camera: str, header: Header, recorder: SpanRecorder
    ) -> None:
        values: dict[str, object] = {
            "sequence": lease.sequence,
            "receive_stamp_ns": lease.info.receive_stamp_ns,
            "receive_monotonic_ns": lease.info.receive_ns,
        }
        for span in recorder.spans:
            values[f"{span.stage}_ns"] = span.duration_ns
        status = to_status(camera, DiagnosticStatus.OK, "stages", values)
        self._stages.publish(to_diagnostic_array(header, status))

    def _publish_label_info(self) -> None:
        assert self._model is not None
        header = Header(stamp=self.get_clock().now().to_msg())
        names = self._model.manifest.class_names
        self._label_info.publish(to_label_info(names, self._settings.score_threshold, header))


def _message_maker(model: Detector | Classifier) -> Callable[[Any, Header], Any]:
    names = model.manifest.class_names
    if isinstance(model, Classifier):
        return lambda result, header: to_classification(result, header, names)
    return encoder_for(names)


def _tracker_class() -> Callable[[], Tracker]:
    """Import the tracker only where it is wanted: its library takes a second to import."""
    try:
        from edge_perception.detection.tracker import Tracker
    except ImportError as error:
        raise ConfigError(f"parameter track: {error}", mend="pip install trackers.") from error
    return Tracker


def main() -> int:
    """Run the node in a process of its own."""
    return run(lambda: [DetectorNode()])


if __name__ == "__main__":
    sys.exit(main())
