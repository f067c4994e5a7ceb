"""``edge-perception quantize``: a float checkpoint to a 4, 3 or 8 bit one.

A run that was stopped goes on where it stood when the same command is given again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_perception.cli._toolkit import require_toolkit
from edge_perception.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from edge_perception.quantization.job import Job
    from edge_perception.quantization.pipeline import Progress

_METHODS = (
    *("rtn", "awq", "awq-plain", "gptq", "awq+gptq"),
    *("w8a8", "w8a8-static", "smoothquant", "smoothquant-static"),
)


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "quantize",
        help="quantise a language or vision-language model (needs the vlm extra)",
        description=__doc__,
    )
    parser.add_argument("model", type=Path, help="checkpoint folder with safetensors, or a .gguf")
    parser.add_argument("--out", type=Path, required=True, help="folder to write (or to resume)")
    add_format_arguments(parser)
    parser.add_argument("--method", choices=_METHODS, default="awq+gptq")
    parser.add_argument("--bits", type=int, choices=(3, 4, 8), default=4)
    parser.add_argument(
        "--layout",
        choices=("awq", "compressed-tensors", "w8a8"),
        default="awq",
        help="awq: AutoAWQ gemm, 4 bits; compressed-tensors: pack-quantized; w8a8:"
        " compressed-tensors int-quantized, for the methods w8a8 and smoothquant",
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="SmoothQuant's strength")
    parser.add_argument(
        "--float-target",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="correct for earlier layers' errors (0 to 1; not in the papers)",
    )
    parser.add_argument("--head-bits", type=int, choices=(4, 8), help="quantise lm_head too")
    parser.add_argument("--embedding-bits", type=int, choices=(4, 8), help="and the embedding")
    parser.add_argument("--vision", action="store_true", help="quantise the vision tower too")
    parser.add_argument("--images", type=Path, help="folder of images to calibrate a VLM with")
    parser.add_argument("--image-count", type=int, default=64)
    parser.add_argument("--restart", action="store_true", help="drop what an earlier run left")
    parser.add_argument("--dry-run", action="store_true", help="tell sizes, write nothing")
    parser.set_defaults(run=run)


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that ``quantize`` and ``evaluate-lm`` share."""
    parser.add_argument("--group-size", type=int, default=128, help="-1: one group a channel")
    parser.add_argument("--symmetric", action="store_true", help="no zero points")
    parser.add_argument(
        "--odd-width",
        choices=("refuse", "shrink-group", "keep-float"),
        default="refuse",
        help="layers whose width the group does not divide",
    )
    parser.add_argument("--calibration", type=Path, help="text file (UTF-8) to calibrate with")
    parser.add_argument("--calibration-tokens", type=int, default=131072)
    parser.add_argument("--window", type=int, default=2048, help="tokens a forward call sees")
    parser.add_argument(
        "--bos", action="store_true", help="begin every window with that token (Gemma needs it)"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="folder or tokenizer.json; the model's own if not given"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="float type to compute and write; the checkpoint's if not given",
    )


def run(options: argparse.Namespace) -> int:
    """Quantise, or plan it."""
    require_toolkit()
    from rich.console import Console

    from edge_perception.quantization.job import plan_job, run_job

    console = Console(highlight=False, soft_wrap=True)
    job = _job(options)
    plan = plan_job(job)
    quantised = sum(form is not None for form in plan.layers.values()) + len(plan.outer)
    console.print(
        f"{job.recipe.method}, {job.recipe.form.bits} bits: {quantised} layers,"
        f" {plan.float_bytes / 1e6:,.1f} MB to {plan.bytes / 1e6:,.1f} MB"
    )
    if plan.kept_float:
        console.print(f"kept in float for their width: {', '.join(plan.kept_float)}")
    if options.dry_run:
        return 0
    batches, notes = _calibration(options, job)
    outcome = run_job(
        job,
        batches,
        restart=options.restart,
        notes=notes,
        on_progress=lambda progress: _tell(console, progress),
    )
    console.print(
        f"written: {job.out} ({outcome.bytes / 1e6:,.1f} MB,"
        f" {outcome.bytes / outcome.float_bytes:.0%} of float) in {outcome.seconds:.1f} s,"
        f" peak memory {outcome.peak_bytes / 1e9:.2f} GB"
    )
    return 0


def _job(options: argparse.Namespace) -> Job:
    from edge_perception.quantization.comparison import choose_device
    from edge_perception.quantization.encoding import ExportLayout
    from edge_perception.quantization.grid import WeightFormat
    from edge_perception.quantization.job import Job
    from edge_perception.quantization.recipe import OddWidth, recipe_for

    form = WeightFormat(options.bits, options.group_size, options.symmetric)
    choices: dict[str, Any] = {"odd_width": OddWidth(options.odd_width), "alpha": options.alpha}
    if options.float_target:
        choices["float_target"] = options.float_target
    return Job(
        model=options.model,
        out=options.out,
        recipe=recipe_for(options.method, form, **choices),
        layout=ExportLayout(options.layout),
        device=choose_device(options.device),
        dtype=options.dtype,
        vision=options.vision,
        head_bits=options.head_bits,
        embedding_bits=options.embedding_bits,
        tokenizer=options.tokenizer,
    )


def _calibration(
    options: argparse.Namespace, job: Job
) -> tuple[Sequence[Mapping[str, Any]], dict[str, str]]:
    """The calibration's forward calls, and what the card says of them."""
    from edge_perception.quantization import calibration

    if not job.recipe.needs_calibration:
        return [], {}
    batches: list[Mapping[str, Any]] = []
    notes: dict[str, str] = {}
    if options.calibration:
        batches += text_calls(options, job.device)
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        notes["calibration text"] = f"{options.calibration.name}, {tokens} tokens"
    if options.images:
        images = calibration.image_files(options.images, options.image_count)
        processor = calibration.load_processor(options.model)
        batches += calibration.image_batches(images, processor, job.device)
        notes["calibration images"] = str(len(images))
    if not batches:
        raise ConfigError(
            f"{options.method} needs calibration data",
            expected="--calibration TEXT, or --images FOLDER for a vision-language model",
            mend="Any few hundred kilobytes of text like what the model will see do.",
        )
    return batches, notes


def text_calls(options: argparse.Namespace, device: str) -> list[Mapping[str, Any]]:
    """The calibration text as forward calls."""
    from edge_perception.quantization.calibration import (
        begin_token,
        read_token_ids,
        text_batches,
    )

    return list(
        text_batches(
            read_token_ids(options.calibration, options.tokenizer or options.model),
            window=options.window,
            tokens=options.calibration_tokens,
            batch_tokens=4 * options.window,
            device=device,
            bos=begin_token(options.model) if options.bos else None,
        )
    )


def _tell(console: Console, progress: Progress) -> None:
    word = "restored" if progress.restored else "done"
    console.print(
        f"{progress.done:3d}/{progress.total} {progress.path} {word},"
        f" {progress.elapsed_s:.0f} s, {progress.left_s:.0f} s left,"
        f" peak {progress.peak_bytes / 1e9:.2f} GB"
    )
