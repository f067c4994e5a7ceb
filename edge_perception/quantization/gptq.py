"""GPTQ (Frantar et al., ICLR 2023): rounding that passes each error on to what comes after.

Columns are rounded one by one; the rounding error of a column, weighed by the inverse of
H = E[x x^T], is subtracted from the columns not yet rounded, which make up for it. Activation
order takes the columns by falling H_kk, so that the important ones are rounded first; groups stay
where they lie ("static groups": grids are fitted before), so that no index has to be stored.
Damping adds a share of the mean diagonal to H. The inner loop works on blocks of 128 columns and
updates the rest once a block, as the original does.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from edge_perception.errors import QuantizationError
from edge_perception.quantization.grid import Grid

BLOCK_COLUMNS = 128
"""Columns rounded between two updates of the rest."""

_DAMPING_GROWTH = 10.0
_DAMPING_TRIES = 4


def round_with_feedback(
    weight: Tensor,
    grid: Grid,
    second_moment: Tensor,
    *,
    damping: float = 0.01,
    activation_order: bool = True,
) -> Tensor:
    """Codes uint8 [N, K] of a float32 weight [N, K] on a fitted grid.

    ``second_moment`` float32 [K, K]. Raises ``QuantizationError`` where it stays singular.
    """
    diagonal = second_moment.diagonal()
    columns = weight.shape[1]
    order = (
        torch.argsort(diagonal, descending=True, stable=True)
        if activation_order
        else torch.arange(columns, device=weight.device)
    )
    factor = _inverse_factor(second_moment[order][:, order], damping)
    scales, zeros = grid.expanded(columns)
    codes = _feedback_loop(
        weight[:, order].clone(), factor, scales[:, order], zeros[:, order], grid.highest_code
    )
    natural = torch.empty_like(codes)
    natural[:, order] = codes
    return natural


def compensated_target(
    weight: Tensor, second_moment: Tensor, drift: Tensor, *, share: float, damping: float = 0.01
) -> Tensor:
    """The weight that, on the inputs x it will see, comes nearest to the float model's output.

    Layers before have been rounded, so x is not the float model's x_float. ||W x_float - Q x||^2 is
    ||(W' - Q) x||^2 plus a constant for W' = W + W E[(x_float - x) x^T] E[x x^T]^-1: rounding W'
    instead of W undoes part of the earlier layers' errors (the idea of GPTAQ, Li et al., 2025, in
    closed form). ``drift`` is E[(x_float - x) x^T]; ``share`` of the correction is applied, since
    it is fitted to the calibration text.
    """
    damped = second_moment.clone()
    damped.diagonal().add_(damping * damped.diagonal().mean())
    lower = torch.linalg.cholesky(damped)
    correction = torch.cholesky_solve((weight @ drift).T.contiguous(), lower).T
    return weight + share * correction


def _inverse_factor(second_moment: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the damped inverse; dead channels get a unit diagonal."""
    damped = second_moment.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    share = damping
    for _ in range(_DAMPING_TRIES):
        shifted = damped.clone()
        shifted.diagonal().add_(share * diagonal.mean())
        lower, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
        share *= _DAMPING_GROWTH
    raise QuantizationError(
        "the activations' second moment is singular",
        expected="a positive definite matrix after damping",
        got=share,
        mend="Give more calibration tokens or more damping.",
    )


def _feedback_loop(
    weight: Tensor, factor: Tensor, scales: Tensor, zeros: Tensor, highest_code: int
) -> Tensor:
    """The columns in order, ``weight`` consumed; returns codes uint8 [N, K]."""
    columns = weight.shape[1]
    # Column-major copies: a column is then one contiguous row, which the loop reads K times.
    weight_t, scales_t, zeros_t = (m.T.contiguous() for m in (weight, scales, zeros))
    codes_t = torch.empty(weight_t.shape, dtype=torch.uint8, device=weight.device)
    for start in range(0, columns, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, columns)
        rows = slice(start, end)
        spread = factor[rows] / factor.diagonal()[rows, None]
        operands = (weight_t[rows], spread[:, rows], scales_t[rows], zeros_t[rows])
        if weight.is_cuda:
            rounder = _graphed_block(end - start, weight.shape[0], highest_code, weight.device)
            codes, errors = rounder(*operands)
        else:
            codes, errors = _round_block(*operands, highest_code)
        codes_t[rows] = codes
        if end < columns:
            weight_t[end:].addmm_(spread[:, end:].T, errors, alpha=-1)
    return codes_t.T.contiguous()


def _round_block(
    weight: Tensor, spread: Tensor, scales: Tensor, zeros: Tensor, highest_code: int
) -> tuple[Tensor, Tensor]:
    """Codes and errors [B, N] of B columns; ``weight`` [B, N] is consumed."""
    codes, errors = torch.empty_like(weight), torch.empty_like(weight)
    for index in range(len(weight)):
        column, scale, zero = weight[index], scales[index], zeros[index]
        code = torch.round(column / scale).add_(zero).clamp_(0, highest_code)
        codes[index] = code
        errors[index] = column - (code - zero) * scale
        if index + 1 < len(weight):
            weight[index + 1 :].addr_(spread[index, index + 1 :], errors[index], alpha=-1)
    return codes, errors


class _GraphedBlock:
    """``_round_block`` of one shape as a CUDA graph: its thousand small kernels launch as one."""

    def __init__(self, shape: tuple[int, int], highest_code: int, device: torch.device) -> None:
        block = shape[0]
        weight, scales, zeros = (torch.ones(shape, device=device) for _ in range(3))
        self._operands = (weight, torch.zeros(block, block, device=device), scales, zeros)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            _round_block(*self._operands, highest_code)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = _round_block(*self._operands, highest_code)

    def __call__(self, *operands: Tensor) -> tuple[Tensor, Tensor]:
        """Run on ``operands``; the results are overwritten by the next call."""
        for mine, given in zip(self._operands, operands, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._results


@lru_cache(maxsize=8)
def _graphed_block(block: int, rows: int, highest_code: int, device: torch.device) -> _GraphedBlock:
    return _GraphedBlock((block, rows), highest_code, device)
