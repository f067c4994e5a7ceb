"""Tiny models of the transformers classes, random weights, for tests."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    set_seed,
)

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


_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
_QWEN_VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
    "patch_size": 14,
}  # fmt: skip
_QWEN_TEXT: dict[str, Any] = {
    **TEXT_SHAPE, "bos_token_id": 1, "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
}  # fmt: skip
_QWEN_TOKENS = {"image_token_id": 5, "vision_start_token_id": 6, "vision_end_token_id": 7,
                "video_token_id": 8}  # fmt: skip
_LLAMA: dict[str, Any] = {"model_type": "llama", **TEXT_SHAPE}

VISION_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "LLaVA": ("llava", {
        "text_config": _LLAMA, "vision_config": {"model_type": "clip_vision_model", **_VISION},
        "image_token_id": 5,
    }),
    "Qwen2.5-VL": ("qwen2_5_vl", {
        "text_config": _QWEN_TEXT, "vision_config": {**_QWEN_VISION, "fullatt_block_indexes": [1]},
        **_QWEN_TOKENS,
    }),
    "Qwen3-VL": ("qwen3_vl", {
        "text_config": {**_QWEN_TEXT, "head_dim": 16},
        "vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0],
                          "num_position_embeddings": 16},
        **_QWEN_TOKENS,
    }),
    "SmolVLM": ("smolvlm", {
        "text_config": _LLAMA, "vision_config": _VISION, "image_token_id": 5, "scale_factor": 2,
    }),
    "Idefics3": ("idefics3", {
        "text_config": _LLAMA, "vision_config": _VISION, "image_token_id": 5, "scale_factor": 2,
    }),
    "InternVL": ("internvl", {
        "text_config": {**_LLAMA, "model_type": "qwen2"},
        "vision_config": {**_VISION, "image_size": [28, 28], "patch_size": [14, 14]},
        "image_token_id": 5,
    }),
    "Gemma 3": ("gemma3", {
        "text_config": {**TEXT_SHAPE, "head_dim": 16},
        "vision_config": {"model_type": "siglip_vision_model", **_VISION},
        "mm_tokens_per_image": 4, "image_token_index": 5,
    }),
}  # fmt: skip


def tiny_vision_model(family: str) -> nn.Module:
    """A random vision-language model of the family, float32."""
    kind, settings = VISION_FAMILIES[family]
    set_seed(0)
    model: nn.Module = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(kind, **deepcopy(settings))
    )
    return model.eval()


def tiny_image_call(family: str) -> dict[str, torch.Tensor]:
    """A forward call of LLaVA or SmolVLM with an image of 28 x 28 among the words."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    words = torch.randint(10, 128, (1, 24), generator=generator)
    words[0, 2 : 2 + {"LLaVA": 4, "SmolVLM": 1}[family]] = 5
    many = {"SmolVLM": pixels.unsqueeze(1)}  # it takes several images a sample
    return {"input_ids": words, "pixel_values": many.get(family, pixels)}
