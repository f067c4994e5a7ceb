"""Is our quantiser worse than another's? ``peers.py compare``'s tables, joined and judged.

    python benchmarks/quantization/verdict.py --out docs/benchmarks/quantization_peers.json FILE...

Every other implementation's row is set beside ours of the same method, window by window of the test
text: the mean difference, and its 95% interval when the windows are drawn anew (a paired
bootstrap). An interval that holds zero is "level". It tells how far the text decides between two
checkpoints; what another calibration text would have made of either, it does not tell. Of two rows
of the same method and implementation the newer one stays.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = 10_000
ORIGIN = ("machine", "torch", "date", "commit")
"""What a row takes over from its table, unless it came from elsewhere and says so itself."""


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the windows' differences and the ends of its 95% interval."""
    values = np.asarray(differences)
    drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def word_for(low: float, high: float) -> str:
    """What an interval of ours minus theirs says of ours; less is better."""
    if low <= 0 <= high:
        return "level"
    return "better" if high < 0 else "worse"


def verdict(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Ours against theirs: perplexity as a quotient, divergence as a difference in nats."""
    logs = np.log(ours["window_ppl"]) - np.log(theirs["window_ppl"])
    quotient = interval(logs)
    kl = interval(np.subtract(ours["window_kl"], theirs["window_kl"]))
    return {
        "ours": ours["method"], "theirs": theirs["method"], "by": theirs["implementation"],
        "ppl_quotient": [float(np.exp(value)) for value in quotient],
        "ppl": word_for(*quotient[1:]),
        "kl_difference": list(kl), "kl": word_for(*kl[1:]),
    }  # fmt: skip


def verdicts(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours against every other implementation of the same method, where windows are told."""
    judged = [run for run in runs if "window_ppl" in run]
    ours = {run["method"]: run for run in judged if run["implementation"] == "ours"}
    others = [run for run in judged if run["implementation"] != "ours" and run["method"] in ours]
    return [verdict(ours[run["method"]], run) for run in others]


def tell_shares(runs: Sequence[dict[str, Any]], float_ppl: float) -> None:
    """Tell every run's loss as a share of plain rounding's, once that is known."""
    from edge_perception.quantization.evaluate import gap_share  # torch: only where models are

    rtn = {run["bits"]: run["ppl"] for run in runs if run["method"] == "rtn"}
    for run in runs:
        if run["bits"] in rtn:
            run["gap_share_of_rtn"] = gap_share(run["ppl"], float_ppl, rtn[run["bits"]])


def newest_rows(tables: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every table's rows, each with its origin; of two of a kind the newer one."""
    rows = [{key: table[key] for key in ORIGIN} | row for table in tables for row in table["runs"]]
    rows.sort(key=lambda row: row["date"])
    newest = {(row["method"], row["implementation"], row["bits"]): row for row in rows}
    return sorted(newest.values(), key=lambda row: (row["method"], row["implementation"]))


def main() -> None:
    """Join the tables and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("tables", type=Path, nargs="+")
    arguments = parser.parse_args()
    tables = [json.loads(file.read_text()) for file in arguments.tables]
    runs = newest_rows(tables)
    tell_shares(runs, tables[-1]["float_ppl"])
    found = verdicts(runs)
    report = tables[-1] | {"schema": 1, "runs": runs, "verdicts": found}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for one in found:
        print(one)


if __name__ == "__main__":
    main()
