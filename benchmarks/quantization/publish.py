"""Results of the runs here, merged into the ladder that docs/benchmarks/ holds, and its page.

    python benchmarks/quantization/publish.py --into docs/benchmarks/quantization_ladder.json
        FILE.json ...

A row of the same model, name and implementation is replaced by the newer one; every row says on
what machine, when and from which commit it came.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gguf_ladder import RUN_WINDOW

from edge_perception.quantization.ladder_page import render_ladder
from edge_perception.quantization.recipe import METHODS, Clipping

_ORIGIN = ("machine", "torch", "date", "commit")
_BY_WINDOW = ("window_ppl", "window_kl")
"""For whoever compares two rows closely; too long for the ladder."""


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of one result, each with where it came from."""
    origin = {key: result[key] for key in _ORIGIN}
    return [origin | _named(run) for run in result["runs"]]


def _named(run: dict[str, Any]) -> dict[str, Any]:
    """A run with a name that tells it from the others of its model."""
    kept = {key: value for key, value in run.items() if key not in _BY_WINDOW}
    made = {"name": f"b{run['bits']}-{run['method']}", **kept}
    if made["method"] == "smoothquant" and made.get("activations") == "static":
        made["method"] = "smoothquant-static"
    if made["method"] == "w8a8" and made.get("activations") == "static":
        made["method"] = "w8a8-static"
    notes = _notes(made)
    return made | {"note": ", ".join(notes)} if notes else made


def _notes(run: dict[str, Any]) -> list[str]:
    """What a run does otherwise than its method's name says."""
    notes = []
    if run.get("clipping", usual := _usual_clipping(run["method"])) != usual:
        notes.append(f"clipping {run['clipping']}")
    if not run.get("activation_order", True):
        notes.append("columns in their own order")
    if run.get("calibration_window", RUN_WINDOW) != RUN_WINDOW:
        notes.append(f"windows of {run['calibration_window']} tokens")
    return notes


def _usual_clipping(method: str) -> str:
    """The clipping that a method's name stands for."""
    choice = METHODS[method].get("clipping", Clipping.NONE)
    return str(choice.value)


def merge(
    models: dict[str, Any], name: str, facts: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Put ``rows`` among the model's, in order of width, format, loss."""
    model = models.setdefault(name, {"runs": []}) | facts
    merged = {_key(row): row for row in [*model["runs"], *rows]}
    model["runs"] = sorted(merged.values(), key=_order)
    models[name] = model


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["name"], row["implementation"]


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    group = row["group_size"] if row["group_size"] > 0 else 10**6
    return -row["bits"], row.get("symmetric", False), group, -row["ppl"]


def main() -> None:
    """Merge and render."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("results", type=Path, nargs="+", help="of h100.py smollm2, of peers.py")
    arguments = parser.parse_args()
    report = json.loads(arguments.into.read_text())
    for file in arguments.results:
        result = json.loads(file.read_text())
        facts = {key: value for key, value in result.items() if key not in (*_ORIGIN, "runs")}
        merge(report["models"], result["model"], facts, rows_of(result))
    dates = [run["date"] for model in report["models"].values() for run in model["runs"]]
    report["date"] = max(dates)
    arguments.into.write_text(json.dumps(report, indent=1) + "\n")
    page = render_ladder(report)
    arguments.into.with_suffix(".html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
