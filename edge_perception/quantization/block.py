"""One transformer block quantised by a recipe.

Two phases. First the scales: statistics of all the block's inputs are gathered in one pass, the
best scales searched and folded. Then the rounding. With GPTQ the groups are taken in the order in
which they run and each sees the inputs that the already rounded ones cause, so that later layers
make up for earlier errors; the others round straight from the first phase's statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_perception.quantization.awq import search_scales
from edge_perception.quantization.gptq import compensated_target, round_with_feedback
from edge_perception.quantization.grid import (
    Grid,
    WeightFormat,
    diagonal_blocks,
    fit_grid,
    search_clipping,
)
from edge_perception.quantization.recipe import Clipping, Recipe, Rounding, Scaling
from edge_perception.quantization.smoothquant import smoothing_scales
from edge_perception.quantization.statistics import InputStatistics
from edge_perception.quantization.streaming import Sample, run_block, watching_inputs
from edge_perception.quantization.structure import LinearGroup, fold_scales, linear_groups


@dataclass(frozen=True)
class QuantizedWeight:
    """A layer's codes uint8 [N, K] and its grid, on the CPU."""

    codes: Tensor
    grid: Grid
    form: WeightFormat
    input_abs_max: float = 0.0


class _InputSeen(Exception):
    """Ends a forward pass that has shown what was wanted."""


def quantize_block(
    block: nn.Module,
    index: int,
    samples: Sequence[Sample],
    recipe: Recipe,
    device: torch.device,
    references: Sequence[Sample] = (),
) -> dict[str, QuantizedWeight]:
    """Quantise the block's linear layers in place and return their codes by name.

    ``references`` are the samples as the float model has them, if the recipe asks for its outputs
    as the target.

    ``block`` lies on ``device``; its weights are replaced by their dequantised values, its norms
    by their rescaled ones. Layers the recipe keeps in float are absent from the result.
    """
    groups = linear_groups(block)
    statistics: dict[LinearGroup, InputStatistics] = {}
    if recipe.needs_calibration and not _rounds_alone(recipe):
        statistics = gather_statistics(block, index, samples, groups, device)
        for group in groups:
            statistics[group] = _scale_group(block, group, statistics[group], recipe)
    # Scaled but not rounded: its layers' inputs are the float model's, in the scaled units.
    float_block = copy.deepcopy(block) if references else None
    results: dict[str, QuantizedWeight] = {}
    for group in groups:
        seen = statistics.get(group)
        if float_block is not None:
            seen = gather_with_drift(block, float_block, index, samples, references, group, device)
        elif recipe.rounding is Rounding.FEEDBACK:
            seen = gather_statistics(block, index, samples, [group], device)[group]
        results |= _round_group(block, group, seen, recipe)
    return results


def _rounds_alone(recipe: Recipe) -> bool:
    return recipe.rounding is Rounding.FEEDBACK and recipe.scaling is Scaling.NONE


def gather_statistics(
    block: nn.Module,
    index: int,
    samples: Sequence[Sample],
    groups: Sequence[LinearGroup],
    device: torch.device,
) -> dict[LinearGroup, InputStatistics]:
    """Run the block over the samples and sum up the inputs of the groups."""
    statistics = {group: InputStatistics.empty(_columns(block, group), device) for group in groups}
    last = groups[-1]

    def observer(group: LinearGroup) -> Callable[[Tensor], None]:
        def observe(inputs: Tensor) -> None:
            statistics[group].add(inputs)
            if group is last:
                raise _InputSeen  # nothing after the last group's input is of interest

        return observe

    with watching_inputs(block, {group.layers[0]: observer(group) for group in groups}):
        for sample in samples:
            try:
                run_block(block, index, sample, device)
            except _InputSeen:
                continue
    return statistics


def gather_with_drift(
    block: nn.Module,
    float_block: nn.Module,
    index: int,
    samples: Sequence[Sample],
    references: Sequence[Sample],
    group: LinearGroup,
    device: torch.device,
) -> InputStatistics:
    """Statistics of one group's inputs together with how they drift from the float model's."""
    statistics = InputStatistics.empty(_columns(block, group), device)
    for sample, reference in zip(samples, references, strict=True):
        inputs = _input_of(block, group.layers[0], index, sample, device)
        statistics.add(inputs, _input_of(float_block, group.layers[0], index, reference, device))
    return statistics


