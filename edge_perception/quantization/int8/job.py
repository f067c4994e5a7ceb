"""From a float detector and frames to an INT8 model, its manifest and a report, or nothing at all.

The order: choose frames; fold layer norms; calibrate; correct biases; judge the model with its
edges in float. If that loses too much, the edges' privilege ends: measure every layer alone and put
the worst back to float, one by one, until the loss is within bounds or too little would be left in
INT8. Worst is the layer whose squared distance is largest for the arithmetic it would take out of
INT8: errors of layers add up in their squares, and arithmetic is what they compete for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
import yaml

from edge_perception.backends.engine_store import write_atomically
from edge_perception.backends.store import load_manifest, sha256_of
from edge_perception.core.manifest import Manifest
from edge_perception.errors import ConfigError, ManifestError, QuantizationError
from edge_perception.quantization.int8.calibrators import CALIBRATORS
from edge_perception.quantization.int8.candidate import (
    Calibrated,
    calibrated,
    edge_layers,
    matching_layers,
)
from edge_perception.quantization.int8.collection import collect_histograms
from edge_perception.quantization.int8.frames import ChosenFrames, choose_frames, input_tensors
from edge_perception.quantization.int8.graph import load_float_graph
from edge_perception.quantization.int8.judging import Judge, make_judge
from edge_perception.quantization.int8.placement import find_layers, place
from edge_perception.quantization.int8.smoothing import smooth
from edge_perception.quantization.int8.sweep import SweepFile, sweep_layers
from edge_perception.trust.frames import Frame

Progress = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True)
class Recipe:
    """How to quantise.

    ``frames`` calibrate, up to ``judging`` more judge. ``max_drop`` is in points of the judge's
    unit, None for its default. ``least_share`` (0..1) of the multiply-accumulates stays in INT8
    whatever the loss. ``exclude`` are shell patterns of layers to leave float; ``edges`` quantises
    the first and the predicting layers too. ``smooth_alpha`` 0 folds no layer norm.
    """

    calibrator: str = "mse"
    frames: int = 128
    judging: int = 32
    seed: int = 0
    max_drop: float | None = None
    least_share: float = 0.9
    exclude: tuple[str, ...] = ()
    edges: bool = False
    smooth_alpha: float = 0.5
    correct_biases: bool = True
    sweep: bool = False
    compact: bool = False

    def __post_init__(self) -> None:
        if self.calibrator not in CALIBRATORS:
            raise ConfigError(
                "calibrator", expected=f"one of {', '.join(CALIBRATORS)}", got=self.calibrator
            )
        if self.frames < 1 or self.judging < 0:
            raise ConfigError("frames", expected="at least one", got=(self.frames, self.judging))
        if not (0 <= self.least_share <= 1 and 0 <= self.smooth_alpha <= 1):
            raise ConfigError(
                "least_share and smooth_alpha",
                expected="0 to 1",
                got=(self.least_share, self.smooth_alpha),
            )


@dataclass(frozen=True)
class Outcome:
    """Where the result lies, and the report that lies beside it."""

    model: Path
    manifest: Path
    report: Mapping[str, Any]

    @property
    def within_bounds(self) -> bool:
        """Whether the loss is at most the one asked for."""
        return bool(self.report["loss"]["value"] <= self.report["loss"]["max_drop"])


@dataclass
class _Mixture:
    """Which layers stay float and why, and what that costs."""

    why_float: dict[str, str]
    model: onnx.ModelProto
    loss: float
    distances: dict[str, float] = field(default_factory=dict)


def find_manifest(model: Path) -> Path:
    """Return the manifest of ``model``, which is one itself or an ONNX file with one beside it.

    Raises:
        ManifestError: there is none.
    """
    if model.suffix != ".onnx":
        return model
    for path in (model.with_suffix(".yaml"), model.with_name("manifest.yaml")):
        if path.is_file():
            return path
    raise ManifestError(
        f"model {str(model)!r} has no manifest beside it",
        expected=f"{model.with_suffix('.yaml').name} or manifest.yaml",
        mend="Write one (docs/int8.md), or name it in place of the model.",
    )


def quantize_detector(
    model: Path,
    frames: Iterable[Frame],
    recipe: Recipe,
    out: Path | None = None,
    progress: Progress = lambda _stage, _total: lambda: None,
) -> Outcome:
    """Quantise a detector and write ``out``, its manifest (``.yaml``) and report (``.json``).

    Args:
        model: the float model's manifest, or its ONNX file with a manifest beside it.
        frames: the user's frames; read several times.
        recipe: how.
        out: the ONNX file to write; ``MODEL.int8.onnx`` beside the model if None.
        progress: called with a stage and its number of steps (0: unknown); gives what to call
            after each step.

    Raises:
        ManifestError: no or a wrong manifest.
        QuantizationError: the model cannot be quantised, or there is nothing to calibrate with.
    """
    manifest_path = find_manifest(model)
    manifest, onnx_path = load_manifest(manifest_path)
    if manifest.precision != "float32":
        raise QuantizationError(
            f"manifest {manifest.name!r} names no float32 model",
            expected="precision float32",
            got=manifest.precision,
            mend="Start from the float32 export.",
        )
    out = out or onnx_path.with_suffix(".int8.onnx")
    tick = progress("looking at frames", 0)
    chosen = choose_frames(frames, recipe.frames, recipe.judging, recipe.seed, tick)
    ready, norms = _calibrate(onnx_path, manifest, chosen, recipe, progress)
    float_model = load_float_graph(onnx_path).model
    judge = make_judge(manifest, float_model, chosen.judging)
    file = SweepFile(out.with_suffix(".sweep.json"), _key(manifest, chosen, recipe))
    mixture = _find_mixture(ready, judge, recipe, file, progress)
    report = _report(manifest, ready, chosen, recipe, judge, mixture) | {"smoothed_norms": norms}
    outcome = _write(manifest_path, out, mixture.model, report)
    file.remove()
    return outcome


def _calibrate(
    onnx_path: Path,
    manifest: Manifest,
    chosen: ChosenFrames,
    recipe: Recipe,
    progress: Progress,
) -> tuple[Calibrated, int]:
    """The calibrated model, and how many layer norms were folded."""

    def tensors(stage: str) -> Iterable[Any]:
        tick = progress(stage, len(chosen.calibration))
        for tensor in input_tensors(chosen.calibration, manifest.preprocessing):
            yield tensor
            tick()

    graph, norms = load_float_graph(onnx_path), 0
    if recipe.smooth_alpha:
        graph, norms = smooth(graph, tensors("smoothing"), recipe.smooth_alpha)
    layers = find_layers(graph)
    if not layers:
        raise QuantizationError(
            f"model {str(onnx_path)!r} has nothing to quantise",
            expected="convolutions or matrix products with constant weights",
            got=sorted({node.op_type for node in graph.nodes}),
        )
    groups = place(graph, layers).groups
    histograms = collect_histograms(graph, list(groups), tensors("calibrating"))
    ready = calibrated(graph, layers, histograms, recipe.calibrator)
    if recipe.correct_biases:
        ready = ready.with_biases(tensors("correcting biases"))
    return ready, norms


def _find_mixture(
    ready: Calibrated, judge: Judge, recipe: Recipe, file: SweepFile, progress: Progress
) -> _Mixture:
    """Choose the layers that stay float."""
    why = dict.fromkeys(matching_layers(ready.layers, recipe.exclude), "excluded")
    if not recipe.edges:
        _keep_float(ready, why, edge_layers(ready.graph, ready.layers), "edge", recipe)
    model = ready.build(why)
    mixture = _Mixture(why, model, judge.loss(model))
    bound = judge.tolerance if recipe.max_drop is None else recipe.max_drop
    if recipe.sweep or mixture.loss > bound:
        mixture.distances = _sweep(ready, judge, file, progress)
    if mixture.loss > bound:
        mixture = _restore(ready, judge, mixture, bound, recipe, progress)
    if recipe.compact:
        mixture.model = ready.build(mixture.why_float, compact=True)
    return mixture


def _keep_float(
    ready: Calibrated, why: dict[str, str], names: Sequence[str], reason: str, recipe: Recipe
) -> None:
    """Leave layers float as far as enough stays in INT8."""
    for name in names:
        if name not in why and ready.share({*why, name}) >= recipe.least_share:
            why[name] = reason


def _sweep(
    ready: Calibrated, judge: Judge, file: SweepFile, progress: Progress
) -> dict[str, float]:
    names = [layer.name for layer in ready.layers]
    tick = progress("measuring layers", len(names))
    return sweep_layers(
        names,
        lambda name: judge.distance(ready.build([other for other in names if other != name])),
        file,
        tick,
    )


def _restore(
    ready: Calibrated,
    judge: Judge,
    start: _Mixture,
    bound: float,
    recipe: Recipe,
    progress: Progress,
) -> _Mixture:
    """Put layers back to float, worst first; all that may go back if none is within bounds."""

    def harm(name: str) -> tuple[float, str]:
        return -(start.distances[name] ** 2) / max(ready.macs[name], 1), name

    why = {name: reason for name, reason in start.why_float.items() if reason == "excluded"}
    mixture = start
    tick = progress("putting layers back", 0)
    for name in sorted(filter(start.distances.get, start.distances), key=harm):
        before = len(why)
        _keep_float(ready, why, [name], "restored", recipe)
        if len(why) == before:
            continue
        model = ready.build(why)
        mixture = _Mixture(dict(why), model, judge.loss(model), start.distances)
        tick()
        if mixture.loss <= bound:
            break
    return mixture


def _key(manifest: Manifest, chosen: ChosenFrames, recipe: Recipe) -> str:
    """A hash of all that a sweep's distances depend on."""
    facts = [manifest.sha256, chosen.digest, len(chosen.judging), asdict(recipe)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _report(
    manifest: Manifest,
    ready: Calibrated,
    chosen: ChosenFrames,
    recipe: Recipe,
    judge: Judge,
    mixture: _Mixture,
) -> dict[str, Any]:
    total = sum(ready.macs.values())
    why = dict(mixture.why_float)
    quantisable = {layer.name for layer in ready.layers}
    why |= {name: "no constant weights" for name in ready.macs if name not in quantisable}
    shares = {name: round(macs / total, 6) for name, macs in ready.macs.items()}
    worst_first = sorted(mixture.distances.items(), key=lambda entry: (-entry[1], entry[0]))
    bound = judge.tolerance if recipe.max_drop is None else recipe.max_drop
    return {
        "schema": 1,
        "model": manifest.name,
        "quantised_from": manifest.sha256,
        "recipe": asdict(recipe),
        "calibration_set": {
            "sha256": chosen.digest,
            "frames": len(chosen.calibration),
            "of": chosen.seen,
            "indices": list(chosen.indices),
        },
        "int8_mac_share": round(ready.share(mixture.why_float), 5),
        "macs": total,
        "float_layers": [
            {"layer": name, "mac_share": shares[name], "why": reason}
            for name, reason in why.items()
        ],
        "loss": {
            "value": round(mixture.loss, 4),
            "unit": judge.unit,
            "max_drop": bound,
            "frames": len(chosen.judging),
        },
        "sensitivity": [
            {"layer": name, "loss": round(distance, 6), "mac_share": shares[name]}
            for name, distance in worst_first
        ],
    }


def _write(
    manifest_path: Path, out: Path, model: onnx.ModelProto, report: dict[str, Any]
) -> Outcome:
    """Write model, manifest and report; a manifest never names a model that is not whole."""
    manifest, beside = out.with_suffix(".yaml"), out.with_suffix(".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    write_atomically(out, model.SerializeToString(deterministic=True))
    report["sha256"] = sha256_of(out)
    write_atomically(beside, (json.dumps(report, indent=2) + "\n").encode())
    mapping = _int8_manifest(manifest_path, out, report)
    text = yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True)
    write_atomically(manifest, text.encode())
    return Outcome(out, manifest, report)


def _int8_manifest(float_manifest: Path, out: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """The float model's manifest with what is different of the INT8 model."""
    mapping: dict[str, Any] = yaml.safe_load(float_manifest.read_text(encoding="utf-8"))
    facts = {
        "calibrator": report["recipe"]["calibrator"],
        "calibration_set": report["calibration_set"]["sha256"],
        "calibration_frames": report["calibration_set"]["frames"],
        "seed": report["recipe"]["seed"],
        "int8_mac_share": report["int8_mac_share"],
        "float_layers": [entry["layer"] for entry in report["float_layers"]],
    }
    return mapping | {
        "name": f"{mapping['name']}_int8",
        "model": out.name,
        "sha256": report["sha256"],
        "precision": "int8",
        "provenance": mapping.get("provenance", {})
        | {"quantised_from": report["quantised_from"], "int8": facts},
        "accuracy": {
            "float_model": mapping.get("accuracy", {}),
            "int8_loss": {key: report["loss"][key] for key in ("value", "unit", "frames")},
        },
    }
