"""A model behind its preprocessing: what detectors and classifiers have in common."""

from __future__ import annotations

from collections.abc import Callable

from edge_perception.backends.base import Backend
from edge_perception.core.image import ImageFormat, UInt8Array
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.letterbox import Letterbox
from edge_perception.core.manifest import Manifest
from edge_perception.detection.decoders import Outputs
from edge_perception.gpu.preprocess import Preprocessor


class Network:
    """Takes an image of the host through preprocessing and model; owned by one thread."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        """Own ``backend`` from here on.

        Raises:
            ManifestError: names, shapes or dtypes of tensors differ from the manifest's.
        """
        manifest.check_tensors(backend.inputs, backend.outputs)
        self.manifest = manifest
        self.backend = backend
        self._preprocessor = Preprocessor(manifest.preprocessing)

    def _run(
        self,
        pixels: UInt8Array,
        image_format: ImageFormat,
        recorder: SpanRecorder,
        after_inference: Callable[[], None],
    ) -> tuple[Outputs, Letterbox]:
        """Return the outputs and how the image lay in the input; see ``Detector.detect``."""
        with recorder.stage("preprocess"):
            tensor, letterbox = self._preprocessor(pixels, image_format)
        with recorder.stage("infer"):
            outputs = self.backend.infer([tensor])
        after_inference()
        return outputs, letterbox

    def close(self) -> None:
        """Release the backend."""
        self.backend.close()
