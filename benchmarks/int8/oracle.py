"""What ONNX Runtime makes of a Q/DQ graph, carried to the H100; and the judgement afterwards.

    oracle.py prepare OUT --name demo --float F.yaml --int8 Q.yaml --frames BAG
    oracle.py prepare OUT --name yolov8m --float F.onnx --int8 Q.onnx
    oracle.py judge OUT --name demo --float F.yaml --int8 Q.yaml --frames BAG --results RESULTS
    oracle.py judge OUT --name yolov8m --results RESULTS

``prepare`` writes NAME.float.onnx, NAME.int8.onnx and the inputs, NAME.npz, into OUT, as
tensorrt_h100.py wants them, and what ONNX Runtime makes of the inputs into OUT/oracle, which stays
here. For manifests the inputs are frames as the detector node prepares them, for bare ONNX files
(random weights, so that only speed and raw outputs mean something) seeded noise of pixels.

``judge`` adds to the JSON in RESULTS ``relative_l2``, of TensorRT's raw INT8 outputs against ONNX
Runtime's, ``fp16_relative_l2``, the same of FP16 and the float graph, and with frames
``match_rate``: both INT8 outputs decoded by the node's own decoder, the share of the oracle's
detections that TensorRT's match one to one, in class and at IoU 0.9. With the float manifest, too,
``float_match_rate``: the same share of the float model's detections, by each of the two. INT8
rounds in two ways there, and that tells whether one of them is further from the truth.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_perception.backends.base import Backend, Tensor
from edge_perception.backends.onnxruntime import OnnxRuntimeBackend
from edge_perception.backends.store import load_manifest
from edge_perception.core.detections import Detections
from edge_perception.core.latency import SpanRecorder
from edge_perception.core.manifest import Manifest
from edge_perception.detection.detector import DetectionSettings, Detector
from edge_perception.trust.frames import Frame, Frames
from edge_perception.trust.matching import BELOW_THRESHOLD, compare_frame

SCORE, IOU = 0.3, 0.9
NOISE_INPUTS = 2
ORACLE = "oracle"
REPORT = "int8_tensorrt_h100.json"


class Recorder:
    """A backend that keeps every input and output that goes through another one."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self.name = backend, backend.name
        self.inputs, self.outputs = backend.inputs, backend.outputs
        self.given: list[Tensor] = []
        self.returned: list[list[Tensor]] = []

    def infer(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        results = self._backend.infer(tensors)
        self.given.append(np.array(tensors[0]))
        self.returned.append([np.array(result) for result in results])
        return results

    def close(self) -> None:
        self._backend.close()

    def save(self, folder: Path, name: str) -> None:
        """Write the inputs, and into ``oracle/`` ``output_0`` and so on, one row an inference."""
        inputs = np.stack(self.given)
        scale = np.float32(1 if inputs.max() > 1 else 1 / 255)
        codes = np.rint(inputs / scale).astype(np.uint8)
        if not np.array_equal(codes * scale, inputs):
            raise ValueError("the inputs are not pixels times a scale")
        np.savez_compressed(folder / f"{name}.npz", codes=codes, scale=scale)
        outputs = {f"output_{i}": np.stack(rows) for i, rows in enumerate(zip(*self.returned))}
        (folder / ORACLE).mkdir(exist_ok=True)
        np.savez_compressed(folder / ORACLE / f"{name}.npz", **outputs)


class Replayer:
    """A backend that returns the outputs of a file, one row an inference."""

    name = "replayed"

    def __init__(self, manifest: Manifest, path: Path) -> None:
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        with np.load(path) as file:
            names = sorted((n for n in file.files if n.startswith("output_")), key=_number)
            outputs = [file[name].astype(np.float32) for name in names]
            self._rows: Iterator[tuple[Tensor, ...]] = zip(*outputs)

    def infer(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return list(next(self._rows))

    def close(self) -> None:
        pass


def prepare(options: argparse.Namespace) -> None:
    """Write a model's two graphs and its oracle."""
    options.out.mkdir(parents=True, exist_ok=True)
    if options.frames:
        manifest, int8 = load_manifest(options.int8)
        name, float_graph = options.name, load_manifest(options.float)[1]
        recorder = Recorder(OnnxRuntimeBackend(int8, options.threads))
        for _ in detect_all(Detector(manifest, recorder), chosen_frames(options)):
            pass
    else:
        name, float_graph, int8 = options.name, options.float, options.int8
        recorder = Recorder(OnnxRuntimeBackend(int8, options.threads))
        (image,) = recorder.inputs
        chance = np.random.default_rng(0)
        for _ in range(NOISE_INPUTS):
            codes = chance.integers(0, 256, image.shape, np.uint8)
            recorder.infer([codes * np.float32(1 / 255)])
    recorder.save(options.out, name)
    shutil.copyfile(float_graph, options.out / f"{name}.float.onnx")
    shutil.copyfile(int8, options.out / f"{name}.int8.onnx")


def judge(options: argparse.Namespace) -> None:
    """Add to the report how near TensorRT came to ONNX Runtime."""
    path = options.results / REPORT
    report = json.loads(path.read_text())
    figures = report["models"][options.name]
    files = (
        options.out / ORACLE / f"{options.name}.npz",
        options.results / f"{options.name}.int8.npz",
    )
    with np.load(files[0]) as truth, np.load(files[1]) as found:
        figures["relative_l2"] = relative_l2(truth, found)
    with np.load(options.results / f"{options.name}.float16.npz") as found:
        figures["fp16_relative_l2"] = relative_l2(run_float(options), found)
    if options.frames:
        manifest, _ = load_manifest(options.int8)
        wanted, found = (
            list(detect_all(Detector(manifest, Replayer(manifest, file)), chosen_frames(options)))
            for file in files
        )
        figures.update(match_figures(wanted, found))
        if options.float:
            truth = detect_floats(options)
            figures["float_match_rate"] = {
                name: match_figures(truth, side)["match_rate"]
                for name, side in (("onnxruntime", wanted), ("tensorrt", found))
            }
    path.write_text(json.dumps(report, indent=2) + "\n")


def detect_floats(options: argparse.Namespace) -> list[Detections]:
    """Return what the float model finds in the frames, by ONNX Runtime."""
    manifest, model = load_manifest(options.float)
    with contextlib.closing(OnnxRuntimeBackend(model, options.threads)) as backend:
        return list(detect_all(Detector(manifest, backend), chosen_frames(options)))


def run_float(options: argparse.Namespace) -> dict[str, Tensor]:
    """Return the outputs of the float graph for the inputs that travelled, one row an inference."""
    model = options.out / f"{options.name}.float.onnx"
    with (
        contextlib.closing(OnnxRuntimeBackend(model, options.threads)) as backend,
        np.load(options.out / f"{options.name}.npz") as inputs,
    ):
        codes, scale = inputs["codes"], inputs["scale"]
        rows = [[np.array(result) for result in backend.infer([row * scale])] for row in codes]
    return {f"output_{i}": np.stack(outputs) for i, outputs in enumerate(zip(*rows))}


def relative_l2(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    """Return ``|found - wanted| / |wanted|`` for each output."""
    errors = {}
    for name in wanted:
        right = wanted[name].astype(np.float64)
        difference = found[name].reshape(right.shape) - right
        errors[name] = float(np.linalg.norm(difference) / np.linalg.norm(right))
    return errors


def match_figures(oracle: Sequence[Detections], found: Sequence[Detections]) -> dict[str, Any]:
    """Return how many of the oracle's detections were matched, and the share.

    A score that fell below the threshold by a thousandth counts as lost, too; how many those are
    is told beside it.
    """
    pairs = [compare_frame(*pair, SCORE).float_side for pair in zip(oracle, found, strict=True)]
    detections = sum(len(side) for side in pairs)
    matched = sum(int((side.iou >= IOU).sum()) for side in pairs)
    below = sum(int((side.fate == BELOW_THRESHOLD).sum()) for side in pairs)
    return {
        "match_rate": round(matched / detections, 5) if detections else None,
        "matched": matched,
        "below_threshold": below,
        "oracle_detections": detections,
    }


def detect_all(detector: Detector, frames: Sequence[Frame]) -> Iterator[Detections]:
    """Yield what a detector finds in each frame, down to half the score that counts."""
    settings = DetectionSettings(score_threshold=SCORE / 2)
    for frame in frames:
        yield detector.detect(frame.pixels, frame.format, settings, SpanRecorder())


def chosen_frames(options: argparse.Namespace) -> list[Frame]:
    """Return the frames, spread evenly over the source."""
    total = sum(1 for _ in Frames(str(options.frames)))
    step = max(1, total // options.count)
    return list(itertools.islice(Frames(str(options.frames)), 0, step * options.count, step))


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare or judge one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("command", choices=("prepare", "judge"))
    parser.add_argument("out", type=Path, help="folder of the models")
    parser.add_argument("--name", required=True, help="of the model in the report")
    parser.add_argument("--float", type=Path, help="float manifest, or ONNX file without --frames")
    parser.add_argument("--int8", type=Path, help="as --float")
    parser.add_argument("--frames", help="bag or folder of images")
    parser.add_argument("--count", type=int, default=32, help="of frames")
    parser.add_argument("--results", type=Path, help="what the H100 brought back")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    {"prepare": prepare, "judge": judge}[options.command](options)


if __name__ == "__main__":
    main()
