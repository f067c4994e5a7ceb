"""A nano detector of the YOLOX family: CSP backbone, path-aggregation neck, decoupled head.

The architecture is that of Ge et al., *YOLOX: Exceeding YOLO Series in 2021* (arXiv 2107.08430,
Apache-2.0), written anew and changed where a small robot computer gains from it:

* a plain strided convolution replaces the Focus stem, which exports to eight Slice nodes;
* regular convolutions replace YOLOX-Nano's depthwise ones, which are bound by memory on GPUs
  and lose most in INT8;
* the class tower has one convolution where the box tower has two: few classes are easy to tell
  apart, while the last points of mAP50-95 are localisation.

The price is that COCO weights of YOLOX do not load here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.detector.blocks import ConvBlock
from training.detector.config import STRIDES, ModelConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

_PRIOR = 0.01


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution, with a shortcut in the backbone."""

    def __init__(self, width: int, shortcut: bool, act: str) -> None:
        super().__init__()
        self.reduce = ConvBlock(width, width, 1, act)
        self.conv = ConvBlock(width, width, 3, act)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, width, H, W)."""
        y: Tensor = self.conv(self.reduce(x))
        return x + y if self.shortcut else y


class CspStage(nn.Module):
    """Cross-stage partial block: half the channels pass through bottlenecks."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool, act: str) -> None:
        super().__init__()
        half = outputs // 2
        self.main = ConvBlock(inputs, half, 1, act)
        self.bypass = ConvBlock(inputs, half, 1, act)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut, act) for _ in range(depth)))
        self.merge = ConvBlock(2 * half, outputs, 1, act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W)."""
        both = torch.cat((self.blocks(self.main(x)), self.bypass(x)), dim=1)
        result: Tensor = self.merge(both)
        return result


class SpatialPyramid(nn.Module):
    """Three chained 5x5 max-pools: the receptive fields 5, 9 and 13 at the cost of 5."""

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        half = width // 2
        self.reduce = ConvBlock(width, half, 1, act)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.merge = ConvBlock(4 * half, width, 1, act)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, width, H, W)."""
        levels = [self.reduce(x)]
        for _ in range(3):
            levels.append(self.pool(levels[-1]))
        result: Tensor = self.merge(torch.cat(levels, dim=1))
        return result


class Backbone(nn.Module):
    """Images to features at strides 8, 16 and 32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        act, widths = config.activation, config.widths
        self.stem = ConvBlock(3, widths[0], 3, act, stride=2)
        self.stages = nn.ModuleList()
        for i, depth in enumerate(config.depths):
            inputs, outputs, last = widths[i], widths[i + 1], i + 2 == len(widths)
            pyramid: nn.Module = SpatialPyramid(outputs, act) if last else nn.Identity()
            self.stages.append(
                nn.Sequential(
                    ConvBlock(inputs, outputs, 3, act, stride=2),
                    pyramid,
                    CspStage(outputs, outputs, depth, not last, act),
                )
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 3, H, W) to the features of strides 8, 16 and 32."""
        x = self.stages[0](self.stem(x))
        p3 = self.stages[1](x)
        p4 = self.stages[2](p3)
        return p3, p4, self.stages[3](p4)


class Neck(nn.Module):
    """Path aggregation: coarse features flow up to the fine levels, fine ones back down."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        act, depth = config.activation, config.neck_depth
        w3, w4, w5 = config.widths[2:]
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral5 = ConvBlock(w5, w4, 1, act)
        self.merge4 = CspStage(2 * w4, w4, depth, False, act)
        self.lateral4 = ConvBlock(w4, w3, 1, act)
        self.merge3 = CspStage(2 * w3, w3, depth, False, act)
        self.down3 = ConvBlock(w3, w3, 3, act, stride=2)
        self.out4 = CspStage(2 * w3, w4, depth, False, act)
        self.down4 = ConvBlock(w4, w4, 3, act, stride=2)
        self.out5 = CspStage(2 * w4, w5, depth, False, act)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix three levels; the shapes stay as they came."""
        top = self.lateral5(p5)
        middle = self.lateral4(self.merge4(torch.cat((self.up(top), p4), dim=1)))
        n3 = self.merge3(torch.cat((self.up(middle), p3), dim=1))
        n4 = self.out4(torch.cat((self.down3(n3), middle), dim=1))
        n5 = self.out5(torch.cat((self.down4(n4), top), dim=1))
        return n3, n4, n5


