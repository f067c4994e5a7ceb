"""The operators in plain torch: the oracle of the CUDA kernels, and the CPU path.

Few rows are computed one by one. A matrix product of eight rows sums in another order than one of
a single row, so a draft verified at once could differ from greedy decoding in the last bit, and
then in a token. On a CPU that costs what eight single steps cost: speculation gains nothing here,
and says the same as on a GPU, where it does gain.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from edge_perception.vlm.int8_linear import Int8Weight, int8_linear
from edge_perception.vlm.kv_cache import KvLayer
from edge_perception.vlm.operators import SAME_ORDER_ROWS, HeadLayout, RotaryTable, Span
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.sampling import Sampling, choose_tokens
from edge_perception.vlm.weights import FloatWeight, LinearWeight, StackedWeight


def rms_norm(inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last axis; the mean in float32."""
    wide = inputs.to(torch.float32)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(inputs.dtype)


def linear(inputs: Tensor, weight: LinearWeight) -> Tensor:
    """``inputs W^T + bias``, [T, N]; a packed weight is dequantised, once a call."""
    if isinstance(weight, StackedWeight):
        return torch.cat([linear(inputs, part) for part in weight.parts], dim=-1)
    if isinstance(weight, Int8Weight):
        return int8_linear(inputs, weight)
    if isinstance(weight, PackedWeight):
        weight = FloatWeight(weight.dequantize(inputs.dtype), weight.bias)
    matrix = weight.values.to(inputs.dtype)
    bias = None if weight.bias is None else weight.bias.to(inputs.dtype)
    return row_by_row(lambda rows: functional.linear(rows, matrix, bias), inputs)


def row_by_row(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Apply ``function`` to few rows [T, K] one at a time, to many at once."""
    if inputs.shape[0] > SAME_ORDER_ROWS:
        return function(inputs)
    return torch.cat([function(row) for row in inputs.split(1)])


def rotate(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn ``vectors`` [T, heads, D]: channel i pairs with i + D / 2 (Llama's halves)."""
    cos = torch.cat((cosines, cosines), dim=-1).to(vectors.dtype).unsqueeze(1)
    sin = torch.cat((sines, sines), dim=-1).to(vectors.dtype).unsqueeze(1)
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cos + torch.cat((-second, first), dim=-1) * sin


class TorchOperators:
    """``Operators`` in torch, on any device.

    On a GPU ``attend`` synchronises where the host does not know the span's start.
    """

    def embed(
        self, token_ids: Tensor, table: FloatWeight | PackedWeight, dtype: torch.dtype
    ) -> Tensor:
        if isinstance(table, FloatWeight):
            return table.values[token_ids].to(dtype)
        return table.rows(token_ids).dequantize(dtype)

    def norm_linear(
        self,
        inputs: Tensor,
        norm: Tensor,
        eps: float,
        weight: LinearWeight,
        *,
        then: LinearWeight | None = None,
    ) -> Tensor:
        return linear(rms_norm(inputs, norm, eps), weight)

    def norm_gate_up(
        self,
        inputs: Tensor,
        norm: Tensor,
        eps: float,
        weight: LinearWeight,
        *,
        then: LinearWeight | None = None,
    ) -> Tensor:
        gate, up = linear(rms_norm(inputs, norm, eps), weight).chunk(2, dim=-1)
        return functional.silu(gate) * up

    def linear_add(
        self,
        inputs: Tensor,
        weight: LinearWeight,
        residual: Tensor,
        *,
        then: LinearWeight | None = None,
    ) -> Tensor:
        return residual + linear(inputs, weight)

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
        heads = qkv.view(span.rows, -1, layout.head_dim)
        queries, keys, values = heads.split(
            (layout.query_heads, layout.kv_heads, layout.kv_heads), dim=1
        )
        if layout.query_norm is not None and layout.key_norm is not None:
            queries = rms_norm(queries, layout.query_norm, layout.norm_eps)
            keys = rms_norm(keys, layout.key_norm, layout.norm_eps)
        cosines, sines = rotary.at(positions)
        cache.write(span.slots, rotate(keys, cosines, sines), values)
        start = int(span.first) if span.start is None else span.start
        return _attend_to_cache(rotate(queries, cosines, sines), layout, cache, start)

    def sample(self, logits: Tensor, sampling: Sampling, slots: Tensor) -> Tensor:
        return choose_tokens(logits, sampling, slots)


def _attend_to_cache(queries: Tensor, layout: HeadLayout, cache: KvLayer, first: int) -> Tensor:
    """Attention of ``queries`` [T, heads, D] at the slots from ``first`` on; [T, heads * D]."""
    rows = queries.shape[0]
    if 1 < rows <= SAME_ORDER_ROWS:
        parts = queries.split(1)
        return torch.cat(
            [_attend_to_cache(part, layout, cache, first + i) for i, part in enumerate(parts)]
        )
    oldest = 0 if layout.window is None else max(0, first - layout.window + 1)
    keys, values = cache.read(first + rows, queries.dtype)
    attended = functional.scaled_dot_product_attention(
        queries.transpose(0, 1).unsqueeze(0),
        keys[None, :, oldest:],
        values[None, :, oldest:],
        attn_mask=_mask(first, rows, oldest, layout.window, queries.device),
        enable_gqa=True,
    )
    return attended.squeeze(0).transpose(0, 1).reshape(rows, -1)


def _mask(
    first: int, rows: int, oldest: int, window: int | None, device: torch.device
) -> Tensor | None:
    """Which slots, from ``oldest`` on, each of the rows at slots ``first`` on sees.

    Without a window it is a causal mask that takes no memory, with which a GPU's fastest attention
    runs; with one, bool [rows, first + rows - oldest]. One row sees all: None.
    """
    if rows == 1:
        return None
    if window is None:
        return causal_lower_right(rows, first + rows)
    own = torch.arange(first, first + rows, device=device).unsqueeze(1)
    slots = torch.arange(oldest, first + rows, device=device).unsqueeze(0)
    return (slots <= own) & (slots > own - window)
