r"""How much headroom YOLOX-Nano's activations want, asked of each half of coco-mini by itself.

    python -m benchmarks.int8.accuracy_headroom --coco COCO_MINI --yolox YOLOX_NANO_ONNX \
        --accuracy docs/benchmarks/int8_accuracy.json --out docs/benchmarks/int8_headroom.json

Each half is split once more: one quarter of the images (with their variants) calibrates, the other
judges, both ways, so that no image of the half on which the result is judged has a say. Judged by
how far scores move, root mean square over all anchors where float's score is above 0.15: that is
hundreds of numbers, where detections are a few dozen. The layers that stay float are those that
``--accuracy`` tells of each half.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.int8.accuracy import write_yolox_manifest
from benchmarks.int8.coco import CocoFolder
from edge_perception.backends.engine_store import write_atomically
from edge_perception.backends.store import load_manifest
from edge_perception.core.machine import describe_code, describe_machine, utc_now
from edge_perception.core.manifest import Manifest
from edge_perception.quantization.int8.candidate import Calibrated, calibrated
from edge_perception.quantization.int8.collection import collect_histograms, open_session
from edge_perception.quantization.int8.equalisation import equalise
from edge_perception.quantization.int8.frames import input_tensors
from edge_perception.quantization.int8.graph import Array, FloatGraph, load_float_graph
from edge_perception.quantization.int8.placement import find_layers, place
from edge_perception.quantization.int8.variants import with_variants

HEADROOMS = (1.0, 1.25, 1.5, 2.0)
_CALIBRATION_FRAMES = 56  # a quarter's eight images, and six variants of each
_LEAST_SCORE = 0.15


def tensors_of(
    manifest: Manifest, folder: CocoFolder, entries: Sequence[Mapping[str, Any]], count: int = 0
) -> list[Array]:
    """The input tensors of images, with variants up to ``count`` of them."""
    frames = with_variants([folder.frame(entry) for entry in entries], count)
    return [tensor.copy() for tensor in input_tensors(frames, manifest.preprocessing)]


def calibrate(graph: FloatGraph, tensors: Sequence[Array]) -> Calibrated:
    """Equalise and calibrate as the quantiser does; biases are not corrected yet."""
    even, _ = equalise(graph, tensors)
    layers = find_layers(even)
    histograms = collect_histograms(even, list(place(even, layers).groups), tensors)
    return calibrated(even, layers, histograms, "mse")


def best_scores(model: onnx.ModelProto, tensors: Sequence[Array]) -> Array:
    """The score of every class at every anchor, ``(frames, anchors, classes)``."""
    session, name = open_session(model, threads=2), model.graph.input[0].name
    raw = np.stack([session.run(None, {name: tensor})[0][0] for tensor in tensors])
    return np.asarray(raw[..., 4:5] * raw[..., 5:])


def score_drift(float_scores: Array, int8_scores: Array) -> dict[str, float]:
    """RMS and mean of what the scores of float's best classes changed by."""
    best = float_scores.argmax(axis=-1)[..., None]
    before, after = (np.take_along_axis(x, best, -1)[..., 0] for x in (float_scores, int8_scores))
    change = (after - before)[before > _LEAST_SCORE]
    return {
        "anchors": len(change),
        "rms": round(float(np.sqrt((change**2).mean())), 5),
        "mean": round(float(change.mean()), 5),
    }


def measure(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """One row a half, a fold and a headroom."""
    folder = CocoFolder(options.coco)
    manifest, path = load_manifest(write_yolox_manifest(options.yolox, folder, scratch))
    graph = load_float_graph(path)
    ways = json.loads(options.accuracy.read_text())["yolox_nano_coco_mini"]["ways"]
    rows = []
    for index, way in enumerate(ways):
        half, left_float = folder.entries[index::2], [e["layer"] for e in way["float_layers"]]
        for fold in range(2):
            learnt = tensors_of(manifest, folder, half[fold::2], _CALIBRATION_FRAMES)
            exam = tensors_of(manifest, folder, half[1 - fold :: 2])
            ready, wanted = calibrate(graph, learnt), best_scores(graph.model, exam)
            for headroom in HEADROOMS:
                model = replace(ready, headroom=headroom).with_biases(learnt).build(left_float)
                drift = score_drift(wanted, best_scores(model, exam))
                rows.append({"half": index, "fold": fold, "headroom": headroom} | drift)
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="headroom of YOLOX-Nano's activations")
    parser.add_argument("--coco", type=Path, required=True, help="coco-mini")
    parser.add_argument("--yolox", type=Path, required=True, help="yolox_nano.onnx")
    parser.add_argument("--accuracy", type=Path, required=True, help="int8_accuracy.json")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(options, Path(scratch))
    facts = {"machine": describe_machine(), "time": utc_now(), "code": describe_code()}
    report = {"judged_by": "score drift inside a half", "rows": rows, **facts}
    write_atomically(options.out, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
