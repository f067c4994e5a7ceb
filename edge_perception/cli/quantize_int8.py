"""``edge-perception quantize-int8``: a float detector and the user's frames to an INT8 detector."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from edge_perception.quantization.int8.recipe import Recipe

_CALIBRATORS = ("mse", "percentile", "entropy", "minmax")
_EQUALISE = ("if_needed", "always", "never")


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "quantize-int8",
        help="quantise a detector to INT8 with your own frames",
        description="Writes MODEL.int8.onnx (explicit Q/DQ), its manifest (.yaml) and a report"
        " (.json); docs/int8.md. A sweep that was stopped goes on where it stood. Exit status 1:"
        " written, but the loss is above --max-drop.",
    )
    parser.add_argument("model", type=Path, help="manifest, or ONNX file with a manifest beside it")
    parser.add_argument("--calibration", required=True, help="bag, folder of images or video")
    parser.add_argument("--topic", default="", help="image topic of the bag; default: the first")
    parser.add_argument("--labels", type=Path, help="COCO's JSON, for a folder of images")
    parser.add_argument("--out", type=Path, help="ONNX file to write; default: MODEL.int8.onnx")
    parser.add_argument("--calibrator", choices=_CALIBRATORS, default="mse")
    parser.add_argument("--frames", type=int, default=128, help="to calibrate; %(default)s")
    parser.add_argument("--judging-frames", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of frames")
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="most that may be lost: points of mAP with labels (default 1), else of agreement"
        " with float (default 5)",
    )
    parser.add_argument(
        "--least-share",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="of multiply-accumulates in INT8, whatever the loss; default: %(default)s",
    )
    parser.add_argument(
        "--exclude", nargs="+", default=[], metavar="PATTERN", help="layers to leave float"
    )
    parser.add_argument(
        "--edges", action="store_true", help="quantise the first and the predicting layers too"
    )
    parser.add_argument(
        "--smooth-alpha", type=float, default=0.5, help="SmoothQuant of layer norms; 0: none"
    )
    parser.add_argument(
        "--equalise",
        choices=_EQUALISE,
        default="if_needed",
        help="even out what convolutions read; default: where too much is lost without",
    )
    parser.add_argument("--no-bias-correction", action="store_true")
    parser.add_argument("--sweep", action="store_true", help="measure every layer in any case")
    parser.add_argument(
        "--compact", action="store_true", help="store weights as INT8 (needs TensorRT 10)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Quantise, and tell what it cost."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from edge_perception.quantization.int8.job import quantize_detector
    from edge_perception.trust.frames import Frames

    console = Console(highlight=False, soft_wrap=True)
    recipe = _recipe(options)
    frames = Frames(options.calibration, topic=options.topic, labels=options.labels)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console) as progress:
        outcome = quantize_detector(
            options.model, frames, recipe, options.out, lambda *stage: _start(progress, *stage)
        )
    _tell(console, outcome.report)
    console.print(f"written: {outcome.model} and {outcome.manifest.name}")
    return int(not outcome.within_bounds)


def _recipe(options: argparse.Namespace) -> Recipe:
    from edge_perception.quantization.int8.recipe import Recipe

    return Recipe(
        calibrator=options.calibrator,
        frames=options.frames,
        judging=options.judging_frames,
        seed=options.seed,
        max_drop=options.max_drop,
        least_share=options.least_share,
        exclude=tuple(options.exclude),
        edges=options.edges,
        smooth_alpha=options.smooth_alpha,
        equalise=options.equalise,
        correct_biases=not options.no_bias_correction,
        sweep=options.sweep,
        compact=options.compact,
    )


def _start(progress: Progress, stage: str, total: int) -> Callable[[], None]:
    """Show a stage's bar; a ``total`` of 0 is unknown."""
    task = progress.add_task(stage, total=total or None)
    return lambda: progress.advance(task)


def _tell(console: Console, report: Mapping[str, Any]) -> None:
    chosen, loss = report["calibration_set"], report["loss"]
    variants = report["calibration_variants"]
    console.print(
        f"calibrated with {chosen['frames']} of {chosen['of']} frames"
        f"{f' and {variants} variants of them' if variants else ''},"
        f" set {chosen['sha256'][:12]}, {report['recipe']['calibrator']}"
    )
    if report["equalised_inputs"]:
        console.print(f"inputs of convolutions equalised: {report['equalised_inputs']}")
    console.print(
        f"INT8: {report['int8_mac_share']:.1%} of {report['macs'] / 1e9:.2f} GMAC; float:"
    )
    for entry in report["float_layers"]:
        console.print(f"  {entry['mac_share']:7.2%}  {entry['layer']} ({entry['why']})")
    console.print(
        f"loss on {loss['frames']} frames: {loss['value']:.2f} {loss['unit']}"
        f" (at most {loss['max_drop']:g} wanted)"
    )
