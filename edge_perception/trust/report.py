"""Writes a trust report: trust.json and one self-contained trust.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_perception.core.machine import describe_code, describe_machine, describe_state, utc_now
from edge_perception.errors import ConfigError
from edge_perception.replay.model_facts import model_facts
from edge_perception.replay.pictures import encode_jpeg
from edge_perception.trust.accuracy import accuracy_figures
from edge_perception.trust.classification import ClassifierEvaluation
from edge_perception.trust.evaluation import (
    SIDES,
    Evaluation,
    EvaluationSettings,
    JudgedFrame,
)
from edge_perception.trust.figures import (
    Drift,
    agreement_figures,
    class_figures,
    fate_figures,
)
from edge_perception.trust.frames import Frames
from edge_perception.trust.matching import KEPT
from edge_perception.trust.page import render_trust_page
from edge_perception.trust.pictures import draw_side_by_side

SCHEMA = "edge_perception/trust/1"


def write_trust_report(
    evaluation: Evaluation,
    settings: EvaluationSettings,
    frames: Frames,
    out: Path,
    sensitivity: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write ``trust.json`` and ``trust.html`` into ``out`` and return the figures.

    Args:
        evaluation: of all frames.
        settings: as the evaluation had them.
        frames: those that were evaluated; the worst are read again, for their pictures.
        out: a folder; made where it is missing.
        sensitivity: ``{"layer": name, "loss": number}`` a layer, from the quantiser.
    """
    drift = Drift.of(evaluation.comparisons)
    source = {"name": Path(frames.where).name, "topic": frames.topic, "images": frames.images}
    evaluation.unreadable += frames.skipped
    report = make_report(evaluation, drift, settings, source, sensitivity)
    out.mkdir(parents=True, exist_ok=True)
    (out / "trust.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    shown = _draw(frames, evaluation.worst(settings.worst), evaluation.manifests[0].class_names)
    (out / "trust.html").write_text(render_trust_page(report, drift, shown), encoding="utf-8")
    return report


def _draw(frames: Frames, judged: Sequence[JudgedFrame], class_names: Sequence[str]) -> list[bytes]:
    """Return a JPEG of each judged frame, in their order."""
    wanted = {each.index: each.comparison for each in judged}
    drawn = {
        frame.index: encode_jpeg(draw_side_by_side(frame, wanted[frame.index], class_names), 82)
        for frame in frames
        if frame.index in wanted
    }
    return [drawn[each.index] for each in judged]


def make_report(
    evaluation: Evaluation,
    drift: Drift,
    settings: EvaluationSettings,
    source: Mapping[str, Any],
    sensitivity: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the figures as they stand in ``trust.json`` (docs/trust_report.md)."""
    frames, names = evaluation.comparisons, evaluation.manifests[0].class_names
    return {
        "schema": SCHEMA,
        **circumstances(evaluation, settings, source, len(frames), sensitivity),
        "agreement": agreement_figures(frames, settings.seed),
        "fates": fate_figures(frames),
        "drift": drift.figures(),
        "per_class": class_figures(frames, drift, names),
        "accuracy": accuracy_figures(evaluation.float_pairs, evaluation.int8_pairs, settings.seed),
        "worst_frames": [
            {
                "index": judged.index,
                "name": judged.name,
                "cost": round(judged.cost, 4),
                "lost": int((judged.comparison.float_side.fate != KEPT).sum()),
                "new": int((judged.comparison.int8_side.fate != KEPT).sum()),
            }
            for judged in evaluation.worst(settings.worst)
        ],
    }


def circumstances(
    evaluation: Evaluation | ClassifierEvaluation,
    settings: EvaluationSettings,
    source: Mapping[str, Any],
    evaluated: int,
    sensitivity: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """Return what a report says beside its figures: when, on what, of which models."""
    latency = evaluation.latency.summaries()
    return {
        "time": utc_now(),
        "code": describe_code(),
        "machine": describe_machine(),
        "state": describe_state(),
        "settings": asdict(settings),
        "source": {**source, "evaluated": evaluated, "unreadable": evaluation.unreadable},
        "models": {
            side: {**model_facts(manifest), "provenance": dict(manifest.provenance)}
            for side, manifest in zip(SIDES, evaluation.manifests, strict=True)
        },
        "sensitivity": sensitivity and sorted(sensitivity, key=lambda entry: -entry["loss"]),
        "infer_ms": {side: asdict(latency[side]) for side in SIDES if side in latency},
    }


def load_sensitivity(path: Path) -> list[dict[str, Any]]:
    """Read what each layer costs when it alone is quantised.

    The file is a JSON list of ``{"layer": str, "loss": number}``, or a mapping whose key
    ``sensitivity`` holds such a list; further keys of an entry are kept.

    Raises:
        ConfigError: it cannot be read or has another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["sensitivity"] if isinstance(content, dict) else content
        rows = [{**e, "layer": str(e["layer"]), "loss": float(e["loss"])} for e in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"sensitivity {str(path)!r} cannot be read: {type(error).__name__}: {error}",
            expected='a JSON list of {"layer": name, "loss": number}',
        ) from error
    return rows
