"""The report as one self-contained HTML page, and the pieces that other such pages share.

Its look is page.css's, its order report.html's.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import accumulate
from string import Template
from typing import Any

from edge_perception.replay import charts

PERCENTILES = ("p50", "p90", "p99", "p99_9", "max")
DASH = "–"

# How each count of frames is shown: its words, and whether it is fine, meant, or bad.
_FRAME_KINDS = (
    ("processed", "processed", "ok"),
    ("replaced_by_newer", "replaced by a newer frame before their turn", "meant"),
    ("lost_before_camera", "lost before the camera node", "bad"),
    ("rejected", "refused as malformed", "bad"),
    ("failed", "failed in the detector", "bad"),
)


@dataclass(frozen=True)
class Media:
    """Pictures of the page: JPEGs, and the annotated frames as an animated WebP, if there is one.

    ``aspect`` is the frames' width over their height. ``spoken_of`` are JPEGs of frames with what
    the VLM node said of each.
    """

    hero_jpeg: bytes
    sheet_jpeg: bytes
    animation_webp: bytes | None
    aspect: float
    spoken_of: Sequence[tuple[bytes, Sequence[str]]] = ()


@dataclass(frozen=True)
class FrameTimes:
    """When each frame was sent, in seconds from the first, and its latency; None if dropped."""

    seconds: Sequence[float]
    latency_ms: Sequence[float | None]


def render_page(report: Mapping[str, Any], media: Media, times: FrameTimes) -> str:
    """Return the page; all text from the report is escaped."""
    template = Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    model, source = report["model"], report["source"]
    end_to_end = report["latency_ms"]["end_to_end"]
    marks = {name.replace("_", "."): end_to_end[name] for name in ("p50", "p90", "p99", "p99_9")}
    known = [value for value in times.latency_ms if value is not None]
    return template.substitute(
        style=page_style(),
        title=escape(f"Perception report: {model.get('name', 'unknown model')}"),
        heading=escape(f"{model.get('name', 'unknown model')} on {machine_name(report)}"),
        subheading=escape(_subheading(source)),
        time=escape(report["time"].replace("T", " ").replace("+00:00", " UTC")),
        hero=_hero(media),
        tiles="".join(_tiles(report)),
        stages="".join(_stage_rows(report["latency_ms"])),
        histogram=charts.histogram(known, marks),
        histogram_words=_histogram_words(report),
        timeline=charts.timeline(times.seconds, times.latency_ms, report["deadline"]["ms"]),
        timeline_words=_timeline_words(report),
        frames=_frames(report["frames"]),
        frames_words="A frame that waited while a newer one came is dropped on purpose and counted,"
        " never queued.",
        accuracy=_accuracy_rows(report["accuracy"]),
        accuracy_words=_accuracy_words(report["accuracy"]),
        conversation=render_conversation(report["vlm"], media.spoken_of) if "vlm" in report else "",
        sheet=data_url("image/jpeg", media.sheet_jpeg),
        facts=_facts(report),
        footer=escape(f"Schema {report['schema']}. The same figures, for machines: report.json."),
    )


def render_conversation(
    vlm: Mapping[str, Any], spoken_of: Sequence[tuple[bytes, Sequence[str]]]
) -> str:
    """Return the section about captions and answers; all text is escaped."""
    cards = "".join(
        f'<figure><img alt="A frame that was spoken of" src="{data_url("image/jpeg", jpeg)}">'
        f"<figcaption>{''.join(f'<p>{escape(line)}</p>' for line in lines)}</figcaption></figure>"
        for jpeg, lines in spoken_of
    )
    words = escape(_conversation_words(vlm))
    return (
        f'<section><h2>Captions and answers</h2><p class="lead">{words}</p>'
        f'<div class="spoken">{cards}</div></section>'
    )


def _conversation_words(vlm: Mapping[str, Any]) -> str:
    accuracy = vlm["accuracy"]
    beside, alone = (vlm["detector_ms"][kind] for kind in ("with_vlm", "without_vlm"))
    kinds = ", ".join(
        f"{kind} {number(100 * told['right'])}% of {told['judged']}"
        for kind, told in accuracy["by_kind"].items()
    )
    right = None if accuracy["right"] is None else 100 * accuracy["right"]
    return (
        f"{vlm['captions']} captions and {vlm['answers']} answers by {vlm['model']}. Of"
        f" {accuracy['judged']} that the bag's own boxes can judge, {number(right)}% are right to"
        f" the letter ({kinds or 'none'}). First token after {number(vlm['ttft_ms']['p50'])} ms in"
        f" the median, {number(vlm['tokens_per_s'])} tokens a second, features of unchanged"
        f" pictures used again for {number(_percent(vlm['cache_hit_rate']))}% of the answers. The"
        f" detector's latency: p50 {number(beside['p50'])}, p90 {number(beside['p90'])}, p99"
        f" {number(beside['p99'])} ms on frames beside which the model worked, p50"
        f" {number(alone['p50'])}, p90 {number(alone['p90'])}, p99 {number(alone['p99'])} ms on the"
        " others."
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def page_style() -> str:
    """Return the style sheet of every report."""
    return files(__package__).joinpath("page.css").read_text(encoding="utf-8")


def number(value: float | None, digits: int = 1) -> str:
    """Return a figure for people; a dash where it is not known."""
    return DASH if value is None else f"{value:.{digits}f}"


def machine_name(report: Mapping[str, Any]) -> str:
    """Return the shortest name that tells the machine of a report."""
    machine = report["machine"]
    return str(machine["board"] or machine["gpu"] or machine["cpu"] or machine["architecture"])


def _subheading(source: Mapping[str, Any]) -> str:
    rate = source.get("fps")
    told = f" at {rate:.1f} Hz" if rate else ""
    return f"{source.get('name', 'unknown source')}, {source.get('images', '?')} images{told}"


def _hero(media: Media) -> str:
    if media.animation_webp is None:
        shown = data_url("image/jpeg", media.hero_jpeg)
    else:
        shown = data_url("image/webp", media.animation_webp)
    style = f"aspect-ratio: {media.aspect:.4f}"
    return f'<img alt="Annotated frames of the run" style="{style}" src="{shown}">'


def data_url(media_type: str, data: bytes) -> str:
    """Return bytes as a URL that needs no other file."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _tiles(report: Mapping[str, Any]) -> Iterable[str]:
    latency, frames, accuracy = report["latency_ms"], report["frames"], report["accuracy"]
    end_to_end = latency["end_to_end"]
    infer = latency.get("infer", {}).get("p50")
    beside = None if infer is None or end_to_end["p50"] is None else end_to_end["p50"] - infer
    truth = f"{accuracy['truths']} true boxes" if accuracy["truths"] else "no truth in the bag"
    share = 100 * frames["dropped"] / frames["sent"]
    yield tile("latency p50", number(end_to_end["p50"]), "ms", "stamp to arrival")
    yield tile(
        "latency p99", number(end_to_end["p99"]), "ms", f"max {number(end_to_end['max'])} ms"
    )
    yield tile("inference p50", number(infer), "ms", f"all else {number(beside)} ms")
    yield tile("processed", number(report["fps"]), "fps", f"{frames['processed']} frames")
    yield tile("dropped", number(share), "%", f"{frames['dropped']} of {frames['sent']} frames")
    yield tile("mAP 50-95", number(accuracy["map50_95"], 3), "", truth)


