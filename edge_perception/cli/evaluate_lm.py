"""``edge-perception evaluate-lm``: what quantisation costs a language model.

With --reference, one checkpoint against its float original. With --ladder, one float checkpoint
against every way to quantise it: a table here, ladder.json and ladder.html in --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_perception.cli._toolkit import require_toolkit
from edge_perception.cli.quantize import add_format_arguments, text_calls
from edge_perception.errors import ConfigError

if TYPE_CHECKING:
    from edge_perception.quantization.recipe import Recipe


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate-lm",
        help="measure what quantisation costs a language model (needs the vlm extra)",
        description=__doc__,
    )
    parser.add_argument("model", type=Path, help="checkpoint folder, or a .gguf")
    parser.add_argument("--text", type=Path, required=True, help="text file to measure on")
    parser.add_argument("--windows", type=int, default=16, help="windows of the text to use")
    parser.add_argument("--reference", type=Path, help="the float checkpoint to compare with")
    parser.add_argument("--ladder", action="store_true", help="quantise in memory in every way")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        default=["rtn", "awq", "gptq", "awq+gptq"],
        help="rungs: rtn awq awq-plain gptq awq+gptq; w8a8 and smoothquant, also with -static",
    )
    parser.add_argument(
        "--alpha", type=float, nargs="+", default=[0.5], help="SmoothQuant's migration strengths"
    )
    parser.add_argument("--bits", type=int, nargs="+", choices=(3, 4, 8), default=[4, 3])
    parser.add_argument("--out", type=Path, default=Path("out/ladder"))
    add_format_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and report."""
    require_toolkit()
    from edge_perception.quantization.calibration import begin_token
    from edge_perception.quantization.comparison import choose_device, read_windows, with_conditions
    from edge_perception.quantization.ladder_page import render_ladder

    device = choose_device(options.device)
    windows = read_windows(
        options.text,
        options.tokenizer or options.model,
        length=options.window,
        count=options.windows,
        device=device,
        bos=begin_token(options.model) if options.bos else None,
    )
    conditions = {
        "text": f"{options.text.name}, {len(windows)} windows of {options.window} tokens",
        "device": device,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    if options.ladder:
        conditions["calibration"] = options.calibration.name if options.calibration else "none"
        report = with_conditions(_ladder(options, windows, device), conditions)
        (options.out / "ladder.html").write_text(render_ladder(report), encoding="utf-8")
    else:
        report = with_conditions(_compare(options, windows, device), conditions)
    path = options.out / ("ladder.json" if options.ladder else "fidelity.json")
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"written: {path}")
    return 0


def _compare(options: argparse.Namespace, windows: Sequence[Any], device: str) -> dict[str, Any]:
    from edge_perception.quantization.comparison import compare_checkpoints

    figures = compare_checkpoints(
        options.model, options.reference, windows, device=device, dtype=options.dtype
    )
    for name, value in figures.items():
        print(f"{name:10s} {value:,.4f}" if isinstance(value, float) else f"{name:10s} {value:,}")
    return {"model": options.model.name, "figures": figures}


def _ladder(options: argparse.Namespace, windows: Sequence[Any], device: str) -> dict[str, Any]:
    from edge_perception.quantization.comparison import climb_checkpoint

    recipes = _recipes(options)
    if options.calibration is None and any(recipe.needs_calibration for recipe in recipes):
        raise ConfigError(
            "a ladder needs text to calibrate with",
            expected="--calibration TEXT, another text than --text",
        )
    batches = text_calls(options, device) if options.calibration else []
    result = climb_checkpoint(
        options.model,
        recipes,
        batches,
        windows,
        device=device,
        dtype=options.dtype,
        on_run=_tell,
    )
    return {"models": {options.model.stem: result}}


def _recipes(options: argparse.Namespace) -> Sequence[Recipe]:
    from edge_perception.quantization.grid import WeightFormat
    from edge_perception.quantization.recipe import OddWidth, recipe_for

    odd_width = OddWidth(options.odd_width)
    # W8A8 has its own format, whatever --bits says: once is enough.
    eight = [method for method in options.methods if method.startswith(("w8a8", "smoothquant"))]
    recipes = [
        recipe_for(
            method,
            WeightFormat(bits, options.group_size, options.symmetric),
            odd_width=odd_width,
        )
        for bits in options.bits
        for method in options.methods
        if method not in eight
    ]
    for method in eight:
        alphas = options.alpha if method.startswith("smoothquant") else [0.5]
        recipes += [recipe_for(method, alpha=alpha) for alpha in alphas]
    return recipes


def _tell(run: Mapping[str, Any]) -> None:
    share = run["gap_share_of_rtn"]
    name = run["method"] if run["alpha"] is None else f"{run['method']} {run['alpha']}"
    print(
        f"{name:22s} {run['bits']} bits g{run['group_size']:<4d}"
        f" ppl {run['ppl']:8.3f}  share of RTN's loss"
        f" {'–' if share is None else format(share, '.3f'):>6s}  KL {run['kl']:.4f}"
        f"  same token {run['agreement']:.1%}  {run['seconds']:.1f} s",
        flush=True,
    )
