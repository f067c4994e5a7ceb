"""From a float detector and frames to an INT8 model, its manifest and a report, or nothing at all.

The order: choose frames; fold layer norms; calibrate; correct biases; judge the model with its
edges in float. If that loses too much, the same with the channels of convolutions' inputs evened
out; if that still does, layers go back to float (``mixture.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import yaml

from edge_perception.backends.engine_store import write_atomically
from edge_perception.backends.store import load_manifest, sha256_of
from edge_perception.core.manifest import Manifest
from edge_perception.errors import ManifestError, QuantizationError
from edge_perception.quantization.int8.candidate import Calibrated, calibrated
from edge_perception.quantization.int8.collection import collect_histograms
from edge_perception.quantization.int8.equalisation import equalise
from edge_perception.quantization.int8.frames import ChosenFrames, choose_frames, input_tensors
from edge_perception.quantization.int8.graph import Array, FloatGraph, load_float_graph
from edge_perception.quantization.int8.judging import Judge, make_judge
from edge_perception.quantization.int8.mixture import Mixture, first_mixture, restored, sweep
from edge_perception.quantization.int8.placement import find_layers, place
from edge_perception.quantization.int8.recipe import Recipe
from edge_perception.quantization.int8.smoothing import smooth
from edge_perception.quantization.int8.sweep import SweepFile
from edge_perception.quantization.int8.variants import with_variants
from edge_perception.trust.frames import Frame

Progress = Callable[[str, int], Callable[[], None]]


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


@dataclass(frozen=True)
class _Feed:
    """The calibrating frames, as often as they are wanted, with a bar for each time."""

    frames: tuple[Frame, ...]
    manifest: Manifest
    progress: Progress

    def __call__(self, stage: str) -> Iterator[Array]:
        tick = self.progress(stage, len(self.frames))
        for tensor in input_tensors(self.frames, self.manifest.preprocessing):
            yield tensor
            tick()


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
    feed = _Feed(with_variants(chosen.calibration, recipe.frames), manifest, progress)
    graph, norms = load_float_graph(onnx_path), 0
    judge = make_judge(manifest, graph.model, chosen.judging)
    if recipe.smooth_alpha:
        graph, norms = smooth(graph, feed("smoothing"), recipe.smooth_alpha)
    file = SweepFile(out.with_suffix(".sweep.json"), _key(manifest, chosen, recipe))
    mixture, equalised = _find_mixture(graph, feed, judge, recipe, file)
    report = _report(manifest, chosen, recipe, judge, mixture) | {
        "calibration_variants": len(feed.frames) - len(chosen.calibration),
        "smoothed_norms": norms,
        "equalised_inputs": equalised,
    }
    outcome = _write(manifest_path, out, mixture.model, report)
    file.remove()
    return outcome


def _find_mixture(
    graph: FloatGraph, feed: _Feed, judge: Judge, recipe: Recipe, file: SweepFile
) -> tuple[Mixture, int]:
    """Choose the graph and the layers that stay float; tells how many inputs were equalised."""
    bound = _bound(recipe, judge)
    tried: list[tuple[Mixture, int]] = []
    for ready, equalised in _candidates(graph, feed, recipe):
        edges, share = recipe.edges, recipe.least_share
        first = first_mixture(ready, judge, recipe.exclude, edges=edges, least_share=share)
        tried.append((first, equalised))
        if first.loss <= bound:
            break
    mixture, equalised = min(tried, key=lambda each: each[0].loss)
    if recipe.sweep or mixture.loss > bound:
        tick = feed.progress("measuring layers", len(mixture.ready.layers))
        distances = sweep(mixture.ready, judge, file, tick)
        mixture = replace(mixture, distances=distances)
        if mixture.loss > bound:
            tick = feed.progress("putting layers back", 0)
            mixture = restored(mixture, judge, distances, bound, recipe.least_share, tick)
    if recipe.compact:
        compact = mixture.ready.build(mixture.why_float, compact=True)
        mixture = replace(mixture, model=compact)
    return mixture, equalised


def _candidates(graph: FloatGraph, feed: _Feed, recipe: Recipe) -> Iterator[tuple[Calibrated, int]]:
    """The model calibrated as it is, then with its inputs equalised, and how many those are."""
    if recipe.equalise != "always":
        yield _calibrate(graph, feed, recipe), 0
    if recipe.equalise != "never":
        even, inputs = equalise(graph, feed("equalising"))
        if inputs or recipe.equalise == "always":
            yield _calibrate(even, feed, recipe), inputs


def _calibrate(graph: FloatGraph, feed: _Feed, recipe: Recipe) -> Calibrated:
    layers = find_layers(graph)
    if not layers:
        raise QuantizationError(
            "the model has nothing to quantise",
            expected="convolutions or matrix products with constant weights",
            got=sorted({node.op_type for node in graph.nodes}),
        )
    groups = place(graph, layers).groups
    histograms = collect_histograms(graph, list(groups), feed("calibrating"))
    ready = calibrated(graph, layers, histograms, recipe.calibrator)
    return ready.with_biases(feed("correcting biases")) if recipe.correct_biases else ready


def _bound(recipe: Recipe, judge: Judge) -> float:
    return judge.tolerance if recipe.max_drop is None else recipe.max_drop


def _key(manifest: Manifest, chosen: ChosenFrames, recipe: Recipe) -> str:
    """A hash of all that a sweep's distances depend on."""
    facts = [manifest.sha256, chosen.digest, len(chosen.judging), asdict(recipe)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _report(
    manifest: Manifest, chosen: ChosenFrames, recipe: Recipe, judge: Judge, mixture: Mixture
) -> dict[str, Any]:
    ready = mixture.ready
    total = sum(ready.macs.values())
    why = dict(mixture.why_float)
    quantisable = {layer.name for layer in ready.layers}
    why |= {name: "no constant weights" for name in ready.macs if name not in quantisable}
    shares = {name: round(macs / total, 6) for name, macs in ready.macs.items()}
    worst_first = sorted(mixture.distances.items(), key=lambda entry: (-entry[1], entry[0]))
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
            "max_drop": _bound(recipe, judge),
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
