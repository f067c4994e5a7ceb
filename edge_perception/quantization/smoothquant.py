"""SmoothQuant (Xiao et al., ICML 2023): outliers moved from activations into weights, then W8A8.

s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) divides input channel j (folded into the layer before)
and multiplies its weights. Weights then take 8 bits, symmetric, per output channel; activations 8
bits, symmetric, with a scale a token ("dynamic") or one calibrated scale a layer ("static").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edge_perception.vlm.rounded_inputs import round_inputs, static_scale

_LEAST = 1e-5


def smoothing_scales(
    weights: Sequence[Tensor],
    input_abs_max: Tensor,
    alpha: float,
    tie: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The scales [K] of layers that share an input with channel maxima ``input_abs_max`` [K]."""
    weight_abs_max = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    if tie is not None:
        input_abs_max, weight_abs_max = tie(input_abs_max), tie(weight_abs_max)
    inputs = input_abs_max.clamp(min=_LEAST).pow(alpha)
    return (inputs / weight_abs_max.clamp(min=_LEAST).pow(1 - alpha)).clamp(min=_LEAST)


def quantize_inputs_of(layer: nn.Module, abs_max: float | None) -> None:
    """From now on ``layer`` sees its input rounded to 8 bits (as a W8A8 engine computes)."""
    scale = None if abs_max is None else static_scale(abs_max)
    layer.register_forward_pre_hook(lambda _module, args: (round_inputs(args[0], scale), *args[1:]))
