"""Directories of tiny vision-language models, as their authors would publish them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from fake_vlm import byte_tokenizer
from tiny_language_models import VISION_FAMILIES
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, set_seed

SIDE_PX = 28
IMAGE, END = 257, 256
_SPECIAL = ["<image>", "<fake_token_around_image>", "<global-img>", "<img>", "</img>", "<vision>"]
_TOKENS = {
    "image_token_id": IMAGE, "vision_start_token_id": 262, "vision_end_token_id": 262,
    "video_token_id": 263,
}  # fmt: skip
_TEXT = {"vocab_size": 264, "eos_token_id": END, "bos_token_id": 10, "pad_token_id": END}
# Qwen's own template writes the tokens around the picture; the others leave that to the processor.
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}\n{% endfor %}assistant:"
)
_MEAN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_SIDES = {"height": SIDE_PX, "width": SIDE_PX}
PROCESSORS: dict[str, dict[str, Any]] = {
    "LLaVA": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE_PX},
        "crop_size": _SIDES,
    },
    "Qwen2.5-VL": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14},
    "Qwen3-VL": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14},
    "SmolVLM": {"image_processor_type": "SmolVLMImageProcessor"},
    "Idefics3": {"image_processor_type": "Idefics3ImageProcessor"},
    "InternVL": {"image_processor_type": "GotOcr2ImageProcessor", "size": _SIDES},
}  # fmt: skip


def write_vlm(folder: Path, family: str, seed: int = 0, **text: Any) -> nn.Module:
    """Write a checkpoint of random weights, and return transformers' model of it.

    ``text`` changes the language tower's configuration.
    """
    kind, settings = VISION_FAMILIES[family]
    settings = deepcopy(settings) | {name: _TOKENS[name] for name in _TOKENS}
    settings["text_config"] |= _TEXT | text
    _fit_head(settings, text.get("hidden_size"))
    set_seed(seed)
    config = AutoConfig.for_model(kind, **settings)
    model: nn.Module = AutoModelForImageTextToText.from_config(config).eval()
    for parameter in model.parameters():  # livelier logits: greedy must not be a matter of luck
        nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else None
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END}))
    (folder / "preprocessor_config.json").write_text(json.dumps({**_MEAN, **PROCESSORS[family]}))
    _write_tokenizer(folder)
    return model


def _fit_head(settings: dict[str, Any], hidden_size: int | None) -> None:
    """Let what depends on the language tower's width follow it: four heads of 64."""
    if hidden_size is None:
        return
    if "out_hidden_size" in settings["vision_config"]:
        settings["vision_config"]["out_hidden_size"] = hidden_size
        settings["text_config"]["rope_parameters"]["mrope_section"] = [8, 12, 12]
        settings["text_config"]["head_dim"] = hidden_size // 4


def _write_tokenizer(folder: Path) -> None:
    tokenizer = json.loads(byte_tokenizer())
    end = tokenizer["added_tokens"][0]
    for number, token in enumerate(_SPECIAL, start=IMAGE):
        tokenizer["added_tokens"].append({**end, "id": number, "content": token})
        tokenizer["model"]["vocab"][token] = number
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<end>",
        "chat_template": _TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
