"""The command line, ``edge-perception COMMAND``: arguments only, the work is elsewhere."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from edge_perception import __version__
from edge_perception.errors import EdgePerceptionError

# The modules here that have add_parser(commands), whose parser sets the default ``run``.
COMMANDS = (
    "demo",
    "report",
    "replay",
    "world",
    "bench",
    "build",
    "quantize",
    "quantize_int8",
    "evaluate",
    "evaluate_lm",
    "export",
    "plan",
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every command."""
    parser = argparse.ArgumentParser(prog="edge-perception", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        importlib.import_module(f"{__name__}.{module}").add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error raised on purpose is told in one line, with exit status 2."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except EdgePerceptionError as error:
        print(f"edge-perception: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