def tile(name: str, value: str, unit: str, note: str) -> str:
    """Return one of the figures at a page's head; all text is escaped."""
    return (
        f'<div class="tile"><span class="name">{escape(name)}</span>'
        f"<b>{escape(value)}<small>{escape(unit)}</small></b><span>{escape(note)}</span></div>"
    )


def _stage_rows(latency_ms: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    stages = {name: s for name, s in latency_ms.items() if name != "end_to_end" and s["n"]}
    starts = list(accumulate((s["p50"] for s in stages.values()), initial=0.0))
    ends = [start + (s["p90"] or s["p50"]) for start, s in zip(starts, stages.values())]
    span = max(*ends, starts[-1], 1e-9)
    for start, (name, summary) in zip(starts, stages.items()):
        yield _stage_row(name, summary, _flow_bar(start, summary, span))
    yield _stage_row("end to end", latency_ms["end_to_end"], "", "total")


def _stage_row(name: str, summary: Mapping[str, Any], bar: str, kind: str = "") -> str:
    cells = "".join(f"<td>{number(summary[p], 2)}</td>" for p in PERCENTILES)
    return f'<tr class="{kind}"><td>{escape(name)}</td>{cells}<td class="flow">{bar}</td></tr>'


def _flow_bar(start_ms: float, summary: Mapping[str, Any], span_ms: float) -> str:
    left = 100 * max(0.0, start_ms) / span_ms
    body = 100 * max(0.0, summary["p50"]) / span_ms
    tail = 100 * max(0.0, summary["p90"] or summary["p50"]) / span_ms
    return (
        f'<div class="track"><i class="tail" style="left:{left:.2f}%;'
        f'width:{min(tail, 100 - left):.2f}%"></i><i class="body" style="left:{left:.2f}%;'
        f'width:{body:.2f}%"></i></div>'
    )


def _histogram_words(report: Mapping[str, Any]) -> str:
    count = report["latency_ms"]["end_to_end"]["n"]
    return f"{count} frames. Dashed lines are percentiles, as far as {count} samples carry them."


def _timeline_words(report: Mapping[str, Any]) -> str:
    misses, deadline = report["deadline"]["misses"], report["deadline"]["ms"]
    late = report["player"]["late_ms"]
    return (
        f"A point a result; a red tick a dropped frame. {misses} results came later than"
        f" {deadline:g} ms. The player itself was {number(late['p50'], 2)} ms late in the median"
        f" and {number(late['max'])} ms at most; that is part of these figures."
    )


def _frames(frames: Mapping[str, Any]) -> str:
    kinds = [(frames[key] or 0, words, kind) for key, words, kind in _FRAME_KINDS]
    shown = [entry for entry in kinds if entry[0] or entry[2] == "ok"]
    bar = "".join(f'<i class="{kind}" style="flex:{count}"></i>' for count, _, kind in shown)
    rows = "".join(
        f'<tr><td><span class="key {kind}"></span>{words}</td><td>{count}</td></tr>'
        for count, words, kind in shown
    )
    total = f'<tr class="total"><td>sent by the player</td><td>{frames["sent"]}</td></tr>'
    return f'<div class="flowbar">{bar}</div><table><tbody>{rows}{total}</tbody></table>'


def _accuracy_words(accuracy: Mapping[str, Any]) -> str:
    if not accuracy["truths"]:
        return "The bag holds no ground truth."
    sizes = ", ".join(
        f"{name} {number(accuracy[f'map_{name}'], 3)}" for name in ("small", "medium", "large")
    )
    return (
        f"COCO mAP 50-95 against the bag's own truth, {accuracy['truths']} boxes on"
        f" {accuracy['images']} processed frames: {sizes};"
        f" at IoU 0.5 {number(accuracy['map50'], 3)}."
    )


def _accuracy_rows(accuracy: Mapping[str, Any]) -> str:
    classes = sorted(accuracy["per_class"].items(), key=lambda item: -(item[1] or 0.0))[:12]
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{number(value, 3)}</td>"
        f'<td><div class="track"><i class="body" style="left:0;width:{100 * (value or 0):.1f}%">'
        "</i></div></td></tr>"
        for name, value in classes
    )
    return f'<table class="bars"><tbody>{rows}</tbody></table>'


