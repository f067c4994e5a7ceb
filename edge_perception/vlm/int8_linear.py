"""W8A8: 8-bit weights by 8-bit activations, as SmoothQuant's checkpoints are meant to run.

A weight has one scale an output channel, an activation one a row ("dynamic, per token"), found when
it arrives: sums are whole numbers, and ``y = sums * row_scale * channel_scale + bias``. A prompt
gains by it (twice the arithmetic of fp16); a decode step reads as many bytes as with any 8-bit
weight. A checkpoint holds 8-bit codes around zero point 128; ``weights.to_w8a8`` turns them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_perception.errors import CheckpointError
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.rounded_inputs import HIGHEST, LEAST_REACH


@dataclass(frozen=True)
class Int8Weight:
    """A matrix ``codes * scales``: int8 [N, K], fp16 [N, 1]; bias [N], if any."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, packed: PackedWeight) -> Int8Weight:
        """From 8-bit codes; raises ``CheckpointError`` unless per channel and symmetric."""
        if not is_w8a8(packed):
            raise CheckpointError(
                "a weight cannot be multiplied by 8-bit activations",
                expected="8 bits, one scale a channel, symmetric",
                got=f"{packed.bits} bits in groups of {packed.group_size}",
                mend="Quantise with the method smoothquant or w8a8.",
            )
        codes = packed.codes.bitwise_xor(128).view(torch.int8)  # code - 128
        return cls(codes, packed.scales, packed.bias)

    @property
    def out_features(self) -> int:
        """N."""
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that a decode step reads for this matrix."""
        held = (self.codes, self.scales, self.bias)
        return sum(tensor.nbytes for tensor in held if tensor is not None)


def is_w8a8(weight: object) -> bool:
    """Whether a weight is held so that it can be multiplied by 8-bit activations."""
    return (
        isinstance(weight, PackedWeight)
        and weight.bits == 8
        and weight.group_size == weight.in_features
        and weight.input_order is None
        and bool((weight.zeros == 128).all())
    )


def quantise_rows(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [T, K] and scales float32 [T, 1] of ``inputs`` [T, K]: largest magnitude / 127."""
    wide = inputs.to(torch.float32)
    scales = wide.abs().amax(dim=-1, keepdim=True).clamp(min=LEAST_REACH) / HIGHEST
    return torch.round(wide / scales).to(torch.int8), scales


def int8_linear(inputs: Tensor, weight: Int8Weight) -> Tensor:
    """The oracle: ``inputs W^T + bias``, ``inputs`` [T, K] rounded to 8 bits, sums in float64."""
    codes, scales = quantise_rows(inputs)
    sums = codes.to(torch.float64) @ weight.codes.to(torch.float64).T
    result = sums * scales.to(torch.float64) * weight.scales.to(torch.float64).T
    if weight.bias is not None:
        result += weight.bias.to(torch.float64)
    return result.to(inputs.dtype)
