"""The trust report as one self-contained HTML page, in the look of all reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from edge_perception.replay import charts
from edge_perception.replay.page import (
    DASH,
    data_url,
    definition_list,
    machine_facts,
    number,
    page_style,
    tile,
)
from edge_perception.trust.figures import Drift

# How each fate of a detection is shown: its words for either side, and its colour in pictures.
_FATES = (
    ("kept", "found by both", "#0b6bcb"),
    ("below_threshold", "found by the other, but below the score", "#fabe28"),
    ("other_class", "called something else by the other", "#c86edc"),
    ("absent", "not found by the other", "#eb3c3c"),
)
_MOST_LAYERS = 40


def render_trust_page(
    report: Mapping[str, Any], drift: Drift, pictures_jpeg: Sequence[bytes]
) -> str:
    """Return the page; all text of the report is escaped.

    ``pictures_jpeg`` are those of ``report["worst_frames"]``, in that order.
    """
    sections = fill_template(
        "detections.html",
        summary=_summary(report),
        agreement=_agreement(report["agreement"]),
        fates_words=_fates_words(report["settings"]),
        fates=_fates(report["fates"]),
        worst_words=_worst_words(report),
        worst="".join(_worst(report["worst_frames"], pictures_jpeg)),
        shift_words=_shift_words(report["drift"]),
        shift=charts.histogram(
            drift.shift_px.tolist(),
            {name: report["drift"]["box_shift_px"][name] for name in ("p50", "p90", "p99")},
            unit="px",
            counted="boxes",
            title="Histogram of how far boxes moved",
        ),
        score_words=_score_words(report["drift"]),
        score=charts.changes(
            drift.score.tolist(),
            drift.score_change.tolist(),
            title="Change of score over float's score",
            counted="boxes",
        ),
        classes_words="Recall and precision at IoU 0.75; boxes by the median of how far they moved."
        " A dash stands where a model found none.",
        classes=_classes(report["per_class"]),
        accuracy=_accuracy(report["accuracy"]),
    )
    return render_frame(report, "".join(_tiles(report)), sections)


def render_frame(report: Mapping[str, Any], tiles: str, sections: str) -> str:
    """Return the page of a report around its own tiles and sections, given as HTML."""
    models, source = report["models"], report["source"]
    return fill_template(
        "trust.html",
        style=page_style(),
        name=escape(models["int8"]["name"]),
        heading=escape(f"{models['int8']['name']} against {models['float']['name']}"),
        subheading=escape(f"{source['name']}, {source['evaluated']} frames"),
        time=escape(report["time"].replace("T", " ").replace("+00:00", " UTC")),
        tiles=tiles,
        sections=sections,
        sensitivity=_sensitivity_section(report["sensitivity"]),
        models=_models_table(models, report["infer_ms"]),
        facts=definition_list(machine_facts(report)),
        footer=escape(f"Schema {report['schema']}. The same figures, for machines: trust.json."),
    )


def fill_template(file_name: str, **parts: str) -> str:
    """Return a template of this package with its parts, given as HTML."""
    text = files(__package__).joinpath(file_name).read_text(encoding="utf-8")
    return Template(text).substitute(parts)


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as per cent; a dash where it is not known."""
    return DASH if share is None else f"{100 * share:.{digits}f}%"


