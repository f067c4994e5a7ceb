"""What the methods need to know of a layer's inputs, gathered in one pass.

Every weight-only method here minimises ||(Q(W) - W) X||^2 in some form, and that is
tr(D H D^T) with D the weight error and H = X X^T: once H is summed, no activation has to be kept,
each candidate costs one product of [N, K] with [K, K] however many tokens were seen, and the AWQ
grid search that takes most of the original's time becomes a few matrix products. The price is
K^2 floats for each input (0.8 GB for Llama-3-8B's widest).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 matrix products on CUDA devices."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclass
class InputStatistics:
    """Running sums over the inputs x of one group of layers.

    ``second_moment_sum`` float32 [K, K], ``abs_sum`` and ``abs_max`` float32 [K], all on the
    device of the inputs. ``drift_sum`` float32 [K, K] sums (x_float - x) x^T, where x_float is what
    the float model has in x's place.
    """

    second_moment_sum: Tensor
    abs_sum: Tensor
    abs_max: Tensor
    tokens: int = 0
    drift_sum: Tensor | None = None

    @classmethod
    def empty(cls, columns: int, device: torch.device) -> InputStatistics:
        """Sums over nothing yet."""
        return cls(
            torch.zeros(columns, columns, device=device),
            torch.zeros(columns, device=device),
            torch.zeros(columns, device=device),
        )

    def add(self, inputs: Tensor, reference: Tensor | None = None) -> None:
        """Take in activations [..., K], and what the float model has in their place.

        16-bit inputs have at most 11 significant bits, so TF32 products of them, summed in
        float32, are exact: that faster mode is used where the inputs allow it.
        """
        flat = inputs.reshape(-1, inputs.shape[-1])
        exact_in_tf32 = flat.dtype in (torch.float16, torch.bfloat16)
        flat = flat.to(torch.float32)
        with tf32(exact_in_tf32):
            self.second_moment_sum.addmm_(flat.T, flat)
            if reference is not None:
                if self.drift_sum is None:
                    self.drift_sum = torch.zeros_like(self.second_moment_sum)
                drift = reference.reshape(flat.shape).to(torch.float32) - flat
                self.drift_sum.addmm_(drift.T, flat)
        magnitudes = flat.abs()
        self.abs_sum += magnitudes.sum(dim=0)
        self.abs_max = torch.maximum(self.abs_max, magnitudes.amax(dim=0))
        self.tokens += flat.shape[0]

    @property
    def second_moment(self) -> Tensor:
        """E[x x^T], float32 [K, K]."""
        return self.second_moment_sum / max(1, self.tokens)

    @property
    def drift(self) -> Tensor | None:
        """E[(x_float - x) x^T], float32 [K, K]; None where the float model was not run."""
        return None if self.drift_sum is None else self.drift_sum / max(1, self.tokens)

    @property
    def mean_magnitude(self) -> Tensor:
        """E|x| by channel, float32 [K]."""
        return self.abs_sum / max(1, self.tokens)

    def rescaled(self, scales: Tensor) -> InputStatistics:
        """The statistics of x / scales, which is what the layer sees once scales are folded."""
        inverse = 1.0 / scales
        return InputStatistics(
            self.second_moment_sum * inverse.unsqueeze(0) * inverse.unsqueeze(1),
            self.abs_sum * inverse,
            self.abs_max * inverse,
            self.tokens,
        )