def _model(model: Mapping[str, Any]) -> str:
    """Return the model's facts in a line; of its hash, what tells it from others."""
    facts = {**model, "sha256": str(model.get("sha256", ""))[:12]}
    if facts.get("classes"):
        facts["classes"] = f"{facts['classes']} classes"
    return ", ".join(str(value) for value in facts.values() if value)


def _facts(report: Mapping[str, Any]) -> str:
    return definition_list({**machine_facts(report), "model": _model(report["model"])})


def machine_facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a report was measured on, by names for people; None for what is not known."""
    machine, code = report["machine"], report["code"]
    commit = code["commit"] and code["commit"][:12] + (
        " with local changes" if code["changed"] else ""
    )
    return {
        "processor": machine["cpu"] and f"{machine['cpu']}, {machine['cores']} cores",
        "board": machine["board"],
        "GPU": machine["gpu"],
        "power mode": machine["power_mode"],
        "memory": machine["memory_gib"] and f"{machine['memory_gib']} GiB",
        "system": f"{machine['os']}, Linux {machine['kernel']}, {machine['architecture']}",
        "load": f"{report['state']['load_1min']} in the last minute",
        "ROS 2": machine["ros_distro"],
        "Python": machine["python"],
        "commit": commit,
    }


def definition_list(facts: Mapping[str, Any]) -> str:
    """Return names and values, escaped; what is None is left out."""
    return "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
        if value is not None
    )