def interval_words(entry: Mapping[str, Any]) -> str:
    """Return the 95% interval of a share in per cent; empty where there is none."""
    if entry["interval95"] is None:
        return ""
    low, high = entry["interval95"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _tiles(report: Mapping[str, Any]) -> Iterable[str]:
    agreement, drift, accuracy = report["agreement"], report["drift"], report["accuracy"]
    for key, iou in (("recall", "0.50"), ("recall", "0.75"), ("precision", "0.75")):
        entry = agreement[iou][key]
        value = DASH if entry["value"] is None else f"{100 * entry['value']:.1f}"
        yield tile(
            f"{key}, IoU {float(iou):g}", value, "%", f"95%: {interval_words(entry) or DASH}"
        )
    shift, change = drift["box_shift_px"], drift["score_change"]
    yield tile("box shift p50", number(shift["p50"], 2), "px", f"p99 {number(shift['p99'], 2)} px")
    yield tile(
        "score change p50", number(change["p50"], 3), "", f"bias {_signed(drift['score_bias'])}"
    )
    drop = accuracy and accuracy["drop"]
    if drop:
        points = 100 * drop["map50_95"]
        low, high = (100 * end for end in drop["interval95"])
        yield tile("mAP 50-95 lost", f"{points:.2f}", "points", f"95%: {low:.2f} to {high:.2f}")
    else:
        yield tile("mAP 50-95 lost", DASH, "", "no labels")


def _signed(value: float | None) -> str:
    return DASH if value is None else f"{value:+.4f}"


def _summary(report: Mapping[str, Any]) -> str:
    recall, settings = report["agreement"]["0.75"]["recall"], report["settings"]
    if not recall["of"]:
        return "The float model found nothing on these frames, so there is nothing to compare."
    lost = recall["of"] - recall["hits"]
    skipped = report["source"]["unreadable"]
    said = (
        f"Of the {recall['of']:,} detections that the float model makes at a score of"
        f" {settings['score_threshold']:g} and more, INT8 makes {recall['hits']:,} at nearly the"
        f" same place (IoU 0.75) and misses or moves {lost:,}. No labels are needed for that:"
        " the float model stands for the truth."
    )
    return said + (f" {skipped} frames could not be read and are left out." if skipped else "")


def _agreement(agreement: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>IoU {float(iou):g}</td>"
        + "".join(
            f"<td>{percent(entry[key]['value'])}"
            f" <small>[{interval_words(entry[key]) or DASH}]</small></td>"
            for key in ("recall", "precision")
        )
        + "</tr>"
        for iou, entry in agreement.items()
    )
    return (
        "<table><thead><tr><th>overlap</th><th>recall</th><th>precision</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _fates_words(settings: Mapping[str, Any]) -> str:
    return (
        f"Detections at a score of {settings['score_threshold']:g} and more of either model, and"
        " whether the other has the same object (IoU 0.5). The colours are those of the pictures."
    )


def _fates(fates: Mapping[str, Mapping[str, int]]) -> str:
    bars = "".join(_fate_bar(side, fates[side]) for side in ("float", "int8"))
    rows = "".join(
        f'<tr><td><span class="swatch" style="background:{colour}"></span>{words}</td>'
        f"<td>{fates['float'][key]:,}</td><td>{fates['int8'][key]:,}</td></tr>"
        for key, words, colour in _FATES
    )
    totals = "".join(f"<td>{sum(fates[side].values()):,}</td>" for side in ("float", "int8"))
    return (
        f"{bars}<table><thead><tr><th></th><th>float's</th><th>INT8's</th></tr></thead>"
        f'<tbody>{rows}<tr class="total"><td>all</td>{totals}</tr></tbody></table>'
    )


def _fate_bar(side: str, counts: Mapping[str, int]) -> str:
    parts = "".join(
        f'<i style="flex:{counts[key]};background:{colour}" title="{side}: {counts[key]} {words}">'
        "</i>"
        for key, words, colour in _FATES
        if counts[key]
    )
    return f'<div class="flowbar">{parts}</div>'


def _worst_words(report: Mapping[str, Any]) -> str:
    if not report["worst_frames"]:
        return "No frame was kept."
    return (
        "The frames that differ most, worst first: float on the left, INT8 on the right. Grey"
        " boxes are found by both; a coloured one is missing on the other side: yellow fell below"
        " the score there, violet has another name there, red is not there at all."
    )


def _worst(frames: Sequence[Mapping[str, Any]], pictures: Sequence[bytes]) -> Iterable[str]:
    for frame, picture in zip(frames, pictures, strict=True):
        words = (
            f"{frame['name']}: {frame['lost']} of float's are missing in INT8,"
            f" {frame['new']} of INT8's are new"
        )
        yield (
            f'<figure><img alt="{escape(words)}" src="{data_url("image/jpeg", picture)}">'
            f"<figcaption>{escape(words)}</figcaption></figure>"
        )


def _shift_words(drift: Mapping[str, Any]) -> str:
    count, iou = drift["box_shift_px"]["n"], drift["iou_loss"]["p50"]
    kept = DASH if iou is None else f"{1 - iou:.3f}"
    return (
        f"{count:,} boxes that both found: the longest way that one of the four sides moved, in"
        f" pixels of the image. Median overlap {kept}. Dashed lines are percentiles, as far as"
        f" {count:,} boxes carry them."
    )


def _score_words(drift: Mapping[str, Any]) -> str:
    return (
        "A point a box that both found: INT8's score minus float's, over float's. On average"
        f" {_signed(drift['score_bias'])}; a bias can be mended by the score threshold, scatter"
        " cannot."
    )


def _classes(per_class: Mapping[str, Mapping[str, Any]]) -> str:
    ordered = sorted(per_class.items(), key=lambda item: -item[1]["float_detections"])
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{entry['float_detections']:,}</td>"
        f"<td>{entry['int8_detections']:,}</td><td>{percent(entry['recall']['0.75'])}</td>"
        f"<td>{percent(entry['precision']['0.75'])}</td><td>{_signed(entry['score_bias'])}</td>"
        f"<td>{number(entry['box_shift_px']['p50'], 2)}</td>"
        f'<td class="flow">{_bar(entry["recall"]["0.75"] or 0)}</td></tr>'
        for name, entry in ordered
    )
    titles = ("class", "float", "INT8", "recall", "precision", "score bias", "shift px", "recall")
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _bar(share: float) -> str:
    width = 100 * min(1.0, max(0.0, share))
    return (
        f'<div class="track"><i class="body" style="left:0;width:{width:.1f}%;min-width:0"></i>'
        "</div>"
    )


def _accuracy(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None:
        return ""
    first, second, drop = accuracy["float"], accuracy["int8"], accuracy["drop"]
    low, high = (100 * end for end in drop["interval95"])
    words = (
        f"COCO's mAP against {first['truths']:,} true boxes on {first['images']:,} labelled"
        f" frames. INT8 loses {100 * drop['map50_95']:.2f} points of mAP 50-95; the 95% interval"
        f" of that drop, over resampled frames, is {low:.2f} to {high:.2f} points."
    )
    keys = ("map50_95", "map50", "map75", "map_small", "map_medium", "map_large")
    rows = [_accuracy_row(key.replace("map", "mAP "), first[key], second[key]) for key in keys]
    rows += [
        _accuracy_row(name, value, second["per_class"][name])
        for name, value in first["per_class"].items()
    ]
    head = "<th></th><th>float</th><th>INT8</th><th>points lost</th>"
    return (
        f'<section><h2>Accuracy against labels</h2><p class="lead">{words}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></section>"
    )


def _accuracy_row(name: str, first: float | None, second: float | None) -> str:
    lost = DASH if first is None or second is None else f"{100 * (first - second):.2f}"
    name = name.replace("_", " ").replace("50 95", "50-95")
    return (
        f"<tr><td>{escape(name)}</td><td>{number(first, 3)}</td><td>{number(second, 3)}</td>"
        f"<td>{lost}</td></tr>"
    )


def _sensitivity_section(layers: Sequence[Mapping[str, Any]] | None) -> str:
    """What each layer costs; empty where that was not measured."""
    if not layers:
        return ""
    shown = layers[:_MOST_LAYERS]
    largest = max(abs(layer["loss"]) for layer in shown) or 1.0
    rows = "".join(
        f"<tr><td>{escape(layer['layer'])}</td><td>{layer['loss']:.4g}</td>"
        f'<td class="flow">{_bar(layer["loss"] / largest)}</td></tr>'
        for layer in shown
    )
    more = f" The first {len(shown)} of {len(layers)}." if len(layers) > len(shown) else ""
    return (
        '<section><h2>Layer by layer</h2><p class="lead">What each layer costs when it alone is'
        f" quantised, as the quantiser measured it, worst first.{more}</p>"
        f"<table><tbody>{rows}</tbody></table></section>"
    )


def _models_table(models: Mapping[str, Mapping[str, Any]], infer_ms: Mapping[str, Any]) -> str:
    """Both models' facts and the median of their inference here, side by side."""
    keys = ("name", "head", "precision", "input", "classes", "license", "sha256")
    rows = "".join(
        f"<tr><td>{key}</td>"
        + "".join(f"<td>{escape(str(models[side][key])[:24])}</td>" for side in ("float", "int8"))
        + "</tr>"
        for key in keys
    )
    medians = "".join(
        f"<td>{number(infer_ms.get(side, {}).get('p50'), 1)} ms</td>" for side in ("float", "int8")
    )
    return (
        "<table><thead><tr><th></th><th>float</th><th>INT8</th></tr></thead><tbody>"
        f"{rows}<tr><td>inference here, p50</td>{medians}</tr></tbody></table>"
    )
