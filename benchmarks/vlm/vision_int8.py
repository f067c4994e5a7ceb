"""A vision tower of SigLIP's and of Qwen2.5-VL's size in FP16 and in INT8, on a GPU.

    python -m benchmarks.vlm.vision_int8 --out docs/benchmarks/vision_int8_h100.json

Random weights: time does not depend on them, and how far the outputs lie apart is that of rounding
alone (trained towers have outliers; the embedded model's accuracy is measured with its own).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from benchmarks.frames.frame_source import provenance
from edge_perception.gpu.cuda import get_device
from edge_perception.vlm.int8_vision import to_int8_vision

WARM_UP, RUNS = 5, 40


@dataclass(frozen=True)
class Tower:
    """A tower, what runs it, and what of a picture it is given."""

    module: nn.Module
    run: Callable[[nn.Module], Tensor]


def siglip(layers: int = 27, image_px: int = 384) -> Tower:
    """SigLIP-SO400M: patches of 14 px, 27 layers of 1152."""
    config = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=layers, num_attention_heads=16,
        image_size=image_px, patch_size=14,
    )  # fmt: skip
    pixels = torch.randn(1, 3, image_px, image_px)
    return Tower(SiglipVisionModel(config), lambda tower: tower(_like(tower, pixels))[0])


def qwen(layers: int = 32, image_px: int = 448) -> Tower:
    """Qwen2.5-VL's: patches of 14 px, 32 layers of 1280, windows of 112 px."""
    config = Qwen2_5_VLConfig().vision_config
    config.depth = layers
    side = image_px // config.patch_size
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    pixels, grid = torch.randn(side * side, values), torch.tensor([[1, side, side]])
    return Tower(
        Qwen2_5_VisionTransformerPretrainedModel(config),
        lambda tower: tower(_like(tower, pixels), grid.to(_weight(tower).device))[0],
    )


TOWERS = {"siglip-so400m, 384 px": siglip, "qwen2.5-vl, 448 px": qwen}


@torch.inference_mode()
def measure(tower: Tower, device: str, runs: int = RUNS) -> dict[str, Any]:
    """Times in ms of both, eager, and how far apart they lie."""
    holder = nn.Module()
    holder.model = nn.Module()
    half = torch.float16 if device == "cuda" else torch.float32
    holder.model.visual = tower.module.eval().to(device, half)
    plain, plain_ms = tower.run(holder.model.visual), _median_ms(tower, holder, runs)
    turned = to_int8_vision(holder)
    rounded, rounded_ms = tower.run(holder.model.visual), _median_ms(tower, holder, runs)
    error = ((rounded.float() - plain.float()).norm() / plain.float().norm()).item()
    return {
        "fp16_ms": round(plain_ms, 4),
        "int8_ms": round(rounded_ms, 4),
        "speed_up": round(plain_ms / rounded_ms, 3),
        "layers_in_int8": turned,
        "relative_error": round(error, 5),
    }


def _median_ms(tower: Tower, holder: nn.Module, runs: int) -> float:
    """Device time of a run, the host's launches hidden behind it where they can be."""
    if not torch.cuda.is_available():
        return 1.0  # a rehearsal
    for _ in range(WARM_UP):
        tower.run(holder.model.visual)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    for mark in marks:
        mark.record()
        tower.run(holder.model.visual)
    torch.cuda.synchronize()
    times = sorted(one.elapsed_time(other) for one, other in pairwise(marks))
    return times[len(times) // 2]


def _weight(tower: nn.Module) -> Tensor:
    return next(tower.parameters())


def _like(tower: nn.Module, values: Tensor) -> Tensor:
    return values.to(_weight(tower))


def main() -> None:
    """Measure each tower, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default="")
    arguments = parser.parse_args()
    get_device().make_current()
    result: dict[str, Any] = {
        **provenance(arguments.commit),
        "what": "p50 of a picture through the tower, transformers' eager code, random weights",
        "towers": {},
    }
    for name, make in TOWERS.items():
        torch.manual_seed(0)
        result["towers"][name] = measure(make(), "cuda")
        print(name, result["towers"][name], flush=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
