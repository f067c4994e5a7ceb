"""Keys and values of all positions seen so far, in memory of a fixed size.

A slot is a position's place in the cache: slot i holds the i-th token of the sequence. Keys lie as
[kv_heads, capacity, head_dim], so that the context of one head is one run of memory, which a
kernel splits among its blocks. Nothing is ever cleared: what lies beyond the sequence's length is
masked. INT8 halves the bytes: each head's vector at each slot has a float32 scale of its own
(largest magnitude / 127), found when it is written, so no calibration is needed.

Left out: a ring of slots for layers with a sliding window. It would save memory at contexts beyond
the window, and make rewinding after a rejected draft wrong for the slots that it overwrote.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from edge_perception.core.language_model import LanguageModelShape
from edge_perception.errors import DecodingError

KV_FORMATS = ("float", "int8")
"""How keys and values are held: in the activations' type, or as INT8 with scales."""


class KvLayer(Protocol):
    """The cache of one layer."""

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store ``keys`` and ``values`` [T, kv_heads, head_dim] at ``slots`` int64 [T]."""

    def read(self, bound: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, bound, head_dim] of the first ``bound`` slots."""


class FloatKvLayer:
    """Keys and values [kv_heads, capacity, head_dim] in the activations' type."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        self.keys.index_copy_(1, slots, keys.transpose(0, 1).to(self.keys.dtype))
        self.values.index_copy_(1, slots, values.transpose(0, 1).to(self.values.dtype))

    def read(self, bound: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.keys[:, :bound].to(dtype), self.values[:, :bound].to(dtype)


class Int8KvLayer:
    """Codes int8 [kv_heads, capacity, head_dim] and scales float32 [kv_heads, capacity]."""

    def __init__(
        self, keys: Tensor, values: Tensor, key_scales: Tensor, value_scales: Tensor
    ) -> None:
        self.keys = keys
        self.values = values
        self.key_scales = key_scales
        self.value_scales = value_scales

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        for codes, scales, vectors in (
            (self.keys, self.key_scales, keys),
            (self.values, self.value_scales, values),
        ):
            quantised, scale = quantise_vectors(vectors.transpose(0, 1))
            codes.index_copy_(1, slots, quantised)
            scales.index_copy_(1, slots, scale)

    def read(self, bound: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        keys = self.keys[:, :bound] * self.key_scales[:, :bound, None]
        values = self.values[:, :bound] * self.value_scales[:, :bound, None]
        return keys.to(dtype), values.to(dtype)


def quantise_vectors(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """INT8 codes [..., D] and float32 scales [...] of ``vectors`` [..., D]; zeros stay zeros."""
    wide = vectors.to(torch.float32)
    scales = wide.abs().amax(dim=-1) / 127.0
    divisor = torch.where(scales > 0, scales, 1.0).unsqueeze(-1)
    return torch.round(wide / divisor).to(torch.int8), scales


class KvCache:
    """The caches of all layers, allocated once; ``nbytes`` never changes.

    Raises ``DecodingError`` for a capacity that is not positive or an unknown format.
    """

    def __init__(
        self,
        shape: LanguageModelShape,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        kv_format: str = "float",
    ) -> None:
        if capacity < 1:
            raise DecodingError("cache capacity", expected="1 token or more", got=capacity)
        if kv_format not in KV_FORMATS:
            raise DecodingError("KV format", expected=" or ".join(KV_FORMATS), got=kv_format)
        self.capacity = capacity
        self._tensors: list[Tensor] = []
        size = (shape.layers, shape.kv_heads, capacity, shape.head_dim)

        def allocate(kind: torch.dtype, wanted: tuple[int, ...]) -> Tensor:
            self._tensors.append(torch.zeros(wanted, dtype=kind, device=device))
            return self._tensors[-1]

        self.layers: tuple[KvLayer, ...]
        if kv_format == "float":
            keys, values = allocate(dtype, size), allocate(dtype, size)
            self.layers = tuple(map(FloatKvLayer, keys, values))
        else:
            keys, values = allocate(torch.int8, size), allocate(torch.int8, size)
            scales = [allocate(torch.float32, size[:3]) for _ in range(2)]
            self.layers = tuple(map(Int8KvLayer, keys, values, *scales))

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(tensor.nbytes for tensor in self._tensors)
