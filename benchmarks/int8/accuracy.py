r"""What INT8 costs the detectors in accuracy, and what it gains or loses in time on this CPU.

    python -m benchmarks.int8.accuracy --calibration TRAIN_IMAGES --exam COCO_FOLDER \
        --coco COCO_MINI --yolox YOLOX_NANO_ONNX [--vit MANIFEST] [--frames N] \
        [--only SECTION ...] [--modelopt PYTHON] --out docs/benchmarks/int8_accuracy.json

Sections: ``demo_yolo`` (the package's detector: calibrated on training frames, judged on the
held-out exam), ``vit_detector`` (the same of the detector that --vit names),
``yolox_nano_coco_mini`` (Megvii's YOLOX-Nano: calibrated on one half of coco-mini, judged on the
other, both ways), ``calibrators`` (ours, onnxruntime's and modelopt's quantisers on the same models
and frames; after ``yolox_nano_coco_mini``, whose float layers it takes) and ``speed``. Each run
replaces the sections it measured and keeps the others; each section tells its machine, date and
commit. ``--frames`` judges on that many frames of the exam, evenly spaced.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.int8 import coco
from benchmarks.int8.coco import CocoFolder, Found
from edge_perception.backends.engine_store import write_atomically
from edge_perception.backends.onnxruntime import OnnxRuntimeBackend
from edge_perception.backends.store import load_manifest, sha256_of
from edge_perception.core.machine import describe_code, describe_machine, describe_state, utc_now
from edge_perception.core.manifest import Manifest
from edge_perception.embedded import demo_manifest
from edge_perception.quantization.int8.calibrators import CALIBRATORS
from edge_perception.quantization.int8.frames import choose_frames, input_tensors
from edge_perception.quantization.int8.graph import LEAST_OPSET, opset_of
from edge_perception.quantization.int8.job import quantize_detector
from edge_perception.quantization.int8.macs import share_in_int8
from edge_perception.quantization.int8.recipe import Recipe
from edge_perception.trust.figures import agreement_figures
from edge_perception.trust.frames import Frame, Frames
from edge_perception.trust.matching import compare_frame

SECTIONS = ("demo_yolo", "vit_detector", "yolox_nano_coco_mini", "calibrators", "speed")
SCORE = 0.3
_TABLE_FRAMES = 200  # of the exam, for each row of the table
# For every row of the table: onnxruntime's histogram calibrators keep all activations of them.
_TABLE_CALIBRATION_FRAMES = 16
_FAINT_SCORE = 0.2
_TIMED_RUNS = 40


class Bench:
    """The models and data of one run, and a folder for what it makes."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.known = json.loads(options.out.read_text()) if options.out.exists() else {}
        exam = CocoFolder(options.exam)
        frames = options.frames or len(exam.entries)
        self.exam = replace(exam, step=max(1, len(exam.entries) // frames))
        self.table_exam = replace(
            exam, step=max(1, len(exam.entries) // min(frames, _TABLE_FRAMES))
        )
        self.coco = CocoFolder(options.coco)
        self.demo = demo_manifest()
        self.yolox = write_yolox_manifest(options.yolox, self.coco, folder)

    def calibration_frames(self) -> Frames:
        """The demo detector's training frames."""
        return Frames(str(self.options.calibration))

    def halves(self) -> list[list[dict[str, Any]]]:
        """Both halves of coco-mini: every other image."""
        return [self.coco.entries[0::2], self.coco.entries[1::2]]


def measure_demo(bench: Bench) -> dict[str, Any]:
    """The demo detector on the exam."""
    return _judge_on_exam(bench, bench.demo)


def measure_vit(bench: Bench) -> dict[str, Any]:
    """The plain-ViT detector on the exam."""
    return _judge_on_exam(bench, bench.options.vit)


def _judge_on_exam(bench: Bench, detector: Path) -> dict[str, Any]:
    manifest, model = load_manifest(detector)
    out = bench.folder / f"{manifest.name}.int8.onnx"
    outcome = quantize_detector(detector, bench.calibration_frames(), Recipe(), out)
    entries = bench.exam.entries
    found = [coco.detect(manifest, path, bench.exam, entries) for path in (model, out)]
    return {
        "model": manifest.name,
        "model_sha256": manifest.sha256,
        **_map_figures(found[0], found[1], bench.exam, manifest, resamples=100),
        **_agreement(found[0], found[1]),
        **_quantiser_figures(outcome.report, model, out),
        "judged_on": {"frames": len(entries), "what": "held-out rendered frames"},
    }


def measure_yolox(bench: Bench) -> dict[str, Any]:
    """YOLOX-Nano on coco-mini, both ways."""
    manifest, model = load_manifest(bench.yolox)
    halves = bench.halves()
    float_found = coco.detect(manifest, model, bench.coco, bench.coco.entries)
    int8_found: dict[int, Any] = {}
    ways = []
    for index, half in enumerate(halves):
        out = bench.folder / f"yolox{index}.int8.onnx"
        report = quantize_detector(bench.yolox, _Images(bench.coco, half), _YOLOX, out).report
        int8_found |= coco.detect(manifest, out, bench.coco, halves[1 - index])
        ways.append(_quantiser_figures(report, model, out))
    return {
        "model_sha256": manifest.sha256,
        **_map_figures(float_found, int8_found, bench.coco, manifest, resamples=300),
        **_agreement(float_found, int8_found),
        "int8_mac_share": min(way["int8_mac_share"] for way in ways),
        "ways": ways,
        "judged_on": {"frames": len(int8_found), "what": "the half not calibrated with, both ways"},
    }


# Every image of a half calibrates, so the half judges itself; the bound asks for all there is.
_YOLOX = Recipe(judging=0, max_drop=1.0)


def measure_calibrators(bench: Bench) -> list[dict[str, Any]]:
    """Every quantiser on the same models, calibrating with the same frames; one row each.

    Rows that ``--out`` has already are kept unless they are measured again.
    """
    quantisers = _quantisers(bench)
    chosen = bench.options.quantisers or list(quantisers)
    rows = {row["quantiser"]: row for row in bench.known.get("calibrators", [])}
    contests: Sequence[_DemoContest | _YoloxContest] = (_DemoContest(bench), _YoloxContest(bench))
    for name in chosen:
        rows[name] = {"quantiser": name}
        for contest in contests:
            try:
                rows[name] |= contest.judge(quantisers[name])
            except Exception as error:  # whatever a foreign tool raises is a result, too
                rows[name][f"{contest.name}_failed"] = f"{type(error).__name__}: {error}"[:300]
        print(rows[name], flush=True)
    return list(rows.values())


def measure_speed(bench: Bench) -> dict[str, Any]:
    """Inference alone, float against INT8, taking turns; milliseconds."""
    results = {}
    for name, path in (("demo_yolo", bench.demo), ("yolox_nano", bench.yolox)):
        manifest, model = load_manifest(path)
        frames = _calibration_of(bench, name)
        ours = bench.folder / f"{name}.speed.onnx"
        recipe = Recipe(judging=4, max_drop=100.0)
        quantize_detector(path, frames, recipe, ours)
        theirs = bench.folder / f"{name}.onnxruntime.onnx"
        _onnxruntime(manifest, model, frames, theirs)
        paths = {"float": model, "int8": ours, "int8_onnxruntime_default": theirs}
        results[name] = _take_turns(manifest, paths)
    return results


def _take_turns(manifest: Manifest, paths: Mapping[str, Path]) -> dict[str, Any]:
    backends = {name: OnnxRuntimeBackend(path) for name, path in paths.items()}
    tensor = np.random.default_rng(0).uniform(0, 255, manifest.inputs[0].shape)
    times: dict[str, list[float]] = {name: [] for name in backends}
    for turn in range(_TIMED_RUNS + 5):
        for name, backend in backends.items():
            start = time.perf_counter()
            backend.infer([tensor.astype(np.float32)])
            if turn >= 5:
                times[name].append((time.perf_counter() - start) * 1e3)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {f"{name}_ms": round(value, 2) for name, value in medians.items()} | {
        f"{name}_over_float": round(value / medians["float"], 3)
        for name, value in medians.items()
        if name != "float"
    }


Quantise = Callable[[Path, Any, Path, tuple[str, ...]], None]


def _quantisers(bench: Bench) -> dict[str, Quantise]:
    """Name to function of (float manifest, frames, output, layers to leave float)."""

    def ours(calibrator: str, **changes: Any) -> Quantise:
        def quantise(path: Path, frames: Any, out: Path, left_float: tuple[str, ...]) -> None:
            recipe = Recipe(
                calibrator,
                frames=_TABLE_CALIBRATION_FRAMES,
                judging=0,
                exclude=left_float,
                edges=True,
                max_drop=1e9,
            )
            quantize_detector(path, frames, replace(recipe, **changes), out)

        return quantise

    table: dict[str, Quantise] = {name: ours(name) for name in CALIBRATORS}
    table["mse, no bias correction"] = ours("mse", correct_biases=False)
    table["mse, every layer"] = ours("mse", exclude=())
    table["mse, equalised"] = ours("mse", equalise="always")
    table["mse, equalised, every layer"] = ours("mse", equalise="always", exclude=())
    table["mse, equalised, with variants"] = ours("mse", equalise="always", frames=128)
    for label, choice in _ONNXRUNTIME.items():
        table[f"onnxruntime {label}"] = _onnxruntime_quantiser(choice)
    if bench.options.modelopt:
        for method in ("max", "entropy"):
            table[f"modelopt {method}"] = _modelopt_quantiser(bench.options.modelopt, method)
    return table


class _DemoContest:
    """The demo detector on part of the exam."""

    name = "demo"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.manifest, self.model = load_manifest(bench.demo)
        self.entries = bench.table_exam.entries
        frames = bench.calibration_frames()
        self.left_float = _edges(bench.demo, frames, bench.folder)
        self.frames = _spread(frames, _TABLE_CALIBRATION_FRAMES)
        found = coco.detect(self.manifest, self.model, bench.table_exam, self.entries)
        self.float_map = self._map(found)

    def judge(self, quantise: Quantise) -> dict[str, Any]:
        out = self.bench.folder / "contest.onnx"
        quantise(self.bench.demo, self.frames, out, self.left_float)
        found = coco.detect(self.manifest, out, self.bench.table_exam, self.entries)
        return {
            "demo_map_float": round(self.float_map, 2),
            "demo_map_int8": round(self._map(found), 2),
            "demo_frames": len(self.entries),
            "demo_int8_mac_share": round(share_in_int8(onnx.load(out)), 4),
        }

    def _map(self, found: Found) -> float:
        folder = self.bench.table_exam
        return 100 * coco.mean_ap(coco.judge(found, folder, self.manifest.class_names))


class _YoloxContest:
    """YOLOX-Nano on both halves of coco-mini, with ``measure_yolox``'s float layers."""

    name = "yolox"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.manifest, self.model = load_manifest(bench.yolox)
        self.halves = bench.halves()
        self.left_float = [self._mixture(index) for index in range(2)]
        self.found = coco.detect(self.manifest, self.model, bench.coco, bench.coco.entries)

    def _mixture(self, index: int) -> tuple[str, ...]:
        measured = self.bench.known["yolox_nano_coco_mini"]["ways"][index]
        return tuple(entry["layer"] for entry in measured["float_layers"])

    def judge(self, quantise: Quantise) -> dict[str, Any]:
        found: dict[int, Any] = {}
        out = self.bench.folder / "contest.onnx"
        for index, half in enumerate(self.halves):
            frames = _Images(self.bench.coco, half)
            quantise(self.bench.yolox, frames, out, self.left_float[index])
            found |= coco.detect(self.manifest, out, self.bench.coco, self.halves[1 - index])
        evaluation = coco.judge(found, self.bench.coco, self.manifest.class_names)
        return {
            "yolox_map_int8": round(100 * coco.mean_ap(evaluation), 2),
            "yolox_recall_iou75": _agreement(self.found, found)["recall_iou75"],
            "yolox_int8_mac_share": round(share_in_int8(onnx.load(out)), 4),
        }


class _Images:
    """Some images of a COCO folder as frames; iterated as often as wanted."""

    def __init__(self, folder: CocoFolder, entries: Sequence[Mapping[str, Any]]) -> None:
        self._folder = folder
        self._entries = entries

    def __iter__(self) -> Iterator[Frame]:
        return (self._folder.frame(entry) for entry in self._entries)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Frames as onnxruntime's calibrators want them."""

    def __init__(self, manifest: Manifest, frames: Any) -> None:
        tensors = input_tensors(frames, manifest.preprocessing)
        self._feeds = ({manifest.inputs[0].name: tensor.copy()} for tensor in tensors)

    def get_next(self) -> Any:
        """Return the next frame's feed, or None."""
        return next(self._feeds, None)


_LAYERS = ["Conv", "MatMul", "Gemm"]  # all else, the concat of boxes and scores too, stays float
_ONNXRUNTIME: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "as TensorRT needs, minmax": {"method": CalibrationMethod.MinMax},
    "as TensorRT needs, percentile": {"method": CalibrationMethod.Percentile},
    "as TensorRT needs, entropy": {"method": CalibrationMethod.Entropy},
    "layers alone, minmax": {"method": CalibrationMethod.MinMax, "operators": _LAYERS},
    "layers alone, percentile": {"method": CalibrationMethod.Percentile, "operators": _LAYERS},
}


def _onnxruntime_quantiser(choice: Mapping[str, Any]) -> Quantise:
    def quantise(path: Path, frames: Any, out: Path, left_float: tuple[str, ...]) -> None:
        manifest, model = load_manifest(path)
        _onnxruntime(manifest, model, frames, out, choice, left_float)

    return quantise


def _onnxruntime(
    manifest: Manifest,
    model: Path,
    frames: Any,
    out: Path,
    choice: Mapping[str, Any] | None = None,
    left_float: tuple[str, ...] = (),
) -> None:
    """``quantize_static``: by its defaults, or symmetric, per channel, with float biases.

    A scale a channel needs opset 13, to which it does not convert: of an older model it makes one
    that nothing loads.
    """
    prepared = out.with_name("prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    settings: dict[str, Any] = {"quant_format": QuantFormat.QDQ}
    if choice:
        ready = onnx.load(prepared)
        if opset_of(ready) < LEAST_OPSET:
            onnx.save(onnx.version_converter.convert_version(ready, LEAST_OPSET), prepared)
        settings |= {
            "per_channel": True,
            "activation_type": QuantType.QInt8,
            "weight_type": QuantType.QInt8,
            "calibrate_method": choice["method"],
            "nodes_to_exclude": list(left_float),
            "op_types_to_quantize": choice.get("operators"),
            "extra_options": {
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
            },
        }
    quantize_static(str(prepared), str(out), _Reader(manifest, frames), **settings)


def _modelopt_quantiser(python: Path, method: str) -> Quantise:
    def quantise(path: Path, frames: Any, out: Path, left_float: tuple[str, ...]) -> None:
        manifest, model = load_manifest(path)
        tensors = [each.copy() for each in input_tensors(frames, manifest.preprocessing)]
        data = out.with_name("calibration.npy")
        np.save(data, np.concatenate(tensors))
        copy = out.with_name("modelopt_input.onnx")  # it writes the shapes it infers into its input
        copy.write_bytes(model.read_bytes())
        command = [str(python), "-m", "modelopt.onnx.quantization", "--quantize_mode", "int8"]
        command += ["--onnx_path", str(copy), "--calibration_data_path", str(data)]
        command += ["--calibration_method", method, "--calibration_eps", "cpu"]
        command += ["--high_precision_dtype", "fp32", "--output_path", str(out)]
        command += ["--nodes_to_exclude", *(f"^{re.escape(name)}$" for name in left_float)]
        subprocess.run(command, check=True, capture_output=True, cwd=out.parent)

    return quantise


def _edges(path: Path, frames: Frames, folder: Path) -> tuple[str, ...]:
    """The layers that our recipe leaves float by default."""
    out = folder / "edges.onnx"
    recipe = Recipe(frames=1, judging=1, max_drop=1e9, correct_biases=False)
    report = quantize_detector(path, frames, recipe, out).report
    return tuple(entry["layer"] for entry in report["float_layers"])


def _map_figures(
    float_found: Found, int8_found: Found, folder: CocoFolder, manifest: Manifest, resamples: int
) -> dict[str, Any]:
    sides = [coco.judge(each, folder, manifest.class_names) for each in (float_found, int8_found)]
    maps = [100 * coco.mean_ap(side) for side in sides]
    return {
        "map_float": round(maps[0], 2),
        "map_int8": round(maps[1], 2),
        "drop": round(maps[0] - maps[1], 2),
        **coco.intervals(sides[0], sides[1], resamples),
    }


def _agreement(float_found: Found, int8_found: Found) -> dict[str, Any]:
    """Recall and precision of INT8 against float; recall also where INT8 may be a bit less sure."""
    pairs = [(float_found[image], each) for image, each in int8_found.items()]
    strict = agreement_figures([compare_frame(*pair, SCORE) for pair in pairs], seed=0)["0.75"]
    faint = agreement_figures(
        [
            compare_frame(first.select(first.scores >= SCORE), second, _FAINT_SCORE)
            for first, second in pairs
        ],
        seed=0,
    )["0.75"]
    return {
        "recall_iou75": strict["recall"]["value"],
        "recall_iou75_interval95": strict["recall"]["interval95"],
        "precision_iou75": strict["precision"]["value"],
        "float_detections": strict["recall"]["of"],
        f"recall_iou75_int8_score_{_FAINT_SCORE}": faint["recall"]["value"],
    }


def _quantiser_figures(report: Mapping[str, Any], model: Path, out: Path) -> dict[str, Any]:
    keys = ("int8_mac_share", "float_layers", "calibration_set", "loss", "equalised_inputs")
    return {key: report[key] for key in keys} | {
        "calibrator": report["recipe"]["calibrator"],
        "float_bytes": model.stat().st_size,
        "int8_bytes": out.stat().st_size,
        "sensitivity": report["sensitivity"][:10],
    }


def write_yolox_manifest(model: Path, folder: CocoFolder, scratch: Path) -> Path:
    """Megvii's YOLOX-Nano as this package names models; its classes are COCO's, by rising id."""
    categories = json.loads((folder.root / "instances.json").read_text())["categories"]
    copy = scratch / "yolox_nano.onnx"
    copy.write_bytes(model.read_bytes())
    side = 416
    mapping = {
        "schema": 1,
        "name": "yolox_nano",
        "model": copy.name,
        "sha256": sha256_of(copy),
        "license": "Apache-2.0",
        "source": "github.com/Megvii-BaseDetection/YOLOX",
        "head": "yolox",
        "class_names": [entry["name"] for entry in sorted(categories, key=lambda e: e["id"])],
        "inputs": [{"name": "images", "shape": [1, 3, side, side]}],
        "outputs": [{"name": "output", "shape": [1, 3549, 85]}],
        "preprocessing": {
            "height": side,
            "width": side,
            "color": "bgr",
            "scale": 1.0,
            "pad_align": "top_left",
        },
    }
    path = copy.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(mapping))
    return path


def _calibration_of(bench: Bench, name: str) -> Any:
    if name == "demo_yolo":
        return _spread(bench.calibration_frames(), _TABLE_CALIBRATION_FRAMES)
    return _Images(bench.coco, bench.halves()[0])


def _spread(frames: Frames, count: int) -> tuple[Frame, ...]:
    """The frames that differ most, as the quantiser chooses them."""
    return choose_frames(frames, count, judging=0, seed=0).calibration


_MEASURES: Mapping[str, Callable[[Bench], Any]] = {
    "demo_yolo": measure_demo,
    "vit_detector": measure_vit,
    "yolox_nano_coco_mini": measure_yolox,
    "calibrators": measure_calibrators,
    "speed": measure_speed,
}


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description="accuracy of INT8 detectors")
    parser.add_argument("--calibration", type=Path, required=True, help="training frames")
    parser.add_argument("--exam", type=Path, required=True, help="held-out COCO folder")
    parser.add_argument("--coco", type=Path, required=True, help="coco-mini")
    parser.add_argument("--yolox", type=Path, required=True, help="yolox_nano.onnx")
    parser.add_argument("--vit", type=Path, help="manifest of the ViT detector, float")
    parser.add_argument("--frames", type=int, help="of the exam; default: all")
    parser.add_argument("--only", nargs="+", choices=SECTIONS)
    parser.add_argument("--quantisers", nargs="+", help="rows of the table; default: all")
    parser.add_argument("--modelopt", type=Path, help="a Python that has nvidia-modelopt")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    only = options.only or [name for name in SECTIONS if options.vit or name != "vit_detector"]
    if "vit_detector" in only and options.vit is None:
        parser.error("vit_detector wants --vit: what training/vit_detector/run_gpu.sh made")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        report = bench.known
        for section in only:
            start = time.monotonic()
            report[section] = _MEASURES[section](bench)
            report.setdefault("measured", {})[section] = {
                "time": utc_now(),
                "seconds": round(time.monotonic() - start),
                "code": describe_code(),
                "state": describe_state(),
            }
            report |= {"machine": describe_machine(), "time": utc_now(), "code": describe_code()}
            write_atomically(options.out, (json.dumps(report, indent=2) + "\n").encode())
            print(f"{section}: {json.dumps(report[section], indent=1)[:1500]}", flush=True)


if __name__ == "__main__":
    main()
