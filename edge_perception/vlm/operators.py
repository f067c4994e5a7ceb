"""The operators a decoder is made of, as an interface: the oracle in torch, the kernels in CUDA.

The decoder knows its layers and nothing of how a product is computed. Each operator here is one
unit that a GPU runs as one kernel, or as few: so the interface is drawn where kernels are fused,
not where formulas end. ``vlm/torch_operators.py`` implements it in plain torch: that is the CPU
path and the oracle of every kernel.

What an implementation promises:

- It writes its outputs and the cache, nothing else; all of its inputs are left alone.
- It reads lengths and positions from device tensors and does not synchronise, so that a call
  captured in a CUDA graph is right at every replay. ``Span.bound`` is a limit known to the host:
  in a graph it is the cache's capacity.
- **Rows up to ``SAME_ORDER_ROWS`` do not see each other**: the result of a row has the same bits
  whether it comes alone or with up to seven others. Speculation verifies drafts in one call and
  may then claim that its tokens are those of single steps.
- Sums over K, over a head and over a norm's vector are kept in float32 or better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edge_perception.vlm.kv_cache import KvLayer
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.sampling import Sampling
from edge_perception.vlm.weights import FloatWeight, LinearWeight

SAME_ORDER_ROWS = 8
"""Rows up to which an operator reduces each of them in one order, whatever their number."""


@dataclass(frozen=True)
class Span:
    """The neighbouring cache slots ``first .. first + rows - 1`` that a call's rows go to.

    ``first`` is int64 [1] on the device; ``bound`` is at least first + rows, on the host.
    ``start`` is first's value where the host knows it: in a prefill, never in a graph.
    """

    first: Tensor
    rows: int
    bound: int
    start: int | None = None

    @property
    def slots(self) -> Tensor:
        """The slots, int64 [rows], on the device."""
        if self.rows == 1:
            return self.first
        return self.first + torch.arange(self.rows, device=self.first.device)


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines float32 [positions, head_dim / 2]; ``axes`` as in ``DecoderWeights``."""

    cosines: Tensor
    sines: Tensor
    axes: Tensor | None = None

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [T, head_dim / 2] for ``positions``, int64 [T], or [3, T] with three axes."""
        if positions.dim() == 1 or self.axes is None:
            index = positions if positions.dim() == 1 else positions[0]
            return self.cosines[index], self.sines[index]
        index = positions[self.axes].T
        column = torch.arange(index.shape[1], device=index.device)
        return self.cosines[index, column], self.sines[index, column]


@dataclass(frozen=True)
class HeadLayout:
    """How a layer's attention divides its channels, and how far back it looks.

    A row of fused QKV is [query_heads + 2 * kv_heads, head_dim]: queries, keys, values. Query
    head h attends to key-value head h // (query_heads / kv_heads). ``query_norm`` and
    ``key_norm``, where given, are RMS norms over head_dim, before the rotation.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    norm_eps: float
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None


class Operators(Protocol):
    """What a decoder calls. T rows; H hidden, V vocabulary; all activations in one float type.

    ``then`` is the weight that is read next: a hint, which changes no result. Who has nothing else
    to read meanwhile may start fetching it.
    """

    def embed(
        self, token_ids: Tensor, table: FloatWeight | PackedWeight, dtype: torch.dtype
    ) -> Tensor:
        """Rows [T, H] of the table for ``token_ids`` int64 [T]."""

    def norm_linear(
        self,
        inputs: Tensor,
        norm: Tensor,
        eps: float,
        weight: LinearWeight,
        *,
        then: LinearWeight | None = None,
    ) -> Tensor:
        """``RMSNorm(inputs) W^T + bias``, [T, N]: fused QKV, and the head."""

    def norm_gate_up(
        self,
        inputs: Tensor,
        norm: Tensor,
        eps: float,
        weight: LinearWeight,
        *,
        then: LinearWeight | None = None,
    ) -> Tensor:
        """``SiLU(gate) * up`` of ``RMSNorm(inputs)``, [T, N / 2]; gate rows lie before up rows."""

    def linear_add(
        self,
        inputs: Tensor,
        weight: LinearWeight,
        residual: Tensor,
        *,
        then: LinearWeight | None = None,
    ) -> Tensor:
        """``residual + inputs W^T + bias``, [T, H]."""

    def attend(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        rotary: RotaryTable,
        positions: Tensor,
        cache: KvLayer,
        span: Span,
        *,
        then: LinearWeight | None = None,
    ) -> Tensor:
        """Norm and rotate queries and keys, write the cache, attend; [T, query_heads * head_dim].

        Row t, at slot s, sees the slots s - window + 1 to s. ``positions`` as in ``RotaryTable``.
        """

    def sample(self, logits: Tensor, sampling: Sampling, slots: Tensor) -> Tensor:
        """The next tokens int64 [T], as ``sampling.choose_tokens`` defines them."""