def _input_of(
    block: nn.Module, layer: str, index: int, sample: Sample, device: torch.device
) -> Tensor:
    seen: list[Tensor] = []

    def observe(inputs: Tensor) -> None:
        seen.append(inputs)
        raise _InputSeen

    with watching_inputs(block, {layer: observe}), suppress(_InputSeen):
        run_block(block, index, sample, device)
    return seen[0]


def _columns(block: nn.Module, group: LinearGroup) -> int:
    return int(block.get_submodule(group.layers[0]).weight.shape[1])  # type: ignore[union-attr,arg-type]


def _weights(block: nn.Module, group: LinearGroup) -> list[Tensor]:
    return [block.get_submodule(name).get_parameter("weight").float() for name in group.layers]


@torch.no_grad()
def _scale_group(
    block: nn.Module, group: LinearGroup, seen: InputStatistics, recipe: Recipe
) -> InputStatistics:
    """Fold the recipe's scales into the group; returns the statistics as they are then."""
    form = recipe.form_for(_columns(block, group))
    if recipe.scaling is Scaling.NONE or group.source is None or form is None:
        return seen
    if recipe.scaling is Scaling.SMOOTHQUANT:
        scales = smoothing_scales(_weights(block, group), seen.abs_max, recipe.alpha, group.tie)
    else:
        duo = recipe.scaling is Scaling.AWQ
        found = search_scales(_weights(block, group), seen, form, duo_scaling=duo, tie=group.tie)
        if found is None:
            return seen
        scales = found
    fold_scales(block, group, scales)
    return seen.rescaled(scales)


@torch.no_grad()
def _round_group(
    block: nn.Module, group: LinearGroup, seen: InputStatistics | None, recipe: Recipe
) -> dict[str, QuantizedWeight]:
    form = recipe.form_for(_columns(block, group))
    if form is None:
        return {}
    # Layers that share an input share the matrices of GPTQ too: they are rounded as one.
    stacked = torch.cat(_weights(block, group))
    if seen is not None and seen.drift is not None:
        stacked = compensated_target(
            stacked, seen.second_moment, seen.drift,
            share=recipe.float_target, damping=recipe.damping,
        )  # fmt: skip
    grid = _fit(stacked, form, seen, recipe.clipping)
    if recipe.rounding is Rounding.FEEDBACK and seen is not None:
        codes = round_with_feedback(
            stacked,
            grid,
            seen.second_moment,
            damping=recipe.damping,
            activation_order=recipe.activation_order,
        )
    else:
        codes = grid.round(stacked)
    abs_max = 0.0 if seen is None else float(seen.abs_max.max())
    return _assign(block, group, codes, grid, form, abs_max)


def _fit(
    weight: Tensor, form: WeightFormat, seen: InputStatistics | None, clipping: Clipping
) -> Grid:
    if clipping is Clipping.NONE or seen is None:
        return fit_grid(weight, form)
    group_size = form.group_size_for(weight.shape[1])
    if clipping is Clipping.IMATRIX:
        moments = seen.second_moment.diagonal().view(-1, group_size)
    else:
        moments = diagonal_blocks(seen.second_moment, group_size)
    return search_clipping(weight, form, moments)


def _assign(
    block: nn.Module,
    group: LinearGroup,
    codes: Tensor,
    grid: Grid,
    form: WeightFormat,
    abs_max: float,
) -> dict[str, QuantizedWeight]:
    """Split the stacked result among the layers and put the dequantised weights in place."""
    results = {}
    start = 0
    for name in group.layers:
        weight = block.get_submodule(name).get_parameter("weight")
        rows = slice(start, start + weight.shape[0])
        start = rows.stop
        part = Grid(grid.scales[rows], grid.zeros[rows], grid.highest_code)
        weight.copy_(part.dequantize(codes[rows]))
        results[name] = QuantizedWeight(
            codes[rows].cpu(),
            Grid(part.scales.cpu(), part.zeros.cpu(), grid.highest_code),
            form,
            abs_max,
        )
    return results
