"""compressed-tensors "int-quantized": whole bytes, as W8A8 checkpoints have them.

``weight`` int8 [N, K], ``weight_scale`` [N, G] (G = 1: per channel), for asymmetric weights
``weight_zero_point`` int8 [N, G], for static activations ``input_scale`` [1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_perception.errors import CheckpointError
from edge_perception.vlm.loaders.layouts import Codes, expect, expect_division, expect_matrix

_MIDDLE = 128


def read_int_quantized(weight: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Codes:
    """The codes of a layer, shifted to 0..255; symmetric where ``zero_point`` is None."""
    rows, columns = expect_matrix("weight", weight, torch.int8)
    groups = expect_matrix("weight_scale", scale, scale.dtype)[1]
    expect("weight_scale", scale, scale.dtype, (rows, groups))
    expect_division("weight_scale", columns, groups)
    if zero_point is None:
        zeros = torch.full((rows, groups), _MIDDLE, dtype=torch.uint8)
    else:
        expect("weight_zero_point", zero_point, torch.int8, (rows, groups))
        zeros = _shifted(zero_point)
    return Codes(_shifted(weight), scale.contiguous(), zeros)


def write_int_quantized(codes: Codes) -> dict[str, Tensor]:
    """Inverse of ``read_int_quantized`` for symmetric 8-bit codes."""
    if bool((codes.zeros != _MIDDLE).any()):
        raise CheckpointError("int-quantized weights are written symmetric", expected="zeros 128")
    whole = codes.codes.to(torch.int16) - _MIDDLE
    return {
        "weight": whole.to(torch.int8).contiguous(),
        "weight_scale": codes.scales.contiguous(),
    }


def expect_input_scale(scale: Tensor) -> Tensor:
    """A static activation scale as float32 [1]; refused unless positive and finite."""
    value = scale.to(torch.float32).reshape(-1)
    if value.numel() != 1 or not bool(torch.isfinite(value).all()) or float(value[0]) <= 0:
        raise CheckpointError(
            "tensor 'input_scale' does not fit its layout",
            expected="one positive number",
            got=value.tolist()[:4],
        )
    return value


def _shifted(values: Tensor) -> Tensor:
    return (values.to(torch.int16) + _MIDDLE).to(torch.uint8)
