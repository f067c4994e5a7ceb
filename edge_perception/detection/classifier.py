"""One image in, its likeliest classes out, with the time each stage took."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_perception.backends.base import Backend
from edge_perception.core.classification import Classification
from edge_perception.core.detections import Float32Array
from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.manifest import Manifest
from edge_perception.detection.decoders import softmax
from edge_perception.detection.detector import DetectionSettings, Detector
from edge_perception.detection.network import Network
from edge_perception.errors import ManifestError


class Classifier(Network):
    """A network that names an image as a whole, by logits ``(1, C)``; owned by one thread."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        """Check that manifest and model agree.

        Raises:
            ManifestError: names, shapes or dtypes of tensors differ, or the head does not fit.
        """
        super().__init__(manifest, backend)
        check_classifier(manifest)

    def classify(
        self,
        pixels: UInt8Array,
        image_format: ImageFormat,
        settings: DetectionSettings,
        recorder: SpanRecorder,
        after_inference: Callable[[], None] = lambda: None,
    ) -> Classification:
        """Name an image; arguments, spans and errors are those of ``Detector.detect``.

        Of the settings, those about boxes play no part.
        """
        outputs, _ = self._run(pixels, image_format, recorder, after_inference)
        with recorder.stage("postprocess"):
            return decode_logits(outputs[0], settings)


def decode_logits(logits: Float32Array, settings: DetectionSettings) -> Classification:
    """Return the classes at or above the threshold; logits that hold NaN name nothing."""
    scores = softmax(logits[0])
    kept = np.flatnonzero(scores >= settings.score_threshold)
    if settings.class_ids is not None:
        kept = kept[np.isin(kept, list(settings.class_ids))]
    best = kept[np.argsort(-scores[kept], kind="stable")][: settings.max_detections]
    return Classification(best.astype(np.int32), np.minimum(scores[best], 1))


def check_classifier(manifest: Manifest) -> None:
    """Raise ``ManifestError`` unless the first output has one logit a class of the manifest."""
    expected = (1, len(manifest.class_names))
    if manifest.outputs[0].shape != expected:
        raise ManifestError(
            f"classifier with {len(manifest.class_names)} class names"
            " does not fit the model's output",
            expected=f"shape {expected}",
            got=manifest.outputs[0].shape,
        )


def make_model(manifest: Manifest, backend: Backend) -> Detector | Classifier:
    """Return what the manifest's head makes of a model; see ``Detector`` and ``Classifier``."""
    kind = Classifier if manifest.head == "classifier" else Detector
    return kind(manifest, backend)
