"""``edge-perception bench``: measure the graph on this machine, beside its baselines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench", help="measure this machine and write one JSON", description=__doc__
    )
    parser.add_argument("--all", action="store_true", help="everything, as for published figures")
    parser.add_argument("--out", type=Path, default=Path("out/bench/graph.json"))
    parser.add_argument("--bag", type=Path, help="frames to use; the demo bag if not given")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU runtime; 0: all cores")
    parser.add_argument("--manifest", type=Path, help="the model; the embedded one if not given")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the benchmark."""
    from edge_perception.benchmark.graph import Model
    from edge_perception.benchmark.kit import Effort, run_graph
    from edge_perception.embedded import carried_file

    effort = Effort.full() if options.all else Effort.quick()
    bag = options.bag or carried_file("demo/demo.mcap")
    model = Model(options.manifest, options.threads)
    run_graph(bag, model, effort, options.out, lambda line: print(line, flush=True))
    print(f"written: {options.out}")
    return 0
