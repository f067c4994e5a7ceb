"""Writes the trust report of two classifiers: trust.json and one self-contained trust.html."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from edge_perception.replay import charts
from edge_perception.replay.page import data_url, number, tile
from edge_perception.replay.pictures import encode_jpeg
from edge_perception.trust.classification import (
    ClassifierEvaluation,
    classification_figures,
    divergence,
    draw_answers,
)
from edge_perception.trust.evaluation import EvaluationSettings
from edge_perception.trust.frames import Frames
from edge_perception.trust.page import fill_template, interval_words, percent, render_frame
from edge_perception.trust.report import circumstances

SCHEMA = "edge_perception/trust_classification/1"


def write_classification_report(
    evaluation: ClassifierEvaluation,
    settings: EvaluationSettings,
    frames: Frames,
    out: Path,
    sensitivity: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write both files into ``out`` and return the figures; as ``write_trust_report`` does."""
    evaluation.unreadable += frames.skipped
    source = {"name": Path(frames.where).name, "topic": frames.topic, "images": frames.images}
    evaluated = len(evaluation.places)
    names = evaluation.manifests[0].class_names
    report = {
        "schema": SCHEMA,
        **circumstances(evaluation, settings, source, evaluated, sensitivity),
        **classification_figures(*evaluation.probabilities, names, settings.seed),
        "worst_frames": _worst(evaluation, settings.worst),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "trust.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page = _render(report, evaluation, _pictures(frames, report["worst_frames"]))
    (out / "trust.html").write_text(page, encoding="utf-8")
    return report


def _worst(evaluation: ClassifierEvaluation, count: int) -> list[dict[str, Any]]:
    first, second = evaluation.probabilities
    names, kl = evaluation.manifests[0].class_names, divergence(first, second)
    return [
        {
            "index": evaluation.places[row][0],
            "name": evaluation.places[row][1],
            "kl": round(float(kl[row]), 5),
            "float": names[first[row].argmax()],
            "float_score": round(float(first[row].max()), 4),
            "int8": names[second[row].argmax()],
            "int8_score": round(float(second[row].max()), 4),
        }
        for row in evaluation.worst(count)
    ]


def _answers(entry: Mapping[str, Any]) -> str:
    return (
        f"float {entry['float']} {entry['float_score']:.2f},"
        f" INT8 {entry['int8']} {entry['int8_score']:.2f}"
    )


def _pictures(frames: Frames, worst: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Return a JPEG of each of the worst frames, in their order."""
    words = {entry["index"]: _answers(entry) for entry in worst}
    drawn = {
        frame.index: encode_jpeg(draw_answers(frame, words[frame.index]), 82)
        for frame in frames
        if frame.index in words
    }
    return [drawn[entry["index"]] for entry in worst]


def _render(
    report: Mapping[str, Any], evaluation: ClassifierEvaluation, pictures: Sequence[bytes]
) -> str:
    """Return the page; all text of the report is escaped."""
    first, second = evaluation.probabilities
    rows, named = range(len(first)), first.argmax(axis=1)
    sections = fill_template(
        "classification.html",
        worst="".join(_figures(report["worst_frames"], pictures)),
        score=charts.changes(
            first[rows, named].tolist(),
            (second[rows, named] - first[rows, named]).tolist(),
            title="Change of probability over float's probability",
            counted="images",
        ),
        changes=_changes(report["changes"]),
        classes=_classes(report["per_class"]),
    )
    return render_frame(report, "".join(_tiles(report)), sections)


def _tiles(report: Mapping[str, Any]) -> Iterable[str]:
    for key, name in (("top1", "same likeliest class"), ("top5", "float's in INT8's five")):
        entry = report["agreement"][key]
        note = f"95%: {interval_words(entry)}" if entry["of"] else ""
        yield tile(name, percent(entry["value"]).rstrip("%"), "%", note)
    kl, change = report["kl"], report["score_change"]
    yield tile("divergence, mean", number(kl["mean"], 4), "nats", f"max {number(kl['max'], 3)}")
    yield tile("score change p50", number(change["p50"], 3), "", f"max {number(change['max'], 3)}")


def _figures(worst: Sequence[Mapping[str, Any]], pictures: Sequence[bytes]) -> Iterable[str]:
    for entry, picture in zip(worst, pictures, strict=True):
        words = escape(f"{entry['name']}: {_answers(entry)}, {entry['kl']:.3f} nats")
        yield (
            f'<figure><img alt="{words}" src="{data_url("image/jpeg", picture)}">'
            f"<figcaption>{words}</figcaption></figure>"
        )


def _changes(changes: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(entry['float'])}</td><td>{escape(entry['int8'])}</td>"
        f"<td>{entry['images']:,}</td></tr>"
        for entry in changes
    )
    head = "<th>float says</th><th>INT8 says</th><th>images</th>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return table if rows else "<p>No image changed its likeliest class.</p>"


def _classes(per_class: Mapping[str, Mapping[str, int]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{entry['images']:,}</td>"
        f"<td>{percent(entry['kept'] / entry['images'])}</td></tr>"
        for name, entry in sorted(per_class.items(), key=lambda item: -item[1]["images"])
    )
    head = "<th>float says</th><th>images</th><th>INT8 says the same</th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
