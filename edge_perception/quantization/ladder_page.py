"""A ladder's report as one HTML page: the table, and two plots as SVG by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from matplotlib.figure import Figure

from edge_perception.quantization.grid import PER_CHANNEL

_COLUMNS = (
    ("method", "method", "{}"),
    ("implementation", "by", "{}"),
    ("bits", "bits", "{}"),
    ("group_size", "group", "{}"),
    ("ppl", "perplexity", "{:.3f}"),
    ("gap_share_of_rtn", "share of RTN's loss", "{:.3f}"),
    ("kl", "KL, nats", "{:.4f}"),
    ("agreement", "same next token", "{:.1%}"),
    ("seconds", "seconds", "{:.1f}"),
    ("bytes", "bytes", "{:,}"),
)
_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Quantisation ladder</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1e21; background: #fff }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
tr.best td { font-weight: 600 }
figure { margin: 1.5rem 0 } svg { max-width: 100%; height: auto }
.facts { color: #555 }
</style>
<h1>Quantisation ladder</h1>
<p class="facts">$facts</p>
$models
</html>
""")


def render_ladder(report: Mapping[str, Any]) -> str:
    """The page; all text of the report is escaped."""
    conditions = ", ".join(f"{key}: {value}" for key, value in report["conditions"].items())
    facts = f"{report['date']}. {conditions}"
    models = "".join(_model(name, result) for name, result in report["models"].items())
    return _PAGE.substitute(facts=escape(facts), models=models)


def _model(name: str, result: Mapping[str, Any]) -> str:
    runs = result["runs"]
    return (
        f"<h2>{escape(name)}</h2><p>Float perplexity {result['float_ppl']:.3f}.</p>"
        f"{_table(runs)}{_plots(result)}"
    )


def _table(runs: Sequence[Mapping[str, Any]]) -> str:
    best = {run["bits"]: min(r["ppl"] for r in runs if r["bits"] == run["bits"]) for run in runs}
    head = "".join(f"<th>{title}</th>" for _, title, _ in _COLUMNS)
    rows = []
    for run in runs:
        mark = ' class="best"' if run["ppl"] == best[run["bits"]] else ""
        cells = "".join(f"<td>{escape(_cell(run, key, form))}</td>" for key, _, form in _COLUMNS)
        rows.append(f"<tr{mark}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(run: Mapping[str, Any], key: str, form: str) -> str:
    """A figure for people, a dash where it was not taken."""
    if key == "method":
        return _name(run)
    if key == "group_size":
        return _group(run)
    value = run.get(key)
    return "–" if value is None else form.format(value)


def _name(run: Mapping[str, Any]) -> str:
    """The method with the settings that tell its runs apart."""
    told = [str(run["method"])]
    if run.get("alpha") is not None:
        told.append(f"alpha {run['alpha']}")
    if run.get("float_target"):
        told.append(f"float target {run['float_target']}")
    if run.get("note"):
        told.append(str(run["note"]))
    return ", ".join(told)


def _group(run: Mapping[str, Any]) -> str:
    size = "channel" if run["group_size"] == PER_CHANNEL else str(run["group_size"])
    return f"{size}, symmetric" if run.get("symmetric") else size


def _plots(result: Mapping[str, Any]) -> str:
    """A figure for each code width: their losses are of different sizes."""
    widths = sorted({run["bits"] for run in result["runs"]}, reverse=True)
    by_width = [[run for run in result["runs"] if run["bits"] == bits] for bits in widths]
    return "".join(
        f"<figure><figcaption>{bits} bits</figcaption>{_plot(runs, result['float_ppl'])}</figure>"
        for bits, runs in zip(widths, by_width, strict=True)
    )


def _plot(runs: Sequence[Mapping[str, Any]], float_ppl: float) -> str:
    """Loss against float, and the divergence, by method."""
    rungs = range(len(runs))  # positions, since two runs may be called alike
    figure = Figure(figsize=(11, 0.34 * len(runs) + 1.4))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, values, title in (
        (axes[0], [run["ppl"] - float_ppl for run in runs], "perplexity above float"),
        (axes[1], [run["kl"] for run in runs], "KL to float, nats"),
    ):
        bars = axis.barh(rungs, values, color="#2f6fab")
        axis.bar_label(bars, fmt="%.3f", padding=3)
        axis.set_xlabel(title)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(rungs, [_label(run) for run in runs])
    axes[0].invert_yaxis()
    figure.tight_layout()
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _label(run: Mapping[str, Any]) -> str:
    by = run.get("implementation", "ours")
    return f"{_name(run)}, group {_group(run)}" + ("" if by == "ours" else f" ({by})")