class LevelHead(nn.Module):
    """One level's decoupled head: a class tower, and a tower for box and objectness."""

    def __init__(self, inputs: int, config: ModelConfig) -> None:
        super().__init__()
        act, width = config.activation, config.head_width
        self.stem = ConvBlock(inputs, width, 1, act)
        self.class_tower = ConvBlock(width, width, 3, act)
        self.box_tower = nn.Sequential(
            ConvBlock(width, width, 3, act), ConvBlock(width, width, 3, act)
        )
        self.classes = nn.Conv2d(width, len(config.class_names), 1)
        self.box = nn.Conv2d(width, 4, 1)
        self.objectness = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to float32 logits (B, 5 + classes, H, W)."""
        x = self.stem(x)
        classes, box = self.class_tower(x), self.box_tower(x)
        # bfloat16 would quantise an offset of three cells to half a pixel at stride 32.
        with torch.autocast(x.device.type, enabled=False):
            box, classes = box.float(), classes.float()
            return torch.cat((self.box(box), self.objectness(box), self.classes(classes)), dim=1)


class NanoDetector(nn.Module):
    """Images to the raw YOLOX grid."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.neck = _backbone_and_neck(config)
        self.heads = nn.ModuleList(LevelHead(width, config) for width in config.widths[2:])
        self._set_prior()

    def _set_prior(self) -> None:
        """Start objectness and classes at 1%, lest the many empty cells swamp the loss."""
        for head in self.heads:
            for conv in (head.objectness, head.classes):
                nn.init.constant_(conv.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, images: Tensor) -> Tensor:
        """Map BGR images (B, 3, H, W), 0..255, to float32 logits (B, cells, 5 + classes).

        Columns: x and y offset from the cell's corner and log width and height, all in units
        of the level's stride, then objectness and class logits. Cells are row by row, the
        levels in the order of :data:`STRIDES`.
        """
        features = self.backbone(images)
        if self.neck is not None:
            features = self.neck(*features)
        levels = [head(f).flatten(2) for head, f in zip(self.heads, features, strict=True)]
        return torch.cat(levels, dim=2).transpose(1, 2)


def _backbone_and_neck(config: ModelConfig) -> tuple[nn.Module, nn.Module | None]:
    """The convolutional ones, or a transformer, which needs no neck."""
    if not config.vit_width:
        return Backbone(config), Neck(config)
    from training.detector.vit import VitBackbone  # transformers, for this alone

    return VitBackbone(config), None


def fuse_batch_norm(model: NanoDetector) -> NanoDetector:
    """Fold every normalisation into its convolution, in place; the model must be in eval mode."""
    for block in model.modules():
        if isinstance(block, ConvBlock) and isinstance(block.norm, nn.BatchNorm2d):
            block.conv = nn.utils.fuse_conv_bn_eval(block.conv, block.norm)
            block.norm = nn.Identity()
    return model


def grid_cells(height: int, width: int, strides: Sequence[int] = STRIDES) -> Tensor:
    """Corner and stride of every cell in pixels, float32 (cells, 3): x, y, stride."""
    levels = []
    for stride in strides:
        y, x = torch.meshgrid(
            torch.arange(height // stride), torch.arange(width // stride), indexing="ij"
        )
        columns = (x * stride, y * stride, torch.full_like(x, stride))
        levels.append(torch.stack(columns, dim=-1).reshape(-1, 3))
    return torch.cat(levels).float()
