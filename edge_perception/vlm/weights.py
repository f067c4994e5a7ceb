"""A decoder's weights: what the operators read, one linear matrix for each product they run.

A matrix is float, or packed integers (``PackedWeight``). Query, key and value share their input,
so they are stacked into one matrix, and so are gate and up: a decode step then launches half the
kernels. Stacking copies one layer at a time and drops its source: a model is never held twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from edge_perception.core.language_model import LanguageModelShape
from edge_perception.errors import CheckpointError
from edge_perception.vlm.int8_linear import Int8Weight, is_w8a8
from edge_perception.vlm.packed_linear import PackedLinear, PackedWeight


@dataclass(frozen=True)
class FloatWeight:
    """A float matrix [N, K] with its bias [N], if any."""

    values: Tensor
    bias: Tensor | None = None

    @property
    def out_features(self) -> int:
        """N."""
        return self.values.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.values.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that a decode step reads for this matrix."""
        return self.values.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True)
class StackedWeight:
    """Matrices of one input that could not be joined (one float, one packed): run one by one."""

    parts: tuple[FloatWeight | PackedWeight, ...]

    @property
    def out_features(self) -> int:
        """N of all parts."""
        return sum(part.out_features for part in self.parts)

    @property
    def in_features(self) -> int:
        """K."""
        return self.parts[0].in_features

    @property
    def nbytes(self) -> int:
        """Bytes that a decode step reads for these matrices."""
        return sum(part.nbytes for part in self.parts)


LinearWeight: TypeAlias = FloatWeight | PackedWeight | Int8Weight | StackedWeight


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. Norms are float [hidden]; ``query_norm``, ``key_norm`` [head_dim]."""

    attention_norm: Tensor
    qkv: LinearWeight
    output: LinearWeight
    mlp_norm: Tensor
    gate_up: LinearWeight
    down: LinearWeight
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None


@dataclass(frozen=True)
class DecoderWeights:
    """A whole decoder; ``head`` is the very object ``embedding`` where the two are tied.

    ``inverse_frequencies`` float32 [head_dim / 2] and ``rotary_scale`` make the rotary tables;
    ``rotary_axes`` int64 [head_dim / 2] names the position axis (time, height, width) that turns
    each frequency, None where positions have one axis. ``dtype`` is the activations'.
    """

    shape: LanguageModelShape
    dtype: torch.dtype
    embedding: FloatWeight | PackedWeight
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: FloatWeight | PackedWeight
    inverse_frequencies: Tensor
    rotary_scale: float = 1.0
    rotary_axes: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory, what is tied counted once."""
        head = 0 if self.head is self.embedding else self.head.nbytes
        layers = sum(_layer_bytes(layer) for layer in self.layers)
        return self.embedding.nbytes + layers + self.final_norm.nbytes + head

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decode step reads: one row of the embedding, all the rest."""
        layers = sum(_layer_bytes(layer) for layer in self.layers)
        row = self.embedding.nbytes // self.embedding.out_features
        return row + layers + self.final_norm.nbytes + self.head.nbytes


def _layer_bytes(layer: LayerWeights) -> int:
    values = (getattr(layer, field.name) for field in fields(layer))
    return sum(int(value.nbytes) for value in values if value is not None)


def weight_of(module: nn.Module) -> FloatWeight | PackedWeight:
    """The weight of a linear layer or an embedding, float or packed; nothing is copied."""
    if isinstance(module, PackedLinear):
        return module.packed
    if not isinstance(module, (nn.Linear, nn.Embedding)):
        raise CheckpointError(
            "not a linear layer", expected="Linear or PackedLinear", got=type(module).__name__
        )
    bias = getattr(module, "bias", None)
    return FloatWeight(module.weight.detach(), None if bias is None else bias.detach())


def in_dtype(weight: FloatWeight | PackedWeight, dtype: torch.dtype) -> FloatWeight | PackedWeight:
    """The weight with its bias in the activations' ``dtype``.

    Scales that only bfloat16 holds exactly become fp16 where the activations are, unless that
    loses more than bfloat16's own rounding: kernels read fp16, what stays runs in torch.
    """
    if isinstance(weight, FloatWeight) or dtype not in (torch.float16, torch.bfloat16):
        return weight
    bias = None if weight.bias is None else weight.bias.to(dtype)
    scales = weight.scales
    if dtype == torch.float16 and scales.dtype == torch.bfloat16:
        half = scales.to(torch.float16)
        lost = (half.float() - scales.float()).abs()
        if bool((lost <= 2**-9 * scales.float().abs()).all()):
            scales = half
    return replace(weight, bias=bias, scales=scales)


def stack(parts: Sequence[FloatWeight | PackedWeight]) -> LinearWeight:
    """One matrix of the parts' rows, in their order; a ``StackedWeight`` if they are unlike."""
    if any(part.in_features != parts[0].in_features for part in parts):
        raise CheckpointError(
            "matrices of different widths cannot share an input",
            expected=str(parts[0].in_features),
            got=[part.in_features for part in parts],
        )
    packed = [part for part in parts if isinstance(part, PackedWeight)]
    floats = [part for part in parts if isinstance(part, FloatWeight)]
    if len(floats) == len(parts) and len({part.values.dtype for part in floats}) == 1:
        return FloatWeight(torch.cat([part.values for part in floats]), _stack_biases(floats))
    if len(packed) == len(parts) and _are_alike(packed):
        return replace(
            packed[0],
            codes=torch.cat([part.codes for part in packed]),
            scales=torch.cat([part.scales for part in packed]),
            zeros=torch.cat([part.zeros for part in packed]),
            bias=_stack_biases(packed),
        )
    return StackedWeight(tuple(parts))


def _are_alike(parts: Sequence[PackedWeight]) -> bool:
    """Whether rows of these weights may lie in one matrix: same codes, groups and input order."""
    kinds = {(part.bits, part.group_size, part.scales.dtype) for part in parts}
    return len(kinds) == 1 and all(
        _same_order(part.input_order, parts[0].input_order) for part in parts
    )


def _same_order(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _stack_biases(parts: Sequence[FloatWeight] | Sequence[PackedWeight]) -> Tensor | None:
    given = [part.bias for part in parts if part.bias is not None]
    if not given:
        return None
    like = given[0]
    return torch.cat(
        [
            like.new_zeros(part.out_features) if part.bias is None else part.bias.to(like)
            for part in parts
        ]
    )


def to_w8a8(weights: DecoderWeights) -> DecoderWeights:
    """The same decoder, its layers' matrices to be multiplied by 8-bit activations.

    Head and embedding stay as they are. Raises ``CheckpointError`` where no matrix can be.
    """
    turned = [_turned(layer) for layer in weights.layers]
    if not any(turned):
        raise CheckpointError(
            "no layer can be multiplied by 8-bit activations",
            expected="weights of 8 bits, one scale a channel, symmetric",
            mend="Quantise with the method smoothquant or w8a8.",
        )
    layers = (replace(layer, **some) for layer, some in zip(weights.layers, turned))
    return replace(weights, layers=tuple(layers))


def _turned(layer: LayerWeights) -> dict[str, Int8Weight]:
    """The matrices of a layer that can be, by their fields' names."""
    matrices = {field.name: getattr(layer, field.name) for field in fields(layer)}
    return {name: Int8Weight.of(each) for name, each in matrices.items() if is_w8a8(each)}
