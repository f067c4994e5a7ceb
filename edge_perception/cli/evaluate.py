"""``edge-perception evaluate``: what an INT8 model loses against float, on the user's frames."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from edge_perception.trust.evaluation import EvaluationSettings
    from edge_perception.trust.frames import Frames


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "evaluate",
        help="compare an INT8 model with its float model on your own frames, no labels needed",
        description="Writes trust.json and trust.html (docs/trust_report.md), of detectors or of"
        " classifiers, as the manifests say. With labels, mAP of both detectors stands beside the"
        " comparison.",
    )
    parser.add_argument("--float", dest="float_manifest", type=Path, required=True, metavar="YAML")
    parser.add_argument("--int8", dest="int8_manifest", type=Path, required=True, metavar="YAML")
    parser.add_argument("--frames", required=True, help="bag, folder of images or video")
    parser.add_argument("--topic", default="", help="image topic of the bag; default: the first")
    parser.add_argument("--labels", type=Path, help="COCO's JSON, for a folder of images")
    parser.add_argument("--sensitivity", type=Path, help="the quantiser's JSON of losses a layer")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--score", type=float, default=0.3, help="least score; %(default)s")
    parser.add_argument("--nms-iou", type=float, default=0.65, help="default: %(default)s")
    parser.add_argument("--worst", type=int, default=6, help="frames shown; default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="default: one a physical core")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals' resampling")
    parser.add_argument(
        "--require-recall",
        type=float,
        metavar="SHARE",
        help="exit with status 1 if recall at IoU 0.75, or a classifier's top-1 agreement, is below"
        " this share",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate, write the report and print its figures."""
    from edge_perception.backends.store import load_manifest
    from edge_perception.trust.evaluation import EvaluationSettings
    from edge_perception.trust.frames import Frames
    from edge_perception.trust.report import load_sensitivity

    settings = EvaluationSettings(
        options.score, options.nms_iou, options.worst, options.threads, options.seed
    )
    sensitivity = load_sensitivity(options.sensitivity) if options.sensitivity else None
    frames = Frames(options.frames, topic=options.topic, labels=options.labels)
    manifest, _ = load_manifest(options.float_manifest)
    compare = _compare_classifiers if manifest.head == "classifier" else _compare_detectors
    share = compare(options, settings, frames, sensitivity)
    wanted = options.require_recall
    return int(wanted is not None and (share is None or share < wanted))


def _compare_detectors(
    options: argparse.Namespace, settings: EvaluationSettings, frames: Frames, sensitivity: Any
) -> float | None:
    """Write and print the report of two detectors; return the recall at IoU 0.75."""
    from rich.console import Console
    from rich.progress import track

    from edge_perception.trust.evaluation import evaluate_models
    from edge_perception.trust.report import write_trust_report

    shown = track(frames, description="comparing", total=frames.images)
    evaluation = evaluate_models(options.float_manifest, options.int8_manifest, shown, settings)
    report = write_trust_report(evaluation, settings, frames, options.out, sensitivity)
    print_trust(Console(), report, options.out)
    recall: float | None = report["agreement"]["0.75"]["recall"]["value"]
    return recall


def _compare_classifiers(
    options: argparse.Namespace, settings: EvaluationSettings, frames: Frames, sensitivity: Any
) -> float | None:
    """Write and print the report of two classifiers; return their top-1 agreement."""
    from rich.console import Console
    from rich.progress import track

    from edge_perception.trust.classification import evaluate_classifiers
    from edge_perception.trust.classification_report import write_classification_report
    from edge_perception.trust.page import percent

    shown = track(frames, description="comparing", total=frames.images)
    pair = (options.float_manifest, options.int8_manifest)
    evaluation = evaluate_classifiers(*pair, shown, settings)
    report = write_classification_report(evaluation, settings, frames, options.out, sensitivity)
    top1, top5 = (report["agreement"][key]["value"] for key in ("top1", "top5"))
    Console().print(
        f"same likeliest class: {percent(top1, 2)}; float's among INT8's five likeliest:"
        f" {percent(top5, 2)}; KL {report['kl']['mean']} nats in the mean\n"
        f"report: {options.out / 'trust.html'}",
        highlight=False,
    )
    agreement: float | None = top1
    return agreement


def print_trust(console: Console, report: Mapping[str, Any], out: Path) -> None:
    """Print agreement, drift and, where there are labels, the loss of accuracy."""
    from rich.table import Table

    from edge_perception.trust.page import percent

    table = Table(title="INT8 against float", title_justify="left")
    for name in ("overlap", "recall", "precision"):
        table.add_column(name, justify="right")
    for iou, entry in report["agreement"].items():
        shares = (percent(entry[key]["value"], 2) for key in ("recall", "precision"))
        table.add_row(f"IoU {iou}", *shares)
    console.print(table)
    shift, accuracy = report["drift"]["box_shift_px"], report["accuracy"]
    console.print(
        f"boxes moved by {shift['p50']} px in the median, scores by a mean of"
        f" {report['drift']['score_bias']}"
    )
    if accuracy:
        drop = accuracy["drop"]
        console.print(
            f"mAP 50-95: {accuracy['float']['map50_95']} float, {accuracy['int8']['map50_95']}"
            f" INT8, drop {drop['map50_95']} (95%: {drop['interval95']})"
        )
    console.print(f"report: {out / 'trust.html'}", highlight=False)
