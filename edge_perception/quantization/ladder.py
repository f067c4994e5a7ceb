"""A ladder: one float model, many ways to quantise it, each measured on the same text.

Everything happens in memory, on copies; nothing is written but the report. The schema of the
report is told in ``docs/quantization.md``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge_perception.quantization.block import QuantizedWeight
from edge_perception.quantization.evaluate import Fidelity, gap_share, measure_fidelity
from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.pipeline import InMemory, KeepInMemory, Progress, quantize_tower
from edge_perception.quantization.recipe import Activations, Recipe
from edge_perception.quantization.smoothquant import quantize_inputs_of
from edge_perception.quantization.streaming import Batch, record_samples
from edge_perception.quantization.structure import find_towers


@dataclass(frozen=True)
class Quantised:
    """A quantised copy of a model, its linear layers' bytes and the seconds it took."""

    model: nn.Module
    bytes: int
    seconds: float


def quantise_copy(
    model: nn.Module,
    recipe: Recipe,
    batches: Sequence[Batch],
    device: torch.device,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> Quantised:
    """Quantise a copy of ``model`` (language tower) that computes as the exported one would."""
    copied = copy.deepcopy(model)
    start = time.perf_counter()
    tower = find_towers(copied)[0]
    samples = record_samples(copied, tower, batches, device) if recipe.needs_calibration else []
    sink = KeepInMemory()
    quantize_tower(
        tower, samples, recipe, device=device, source=InMemory(device), sink=sink,
        on_progress=on_progress,
    )  # fmt: skip
    if recipe.activations is not Activations.FLOAT:
        static = recipe.activations is Activations.STATIC
        for name, weight in sink.layers.items():
            quantize_inputs_of(copied.get_submodule(name), weight.input_abs_max if static else None)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    size = sum(layer_bytes(weight) for weight in sink.layers.values())
    return Quantised(copied, size, time.perf_counter() - start)


def layer_bytes(weight: QuantizedWeight) -> int:
    """Bytes of codes, fp16 scales and, unless symmetric, zero points of the codes' width."""
    groups = weight.grid.scales.numel()
    zeros = 0 if weight.form.symmetric else groups
    return (weight.codes.numel() + zeros) * weight.form.bits // 8 + 2 * groups


@torch.no_grad()
def climb(
    model: nn.Module,
    recipes: Sequence[Recipe],
    batches: Sequence[Batch],
    windows: Sequence[Tensor],
    device: torch.device,
    on_run: Callable[[dict[str, Any]], None] = lambda _run: None,
) -> dict[str, Any]:
    """Measure every recipe against the float model; returns ``{float_ppl, runs}``.

    ``on_run`` is told each run's row as it is done, so that an ended ladder loses little.
    """
    windows = [window.to(device) for window in windows]

    def reference(window: Tensor) -> Tensor:
        logits: Tensor = model(window).logits[0]
        return logits

    float_model = measure_fidelity(reference, None, windows)
    rtn: dict[WeightFormat, float] = {}
    runs: list[dict[str, Any]] = []
    for recipe in recipes:
        made = quantise_copy(model, recipe, batches, device)
        got = measure_fidelity(lambda w, q=made.model: q(w).logits[0], reference, windows)  # type: ignore[misc]
        if recipe.method == "rtn":
            rtn[recipe.form] = got.perplexity
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        rtn_ppl = rtn.get(recipe.form)
        runs.append(run_row(recipe, made, got, float_model.perplexity, rtn_ppl, tokens))
        on_run(runs[-1])
    return {"float_ppl": float_model.perplexity, "runs": runs}


def run_row(
    recipe: Recipe,
    made: Quantised,
    got: Fidelity,
    float_ppl: float,
    rtn_ppl: float | None,
    tokens: int,
) -> dict[str, Any]:
    """A run's figures; ``tokens`` were at hand to calibrate, ``rtn_ppl`` is RTN's in its format."""
    return {
        "method": recipe.method,
        **asdict(recipe.form),
        **recipe.settings,
        "implementation": "ours",
        "ppl": got.perplexity,
        "gap_share_of_rtn": None if rtn_ppl is None else gap_share(
            got.perplexity, float_ppl, rtn_ppl),
        "kl": got.kl,
        "agreement": got.agreement,
        "seconds": made.seconds,
        "bytes": made.bytes,
        "calibration_tokens": tokens if recipe.needs_calibration else 0,
    }  # fmt: skip
