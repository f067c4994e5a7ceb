"""``edge-perception report``: the report of a run that has left its ledgers in a folder."""

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
        "report",
        help="make the report of a run again, or of a graph that was started by hand",
        description="Reads player.jsonl (the player's parameter ledger) and the files of the"
        " profiler's parameter output_dir.",
    )
    parser.add_argument("run_dir", type=Path, help="folder with the ledgers")
    parser.add_argument("--bag", required=True, help="what was played")
    parser.add_argument("--manifest", type=Path, help="model; default: the demo detector")
    parser.add_argument("--out", type=Path, help="default: the run's folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the report and print its table."""
    from rich.console import Console

    from edge_perception.embedded import demo_manifest
    from edge_perception.replay.model_facts import read_model_facts
    from edge_perception.replay.report import read_recording, write_report

    out = options.out or options.run_dir
    model = read_model_facts(options.manifest or demo_manifest())
    report = write_report(options.run_dir, read_recording(options.bag), model, out)
    print_report(Console(), report, out)
    return 0


def print_report(console: Console, report: Mapping[str, Any], out: Path) -> None:
    """Print latencies a stage, the fate of the frames and the accuracy."""
    from rich.table import Table

    from edge_perception.replay.page import PERCENTILES, number

    table = Table(title=f"{report['model']['name']}: latency in ms", title_justify="left")
    table.add_column("stage")
    for name in ("n", *PERCENTILES):
        table.add_column(name.replace("_", "."), justify="right")
    latency = dict(report["latency_ms"])
    end_to_end = latency.pop("end_to_end")
    for stage, summary in [*latency.items(), ("end to end", end_to_end)]:
        if summary["n"]:
            figures = [number(summary[name], 2) for name in PERCENTILES]
            table.add_row(stage, str(summary["n"]), *figures)
    console.print(table)
    frames, accuracy = report["frames"], report["accuracy"]
    console.print(
        f"frames: {frames['sent']} sent, {frames['processed']} processed"
        f" ({number(report['fps'])} fps), {frames['dropped']} dropped"
    )
    console.print(
        f"accuracy: mAP 50-95 {number(accuracy['map50_95'], 3)} on {accuracy['images']} frames"
    )
    if "vlm" in report:
        console.print(_vlm_line(report["vlm"]))
    console.print(f"report: {out / 'report.html'}", highlight=False)


def _vlm_line(vlm: Mapping[str, Any]) -> str:
    """What was said, and how much of it was right, in a line."""
    from edge_perception.replay.page import number

    accuracy = vlm["accuracy"]
    right = None if accuracy["right"] is None else 100 * accuracy["right"]
    return (
        f"vlm: {vlm['captions']} captions, {vlm['answers']} answers, {number(right)}% right of"
        f" {accuracy['judged']} judged, first token {number(vlm['ttft_ms']['p50'])} ms"
    )
