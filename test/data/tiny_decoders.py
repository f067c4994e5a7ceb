"""Tiny decoders for tests: of every family, float or packed, beside the model they came from."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from tiny_language_models import TEXT_FAMILIES, tiny_text_model
from torch import nn

from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.packed_linear import PackedEmbedding, PackedLinear, PackedWeight
from edge_perception.vlm.tower import take_tower

_ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}  # fmt: skip

DECODER_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in TEXT_FAMILIES if name != "Gemma 3"},
    **{
        f"Llama 3, {kind} rotary scaling": (
            "Llama 3, SmolLM2", {"rope_parameters": {"rope_theta": 500000.0, **values}},
        )
        for kind, values in _ROPE.items()
    },
    "Llama with biases": ("Llama 2, Vicuna", {"attention_bias": True, "mlp_bias": True}),
    "Qwen2 with a window above layer 1": ("Qwen2, Qwen2.5", {
        "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
    }),
}  # fmt: skip
"""Names of tests' rows: (family of ``tiny_language_models``, changes to it)."""


def tiny_model(row: str) -> nn.Module:
    """The transformers model of a row of ``DECODER_FAMILIES``, biases made to matter."""
    family, changes = DECODER_FAMILIES[row]
    model = tiny_text_model(family, **deepcopy(changes))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def tiny_decoder(row: str = "Llama 3, SmolLM2", **options: Any) -> Decoder:
    """A decoder of a row; capacity 64 unless told."""
    return Decoder(take_tower(tiny_model(row)), **({"capacity": 64} | options))


def round_to_grid(weight: torch.Tensor, bits: int, group: int = 32) -> PackedWeight:
    """A weight [N, K] rounded to the nearest of a min-max grid."""
    grouped = weight.detach().view(weight.shape[0], -1, group)
    low = grouped.amin(-1).clamp(max=0)
    scales = ((grouped.amax(-1).clamp(min=0) - low) / (2**bits - 1)).clamp(min=1e-4).half()
    zeros = (-low / scales.float()).round()
    codes = (grouped / scales.float().unsqueeze(-1)).round() + zeros.unsqueeze(-1)
    codes = codes.clamp(0, 2**bits - 1).to(torch.uint8).view(weight.shape)
    return PackedWeight.from_codes(codes, scales, zeros, bits=bits)


def pack_model(model: nn.Module, *, embedding_bits: int | None = None) -> nn.Module:
    """Put packed 4-bit layers in the place of all linear ones but the head."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, leaf = name.rpartition(".")
            packed = round_to_grid(module.weight, 4)
            layer = PackedLinear(packed)
            layer.bias = None if module.bias is None else module.bias.detach()
            setattr(model.get_submodule(parent), leaf, layer)
    if embedding_bits is not None:
        table = round_to_grid(model.get_input_embeddings().weight, embedding_bits)
        model.set_input_embeddings(PackedEmbedding(table, torch.float32))
        model.lm_head = PackedLinear(table)
    return model
