"""Linear layers whose inputs are rounded to 8 bits too (W8A8), computed in float.

An engine multiplies the integers; the sums are the same but for float rounding, so accuracy can be
judged here. Inputs are symmetric, with a scale a token ("dynamic") or one of the layer ("static").
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_perception.vlm.packed_linear import PackedLinear, PackedWeight

HIGHEST = 127
LEAST_REACH = 1e-5


def static_scale(abs_max: float) -> Tensor:
    """The scale, float32 [1], of inputs that reach to ``abs_max``."""
    return torch.tensor([max(abs_max, LEAST_REACH)], dtype=torch.float32) / HIGHEST


def round_inputs(inputs: Tensor, scale: Tensor | None = None) -> Tensor:
    """Inputs [..., K] rounded to 8 bits and back; without ``scale`` (float32 [1]), one a token."""
    if scale is None:
        scale = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=LEAST_REACH) / HIGHEST
    else:
        scale = scale.to(inputs)
    return torch.round(inputs / scale).clamp_(-HIGHEST - 1, HIGHEST) * scale


class RoundedInputLinear(PackedLinear):
    """A ``PackedLinear`` that sees its inputs rounded to 8 bits."""

    input_scale: Tensor | None

    def __init__(self, packed: PackedWeight, input_scale: Tensor | None) -> None:
        super().__init__(packed)
        self.register_buffer("input_scale", input_scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer to float ``inputs`` [..., K]."""
        return super().forward(round_inputs(inputs, self.input_scale))
