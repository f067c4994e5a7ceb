"""Models of a true architecture with random weights, made where they are used.

Timing needs shapes, not knowledge: matrices are drawn on the device, packed ones as codes straight
away, so that an 8B model is there in a second and nothing is ever quantised. Scales are such that
activations keep their size through all layers, and outputs can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edge_perception.core.language_model import LanguageModelShape, read_shape
from edge_perception.embedded import carried_file
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.weights import DecoderWeights, FloatWeight, LayerWeights

GROUP = 128
_CODE_SPREAD = {4: 21.25**0.5, 8: 5461.25**0.5}
"""Standard deviation of uniform codes of 4 and 8 bits."""


def read_model(name: str, layers: int | None = None) -> dict[str, Any]:
    """The configuration of ``config/models/NAME.json``, cut to ``layers`` if told."""
    config: dict[str, Any] = json.loads(carried_file(f"config/models/{name}.json").read_text())
    return config if layers is None else config | {"num_hidden_layers": layers}


@dataclass(frozen=True)
class RandomModel:
    """Draws weights for ``config``: matrices of ``bits``, the head of ``head_bits`` (4, 8, 16)."""

    config: Mapping[str, Any]
    bits: int
    head_bits: int
    device: str = "cuda"
    seed: int = 0

    def weights(self) -> DecoderWeights:
        """All of them; the embedding of a tied model is its head, others are fp16."""
        shape = read_shape(self.config)
        generator = torch.Generator(self.device).manual_seed(self.seed)
        head = self._matrix(shape.vocab_size, shape.hidden_size, self.head_bits, generator)
        table = head
        if not shape.tied_head:
            table = self._matrix(shape.vocab_size, shape.hidden_size, 16, generator)
        theta = float(self.config.get("rope_theta", 1e4))
        steps = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=self.device)
        return DecoderWeights(
            shape=shape,
            dtype=torch.float16,
            embedding=table,
            layers=tuple(self._layer(shape, generator) for _ in range(shape.layers)),
            final_norm=self._norm(shape.hidden_size),
            head=head,
            inverse_frequencies=theta ** (-steps / shape.head_dim),
        )

    def with_head(self, weights: DecoderWeights, head_bits: int) -> DecoderWeights:
        """The same weights with a head (and, where tied, an embedding) of ``head_bits`` drawn."""
        shape = weights.shape
        generator = torch.Generator(self.device).manual_seed(self.seed)
        head = self._matrix(shape.vocab_size, shape.hidden_size, head_bits, generator)
        return replace(weights, head=head, embedding=head if shape.tied_head else weights.embedding)

    def _layer(self, shape: LanguageModelShape, generator: torch.Generator) -> LayerWeights:
        made = {}
        for name, (rows, columns, has_bias) in shape.layer_linears().items():
            # what is added to the stream is made small, so that all layers together do not drown it
            factor = (2 * shape.layers) ** -0.5 if name in ("output", "down") else 1.0
            matrix = self._matrix(rows, columns, self.bits, generator, factor)
            bias = self._normal((rows,), 0.1, generator) if has_bias else None
            made[name] = replace(matrix, bias=bias)
        head_norm = self._norm(shape.head_dim) if shape.qk_norm else None
        return LayerWeights(
            attention_norm=self._norm(shape.hidden_size),
            mlp_norm=self._norm(shape.hidden_size),
            query_norm=head_norm,
            key_norm=head_norm,
            **made,
        )

    def _matrix(
        self, rows: int, columns: int, bits: int, generator: torch.Generator, factor: float = 1.0
    ) -> FloatWeight | PackedWeight:
        spread = factor * columns**-0.5
        if bits == 16:
            return FloatWeight(self._normal((rows, columns), spread, generator))
        groups = (rows, columns // GROUP)
        scales = torch.empty(groups, dtype=torch.float16, device=self.device)
        scales.uniform_(0.5, 1.5, generator=generator).mul_(spread / _CODE_SPREAD[bits])
        middle = 1 << (bits - 1)
        # half of them either side of the middle: weights of a mean other than 0 feed on themselves
        zeros = torch.randint(middle - 1, middle + 1, groups, dtype=torch.uint8,
                              device=self.device, generator=generator)  # fmt: skip
        return PackedWeight(
            codes=self._codes(rows, columns, bits, generator),
            scales=scales,
            zeros=zeros,
            bits=bits,
            group_size=GROUP,
        )

    def _codes(self, rows: int, columns: int, bits: int, generator: torch.Generator) -> Tensor:
        how: dict[str, Any] = {"device": self.device, "generator": generator}
        if bits == 8:
            return torch.randint(0, 256, (rows, columns), dtype=torch.uint8, **how)
        size = (rows, columns // 8)
        return torch.randint(-(1 << 31), 1 << 31, size, dtype=torch.int32, **how)

    def _normal(self, size: tuple[int, ...], spread: float, generator: torch.Generator) -> Tensor:
        values = torch.empty(size, dtype=torch.float16, device=self.device)
        return values.normal_(0.0, spread, generator=generator)

    def _norm(self, width: int) -> Tensor:
        return torch.ones(width, dtype=torch.float16, device=self.device)
