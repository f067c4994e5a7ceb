"""AWQ's scale search (Lin et al., MLSys 2024), on second moments.

Input channels with large activations matter more, so their weights are scaled up before rounding
and the layer before is scaled down by as much. The scale is s = E|x|^r, or with "duo scaling"
E|x|^r / E|w|^(1-r), normalised by sqrt(max(s) min(s)); r is searched on a grid of 20. The
candidate with the least ||Q(W diag(s)) diag(s)^-1 X - W X||^2 wins, and s = 1 is always among
them: a scaling that does not help is not applied.

The original measures the error of q, k and v after the attention; here it is the linear outputs'
own, as the paper writes it. That lets the search run on E[x x^T] alone (``statistics.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from edge_perception.quantization.grid import WeightFormat, fit_grid
from edge_perception.quantization.statistics import InputStatistics, tf32

GRID_STEPS = 20
"""Exponents tried: r = 0, 1/20, ..., 19/20."""

_LEAST = 1e-4


def search_scales(
    weights: Sequence[Tensor],
    statistics: InputStatistics,
    form: WeightFormat,
    *,
    duo_scaling: bool = True,
    tie: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | None:
    """The best scales [K] for layers that share an input, or None where none helps.

    ``weights`` are float32 [N_i, K]. ``tie`` averages a vector [K] over the channels whose scales
    must be equal (the query heads that share a key-value head).
    """
    stacked = torch.cat(list(weights)) if len(weights) > 1 else weights[0]
    second_moment = statistics.second_moment
    best, least = None, _output_error(stacked, second_moment, form, None)
    activation = statistics.mean_magnitude
    salience = _weight_salience(stacked, form) if duo_scaling else None
    if tie is not None:
        activation = tie(activation)
        salience = None if salience is None else tie(salience)
    for scales in _candidates(activation, salience):
        error = _output_error(stacked, second_moment, form, scales)
        if error < least:
            best, least = scales, error
    return best


def _candidates(activation: Tensor, salience: Tensor | None) -> Iterator[Tensor]:
    for step in range(GRID_STEPS):
        ratio = step / GRID_STEPS
        scales = activation.pow(ratio).clamp(min=_LEAST)
        if salience is not None:
            scales = (scales / (salience.pow(1 - ratio) + _LEAST)).clamp(min=_LEAST)
        yield scales / (scales.max() * scales.min()).sqrt()


def _weight_salience(weight: Tensor, form: WeightFormat) -> Tensor:
    """Mean magnitude by input channel, each group relative to its largest weight, [K]."""
    group_size = form.group_size_for(weight.shape[1])
    grouped = weight.abs().view(weight.shape[0], -1, group_size)
    relative = grouped / (grouped.amax(dim=-1, keepdim=True) + 1e-6)
    return relative.view(weight.shape).mean(dim=0)


def _output_error(
    weight: Tensor, second_moment: Tensor, form: WeightFormat, scales: Tensor | None
) -> float:
    """E||(Q(W s) / s - W) x||^2 over the inputs."""
    scaled = weight if scales is None else weight * scales
    grid = fit_grid(scaled, form)
    rounded = grid.dequantize(grid.round(scaled))
    difference = (rounded if scales is None else rounded / scales) - weight
    with tf32(True):  # a sum of squares: its relative error of 1e-3 changes no choice that matters
        return float((difference @ second_moment * difference).sum())
