"""Checkpoints of transformers' vision models: true architectures, a few thousand random weights.

Fresh models have heads of zeros, whose equal scores two runtimes may sort either way; so noise is
added to every weight.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

torch.set_num_threads(1)  # such small tensors gain nothing from a second, busy core

HEIGHT, WIDTH = 64, 96
LABELS = {0: "mug", 1: "box", 2: "cat"}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
FIXED_SIZE = {"size": {"height": HEIGHT, "width": WIDTH}}
SHORTEST_EDGE = {"size": {"shortest_edge": 64, "longest_edge": 96}}


def _resnet(features: list[str], kind: Any) -> Any:
    return kind(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=features,
    )


def _rt_detr() -> Any:
    backbone = _resnet(["stage2", "stage3", "stage4"], transformers.RTDetrResNetConfig)
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=[24, 32, 40],
        encoder_ffn_dim=64,
        encoder_attention_heads=2,
        d_model=32,
        num_queries=30,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        id2label=LABELS,
    )
    return transformers.RTDetrForObjectDetection(config)


def _detr() -> Any:
    config = transformers.DetrConfig(
        backbone_config=_resnet(["stage4"], transformers.ResNetConfig),
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=20,
        id2label=LABELS,
    )
    return transformers.DetrForObjectDetection(config)


def _vit_sizes() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_size": 16,
        "id2label": LABELS,
    }


def _yolos() -> Any:
    config = transformers.YolosConfig(
        image_size=[HEIGHT, WIDTH], num_detection_tokens=20, **_vit_sizes()
    )
    return transformers.YolosForObjectDetection(config)


def _vit() -> Any:
    config = transformers.ViTConfig(image_size=(HEIGHT, WIDTH), **_vit_sizes())
    return transformers.ViTForImageClassification(config)


# Model type, and what its preprocessor_config.json says beside the defaults.
MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "rt_detr": (_rt_detr, {**FIXED_SIZE, "do_normalize": False}),
    "detr": (_detr, {**SHORTEST_EDGE, **IMAGENET}),
    "yolos": (_yolos, {**SHORTEST_EDGE, **IMAGENET}),
    "vit": (_vit, {**FIXED_SIZE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}),
}


def write_checkpoint(folder: Path, kind: str, seed: int = 0) -> Any:
    """Write a folder as ``save_pretrained`` does, and return the model."""
    make, preprocessing = MODELS[kind]
    torch.manual_seed(seed)
    model = make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)
    told = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps({**told, **preprocessing}))
    return model
