r"""Checkpoints of true architectures with random weights, for checks of graphs and of speed.

    python -m benchmarks.families.architectures OUT_FOLDER [NAME ...]

No trained weights of RT-DETR, YOLOS or ViT can be had offline. What these find means nothing; their
shapes, operators and cost are those of the published models, so that whether a graph parses,
quantises and builds, and how long it runs, is what it would be.

A fresh network is no stand-in: transformers draws the weights of its normalisations near zero, the
signal fades on its way, and every query scores the same. Weights are drawn anew so that activations
keep their variance (He et al. 2015), and normalisations pass on what they get.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

CLASSES = {index: f"class {index}" for index in range(12)}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def rtdetr_r18() -> tuple[Any, dict[str, Any]]:
    """RT-DETR with ResNet-18 (Zhao et al. 2023, ``rtdetr_r18vd``): 20 M parameters, 640x640."""
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        downsample_in_first_stage=False,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=3,
        id2label=CLASSES,
    )
    size = {"size": {"height": 640, "width": 640}, "do_normalize": False}
    return transformers.RTDetrForObjectDetection(config), size


def yolos_tiny() -> tuple[Any, dict[str, Any]]:
    """YOLOS-Ti (Fang et al. 2021), DeiT-Ti with 100 detection tokens: 6 M parameters, 480x640."""
    config = transformers.YolosConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=[480, 640],
        num_detection_tokens=100,
        use_mid_position_embeddings=False,
        id2label=CLASSES,
    )
    size = {"size": {"height": 480, "width": 640}, **_IMAGENET}
    return transformers.YolosForObjectDetection(config), size


def vit_small() -> tuple[Any, dict[str, Any]]:
    """ViT-S/16 (Dosovitskiy et al. 2020, Touvron et al. 2021): 22 M parameters, 224x224."""
    config = transformers.ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        id2label=CLASSES,
    )
    size = {"size": {"height": 224, "width": 224}, **_HALF}
    return transformers.ViTForImageClassification(config), size


ARCHITECTURES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "rtdetr_r18": rtdetr_r18,
    "yolos_tiny": yolos_tiny,
    "vit_small": vit_small,
}


def write_checkpoint(name: str, folder: Path, seed: int = 0) -> None:
    """Write one as ``save_pretrained`` does."""
    torch.manual_seed(seed)
    model, preprocessing = ARCHITECTURES[name]()
    _keep_variance(model)
    model.eval().save_pretrained(folder)
    told = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, **preprocessing}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


def _keep_variance(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)


def main() -> None:
    """Run the command line named in the module's description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(ARCHITECTURES))
    options = parser.parse_args()
    for name in options.names:
        write_checkpoint(name, options.out / name)


if __name__ == "__main__":
    main()
