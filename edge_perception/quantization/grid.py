"""Integer grids for weights: fitting, rounding and clipping, group by group along K.

A grid gives each group of ``group_size`` neighbouring input channels of an output channel a scale
and an integer zero point, so that w ~ (code - zero) * scale. Scales are rounded to fp16 *before*
anything is rounded to the grid: what is measured here is what a checkpoint holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_perception.errors import QuantizationError

PER_CHANNEL = -1
"""The group size that stands for "one group an output channel"."""

CLIP_STEPS = 20
"""Shrink factors tried by the clip search, from 1 downwards (AWQ's grid)."""

CLIP_FLOOR = 0.5
"""The strongest shrink tried; AWQ's own choice."""

_SMALLEST_SCALE = 2.0**-14
"""The smallest normal fp16 number: a group of zeros still gets a valid scale."""


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored: code width, group size along K, symmetric or not."""

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (3, 4, 8):
            raise QuantizationError("unknown code width", expected="3, 4 or 8 bits", got=self.bits)
        if self.group_size != PER_CHANNEL and (self.group_size < 32 or self.group_size % 32):
            raise QuantizationError(
                "unusable group size",
                expected=f"a multiple of 32, or {PER_CHANNEL} for per channel",
                got=self.group_size,
            )

    @property
    def highest_code(self) -> int:
        """The largest code: 2^bits - 1."""
        return int(2**self.bits - 1)

    @property
    def symmetric_zero(self) -> int:
        """The zero point of every symmetric group: 2^(bits-1)."""
        return int(2 ** (self.bits - 1))

    def group_size_for(self, columns: int) -> int:
        """The group size used for a layer of ``columns`` input channels."""
        return columns if self.group_size == PER_CHANNEL else self.group_size


@dataclass(frozen=True)
class Grid:
    """Scales (float32 holding fp16 values) and zeros (float32 holding integers), each [N, G]."""

    scales: Tensor
    zeros: Tensor
    highest_code: int

    def expanded(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scales and zeros repeated to [N, K]."""
        repeats = columns // self.scales.shape[1]
        return (
            self.scales.repeat_interleave(repeats, dim=1),
            self.zeros.repeat_interleave(repeats, dim=1),
        )

    def round(self, weight: Tensor) -> Tensor:
        """The nearest codes, uint8 [N, K]."""
        grouped = _grouped(weight, weight.shape[1] // self.scales.shape[1])
        codes = torch.round(grouped / self.scales.unsqueeze(-1)) + self.zeros.unsqueeze(-1)
        return codes.clamp_(0, self.highest_code).to(torch.uint8).view(weight.shape)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Float32 weights [N, K] of ``codes``."""
        grouped = _grouped(codes, codes.shape[1] // self.scales.shape[1]).to(torch.float32)
        values = (grouped - self.zeros.unsqueeze(-1)) * self.scales.unsqueeze(-1)
        return values.view(codes.shape)


def _grouped(weight: Tensor, group_size: int) -> Tensor:
    return weight.reshape(weight.shape[0], -1, group_size)


def fit_grid(weight: Tensor, form: WeightFormat, shrink: Tensor | float = 1.0) -> Grid:
    """The min-max grid of a float32 weight [N, K], its range shrunk by ``shrink`` (or [N, G]).

    Asymmetric ranges always contain 0, so that the integer zero point is a real one. Raises
    ``QuantizationError`` where the group does not divide K.
    """
    group_size = form.group_size_for(weight.shape[1])
    if weight.shape[1] % group_size:
        raise QuantizationError(
            "the group size does not divide the layer's width",
            expected=f"a divisor of {weight.shape[1]}",
            got=group_size,
            mend="Choose what happens to such layers: a smaller group, or float.",
        )
    grouped = _grouped(weight, group_size)
    if form.symmetric:
        high = grouped.abs().amax(dim=-1) * shrink
        return _symmetric_grid(high, form)
    low = grouped.amin(dim=-1).clamp_(max=0.0) * shrink
    high = grouped.amax(dim=-1).clamp_(min=0.0) * shrink
    return _asymmetric_grid(low, high, form)


def _fp16(scales: Tensor) -> Tensor:
    return scales.clamp_(min=_SMALLEST_SCALE, max=65504.0).to(torch.float16).to(torch.float32)


def _symmetric_grid(high: Tensor, form: WeightFormat) -> Grid:
    # The codes reach from -2^(b-1) to 2^(b-1)-1: half a step beyond the largest is lost on one
    # side only, which costs less than wasting a code on both.
    scales = _fp16(high / (form.highest_code / 2))
    return Grid(scales, torch.full_like(scales, float(form.symmetric_zero)), form.highest_code)


def _asymmetric_grid(low: Tensor, high: Tensor, form: WeightFormat) -> Grid:
    scales = _fp16((high - low) / form.highest_code)
    zeros = torch.round(-low / scales).clamp_(0, form.highest_code)
    return Grid(scales, zeros, form.highest_code)


def search_clipping(weight: Tensor, form: WeightFormat, second_moment: Tensor) -> Grid:
    """The grid whose ranges are shrunk, group by group, to the least error in the output.

    ``second_moment`` is E[x x^T] of the group's inputs, float32 [G, g, g]; the error of a group is
    d^T E[x x^T] d with d its rounding error: what the group adds to the layer's squared output
    error, the other groups left aside (AWQ's clip search, in closed form). A diagonal, given as
    [G, g], weighs the channels alone ("imatrix").
    """
    best = fit_grid(weight, form)
    least = _group_error(weight, best, second_moment)
    shrinks = torch.linspace(1.0, CLIP_FLOOR, CLIP_STEPS + 1)[1:].tolist()
    for shrink in shrinks:
        grid = fit_grid(weight, form, shrink)
        error = _group_error(weight, grid, second_moment)
        better = error < least
        least = torch.where(better, error, least)
        best = Grid(
            torch.where(better, grid.scales, best.scales),
            torch.where(better, grid.zeros, best.zeros),
            form.highest_code,
        )
    return best


def _group_error(weight: Tensor, grid: Grid, second_moment: Tensor) -> Tensor:
    """The output error each group causes, [N, G]."""
    difference = grid.dequantize(grid.round(weight)) - weight
    grouped = difference.view(*grid.scales.shape, -1)
    if second_moment.dim() == 2:
        return (grouped.square() * second_moment).sum(-1)
    by_group = grouped.transpose(0, 1).contiguous()
    return (torch.bmm(by_group, second_moment) * by_group).sum(-1).transpose(0, 1)


def diagonal_blocks(matrix: Tensor, size: int) -> Tensor:
    """The [G, size, size] blocks on the diagonal of a square matrix [K, K]."""
    groups = matrix.shape[0] // size
    blocks = matrix.view(groups, size, groups, size)
    index = torch.arange(groups, device=matrix.device)
    return blocks[index, :, index, :].contiguous()
