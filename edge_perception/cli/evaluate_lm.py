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
from edge_perception.cli.quantize import add_format_arguments, device_name, text_calls
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
        help="rungs: rtn awq awq-plain gptq awq+gptq w8a8 smoothquant",
    )
    parser.add_argument("--bits", type=int, nargs="+", choices=(3, 4, 8), default=[4, 3])
    parser.add_argument("--out", type=Path, default=Path("out/ladder"))
    add_format_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and report."""
    require_toolkit()
    options.device = device_name(options.device)
    report = _ladder(options) if options.ladder else _compare(options)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "ladder" if options.ladder else "fidelity"
    (options.out / f"{name}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    if options.ladder:
        from edge_perception.quantization.ladder_page import render_ladder

        (options.out / "ladder.html").write_text(render_ladder(report), encoding="utf-8")
    print(f"written: {options.out / name}.json")
    return 0


def _windows(options: argparse.Namespace) -> list[Any]:
    from edge_perception.quantization.calibration import read_token_ids
    from edge_perception.quantization.evaluate import windows_of

    token_ids = read_token_ids(options.text, options.tokenizer or options.model)
    return [
        window.to(options.device)
        for window in windows_of(token_ids, options.window, options.windows)
    ]


def _load(options: argparse.Namespace, path: Path) -> Any:
    import torch

    from edge_perception.vlm.assembly import load_model

    dtype = getattr(torch, options.dtype) if options.dtype else None
    return load_model(path, device=options.device, dtype=dtype)


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from edge_perception.core.machine import describe_code, describe_machine, utc_now
    from edge_perception.quantization.evaluate import measure_fidelity

    windows = _windows(options)
    model = _load(options, options.model)
    reference = _load(options, options.reference) if options.reference else None
    with torch.no_grad():
        theirs = None if reference is None else lambda window: reference(window).logits[0]
        got = measure_fidelity(lambda window: model(window).logits[0], theirs, windows)
        original = None if theirs is None else measure_fidelity(theirs, None, windows)
    size = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    figures: dict[str, Any] = {"ppl": got.perplexity, "bytes": size, "tokens": got.tokens}
    if original is not None:
        figures |= {"float_ppl": original.perplexity, "kl": got.kl, "agreement": got.agreement}
    for name, value in figures.items():
        print(f"{name:10s} {value:,.4f}" if isinstance(value, float) else f"{name:10s} {value:,}")
    return {
        "schema": 1,
        "machine": describe_machine(),
        "code": describe_code(),
        "date": utc_now(),
        "conditions": {"text": options.text.name, "window": options.window},
        "model": options.model.name,
        "figures": figures,
    }


def _ladder(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from edge_perception.quantization.ladder import climb, ladder_report

    if options.calibration is None:
        raise ConfigError(
            "a ladder needs text to calibrate with",
            expected="--calibration TEXT, another text than --text",
        )
    windows = _windows(options)
    batches = text_calls(options, options.device)
    model = _load(options, options.model)
    result = climb(model, _recipes(options), batches, windows, torch.device(options.device), _tell)
    conditions = {
        "text": f"{options.text.name}, {len(windows)} windows of {options.window} tokens",
        "calibration": options.calibration.name,
        "device": options.device,
    }
    return ladder_report(options.model.stem, result, conditions)


def _recipes(options: argparse.Namespace) -> Sequence[Recipe]:
    from edge_perception.quantization.grid import WeightFormat
    from edge_perception.quantization.recipe import Activations, OddWidth, recipe_for

    odd_width = OddWidth(options.odd_width)
    recipes: list[Recipe] = []
    for bits in options.bits:
        form = WeightFormat(bits, options.group_size, options.symmetric)
        recipes += [recipe_for(method, form, odd_width=odd_width) for method in options.methods]
    # W8A8 has its own format, whatever --bits says: once is enough.
    weight_only = [r for r in recipes if r.activations is Activations.FLOAT]
    others = {r.method: r for r in recipes if r.activations is not Activations.FLOAT}
    return [*weight_only, *others.values()]


def _tell(run: Mapping[str, Any]) -> None:
    share = run["gap_share_of_rtn"]
    print(
        f"{run['method']:12s} {run['bits']} bits g{run['group_size']:<4d}"
        f" ppl {run['ppl']:8.3f}  share of RTN's loss"
        f" {'–' if share is None else format(share, '.3f'):>6s}  KL {run['kl']:.4f}"
        f"  same token {run['agreement']:.1%}  {run['seconds']:.1f} s",
        flush=True,
    )
