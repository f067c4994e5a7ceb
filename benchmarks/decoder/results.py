"""The file of the decoder's figures on a GPU: filled part by part, summed up at every writing.

Two scripts write it (``h100`` and ``peers``), in one run on one machine; each begins with what is
there. ``models`` has a row a name of the table, and rows of the same shape hold the same figures.
Where they ran side by side, into files of their own, and for the figures of single kernels:

    python -m benchmarks.decoder.results docs/benchmarks/decode_h100.json \
        --peers peers.json --kernels docs/benchmarks/decoder_kernels_h100.json
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_perception.core.machine import describe_code, describe_machine, utc_now

TABLE = {
    "Llama-3-8B": "llama-3-8b",
    "Llama-2-7B": "llama-2-7b",
    "Llama-2-13B": "llama-2-13b",
    "Vicuna-7B": "llama-2-7b",
    "VILA-7B": "llama-2-7b",
    "VILA-13B": "llama-2-13b",
    "NVILA-2B": "nvila-2b",
    "NVILA-8B": "nvila-8b",
}
"""Rows of the table: the shape (``config/models``) that is timed for each."""

SHAPES = ("llama-3-8b", "nvila-2b", "llama-2-7b", "llama-2-13b", "nvila-8b")
"""Each shape once; the most important first."""

CONTEXTS = (4, 512, 4096)
"""Slots that a step attends to, its own included."""

BEST = "int4, int4 head"
"""The variant that ``int4_ms`` tells and the speed-up is of."""


class Results:
    """The figures so far, and where they are kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures: dict[str, Any] = {}
        if path.exists():
            self.figures = json.loads(path.read_text())
        self.figures.setdefault("shapes", {})
        self.figures.setdefault("peers", {})

    def stamp(self, commit: str | None) -> None:
        """Say what is measured here, on what and when; ``commit`` where this is no checkout."""
        self.figures |= {
            "what": "batch-1 decode of true architectures with random weights, by CUDA events",
            **run_facts(commit),
        }

    def shape(self, name: str) -> dict[str, Any]:
        """The figures of one shape, to be filled."""
        found: dict[str, Any] = self.figures["shapes"].setdefault(name, {})
        return found

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the run: where it fails, that is told here, and the others go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.figures.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"
        self.write()

    def write(self) -> None:
        """Sum up and write."""
        self.figures["models"] = {
            row: summary(shape, self.figures)
            for row, shape in TABLE.items()
            if BEST in self.figures["shapes"].get(shape, {}).get("decode", {})
        }
        self._path.write_text(json.dumps(self.figures, indent=1) + "\n")


def summary(shape: str, figures: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: ours, and the speed-up over the best FP16 of all that ran."""
    found = figures["shapes"][shape]
    copy = figures["copy_bandwidth_gb_s"]
    ours = {name: times_of(variant) for name, variant in found["decode"].items()}
    int4, fp16 = ours[BEST], ours.get("fp16", {})
    candidates = [fp16, *fp16_of_peers(shape, figures)]
    fastest = {
        context: min(times[context] for times in candidates if context in times)
        for context in int4
        if any(context in times for times in candidates)
    }
    moved = {name: variant["bytes"] for name, variant in found["decode"].items()}
    return {
        "timed_as": shape,
        "fp16_ms": fp16,
        "int4_ms": int4,
        "int4_tokens_per_s": {context: round(1e3 / ms, 1) for context, ms in int4.items()},
        "best_fp16_ms": fastest,
        "speedup": {context: round(ms / int4[context], 3) for context, ms in fastest.items()},
        "bandwidth_share": {
            name: {
                context: round(moved[name][context] / ms / 1e6 / copy, 4)
                for context, ms in times.items()
            }
            for name, times in ours.items()
        },
        "bytes": moved,
        "memory_bytes": {name: variant["memory"] for name, variant in found["decode"].items()},
    }


def run_facts(commit: str | None = None) -> dict[str, Any]:
    """Machine, date and code of a run; ``commit`` of the code where this is no checkout."""
    return {
        "machine": describe_machine(),
        "date": utc_now(),
        "code": describe_code() | ({"commit": commit} if commit else {}),
    }


def shapes_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of a script that goes through the shapes until its time is up."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--commit", help="of the code, where this is no checkout")
    parser.add_argument("--seconds", type=float, default=600.0)
    return parser


def times_of(variant: dict[str, Any]) -> dict[str, float]:
    """Median ms of a variant by context."""
    return {context: value["p50"] for context, value in variant["ms"].items()}


def fp16_of_peers(shape: str, figures: dict[str, Any]) -> list[dict[str, float]]:
    """Milliseconds by context of every 16-bit peer that ran this shape."""
    return [
        peer["ms"][shape]
        for peer in figures["peers"].values()
        if peer.get("precision") == "fp16" and shape in peer.get("ms", {})
    ]


def main() -> None:
    """Put figures of other files beside those of models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--kernels", type=Path)
    parser.add_argument("--peers", type=Path)
    options = parser.parse_args()
    results = Results(options.figures)
    if options.kernels:
        results.figures["kernels"] = json.loads(options.kernels.read_text())["kernels"]
    if options.peers:
        others = json.loads(options.peers.read_text())
        results.figures["peers"] |= others["peers"]
        results.figures["peers_run"] = {
            key: others[key]
            for key in ("machine", "date", "code", "copy_bandwidth_gb_s", "failed")
            if key in others
        }
        results.figures["peers_not_available"] = others["peers_not_available"]
    results.write()


if __name__ == "__main__":
    main()
