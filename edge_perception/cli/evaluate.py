"""``edge-perception evaluate``: what an INT8 model loses against float, on the user's frames."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "evaluate",
        help="compare an INT8 detector with its float model on your own frames, no labels needed",
        description="Writes trust.json and trust.html (docs/trust_report.md). With labels, mAP of"
        " both models stands beside the comparison.",
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
        help="exit with status 1 if recall at IoU 0.75 is below this share",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate, write the report and print its figures."""
    from rich.console import Console
    from rich.progress import track

    from edge_perception.trust.evaluation import EvaluationSettings, evaluate_models
    from edge_perception.trust.frames import Frames
    from edge_perception.trust.report import load_sensitivity, write_trust_report

    settings = EvaluationSettings(
        options.score, options.nms_iou, options.worst, options.threads, options.seed
    )
    sensitivity = load_sensitivity(options.sensitivity) if options.sensitivity else None
    frames = Frames(options.frames, topic=options.topic, labels=options.labels)
    shown = track(frames, description="comparing", total=frames.images)
    evaluation = evaluate_models(options.float_manifest, options.int8_manifest, shown, settings)
    report = write_trust_report(evaluation, settings, frames, options.out, sensitivity)
    print_trust(Console(), report, options.out)
    recall = report["agreement"]["0.75"]["recall"]["value"]
    wanted = options.require_recall
    return int(wanted is not None and (recall is None or recall < wanted))


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
