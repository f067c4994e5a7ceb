"""``edge-perception demo``: the demo bag through the real graph, and its report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="play a recording through the graph and report latency and accuracy",
        description="Plays a recording through player and container, two real processes, and"
        " writes report.json, report.html, a contact sheet and an animation.",
    )
    parser.add_argument("--bag", help="bag, folder of images or video; default: the demo bag")
    parser.add_argument("--manifest", type=Path, help="model; default: the demo detector")
    parser.add_argument(
        "--vlm",
        help="model of the VLM node: a manifest, a transformers directory, or off; default: the"
        " embedded one, if this package carries it",
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=1.0, help="speed; default: %(default)s")
    parser.add_argument("--fps", type=float, default=0.0, help="images a second; default: recorded")
    parser.add_argument("--stamps", choices=("shifted", "recorded"), default="shifted")
    parser.set_defaults(run=run)


def _vlm_model(chosen: str | None) -> Path | None:
    from edge_perception.embedded import demo_vlm_manifest
    from edge_perception.errors import ConfigError

    if chosen is not None:
        return None if chosen == "off" else Path(chosen)
    try:
        return demo_vlm_manifest()
    except ConfigError:  # a package without the embedded model
        return None


def run(options: argparse.Namespace) -> int:
    """Run the demo with its progress shown, then print the table."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from edge_perception.cli.report import print_report
    from edge_perception.embedded import carried_file, demo_manifest
    from edge_perception.replay.demo import DemoOptions, DemoProgress, run_demo

    chosen = DemoOptions(
        bag=options.bag or str(carried_file("demo/demo.mcap")),
        manifest=options.manifest or demo_manifest(),
        out=options.out,
        rate=options.rate,
        fps=options.fps,
        stamps=options.stamps,
        vlm=_vlm_model(options.vlm),
    )
    console = Console()
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn())
    # Without its refreshing thread: forking the node processes wants this one to be single.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        sent = progress.add_task("starting", total=None)
        processed = progress.add_task("processed", total=None)

        def tell(now: DemoProgress) -> None:
            progress.update(sent, description="sent", total=now.images, completed=now.sent)
            progress.update(processed, total=now.images, completed=now.processed)
            if now.sent >= now.images:
                progress.update(sent, description="reporting")
            progress.refresh()

        report = run_demo(chosen, tell)
        progress.update(sent, description="sent")
    print_report(console, report, options.out)
    return 0
