"""Tiny models of the transformers classes, random weights, for tests."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

TEXT_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}

TEXT_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2, Vicuna": ("llama", {"num_key_value_heads": 4, "head_dim": 16}),
    "Llama 3, SmolLM2": ("llama", {"tie_word_embeddings": True}),
    "Mistral": ("mistral", {"sliding_window": 16}),
    "Qwen2, Qwen2.5": ("qwen2", {}),
    "Qwen3": ("qwen3", {"head_dim": 16}),
    "Gemma 3": ("gemma3_text", {"head_dim": 32, "sliding_window": 8, "layer_types": [
        "sliding_attention", "full_attention"]}),
}  # fmt: skip


def tiny_text_model(family: str, **changes: Any) -> nn.Module:
    """A random model of the family, float32."""
    kind, settings = TEXT_FAMILIES[family]
    set_seed(0)
    config = AutoConfig.for_model(kind, **(TEXT_SHAPE | settings | changes))
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # fresh norms are all alike: folding would not be put to the test
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()
