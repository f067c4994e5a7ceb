"""A plain vision transformer as the detector's backbone: one map at stride 16, three made of it.

Li et al., *Exploring Plain Vision Transformer Backbones for Object Detection* (ViTDet, 2022), by
transformers' ``VitDetModel``: a transformer needs no hierarchy; a pyramid made from its last map
alone serves as well as a neck. The head, the loss and the decoder stay the convolutional
detector's, so a manifest names it ``yolox`` too.

Attention looks at windows of 10 x 10 tokens, and after every quarter of the layers a convolutional
residual block carries across their borders: the paper's way without any global layer, which lost it
nothing. Here it also decides what INT8 can reach. Attention's two products have no weights and
stay float: over 1,200 tokens they would be half of the multiply-accumulates, over 100 they are 7%.

Chosen over YOLOS, whose hundred queries learn from one matched box each and need hundreds of
epochs or a pre-trained backbone: a dense head learns from every cell, and converges from scratch
in the minutes that this recipe has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers import VitDetConfig, VitDetModel

from training.detector.blocks import ConvBlock

if TYPE_CHECKING:
    from training.detector.config import ModelConfig

PATCH_PX = 16
HEAD_WIDTH = 64
WINDOW = 10  # tokens; 480 x 640 px are 3 x 4 windows
QUARTERS = 4
# Of BGR values 0..255: the rendered world's, to a few levels.
_MEAN, _DEVIATION = 114.0, 58.0


class VitBackbone(nn.Module):
    """Images to features at strides 8, 16 and 32, by a transformer at stride 16."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, depth, act = config.vit_width, config.vit_depth, config.activation
        rows, columns = config.height // PATCH_PX, config.width // PATCH_PX
        self.vit = VitDetModel(
            VitDetConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=max(1, width // HEAD_WIDTH),
                mlp_ratio=4,
                image_size=(config.height, config.width),
                # Its positions are a square's, stretched to the image; so it wants a square.
                pretrain_image_size=max(rows, columns) * PATCH_PX,
                patch_size=PATCH_PX,
                window_size=min(WINDOW, rows),
                window_block_indices=list(range(depth)),
                residual_block_indices=sorted(
                    {depth * (quarter + 1) // QUARTERS - 1 for quarter in range(QUARTERS)} - {-1}
                ),
            )
        )
        w3, w4, w5 = config.widths[2:]
        # A deconvolution of stride 2, said so that every INT8 runtime has it.
        self.fine = nn.Sequential(ConvBlock(width, 4 * w3, 1, act), nn.PixelShuffle(2))
        self.middle = ConvBlock(width, w4, 1, act)
        self.coarse = ConvBlock(width, w5, 3, act, stride=2)

    @property
    def stem(self) -> nn.Module:
        """What turns pixels into tokens."""
        stem: nn.Module = self.vit.embeddings
        return stem

    @property
    def stages(self) -> nn.ModuleList:
        """The transformer's layers."""
        layers: nn.ModuleList = self.vit.encoder.layer
        return layers

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map BGR images (B, 3, H, W), 0..255, to the features of strides 8, 16 and 32."""
        image = self.vit(pixel_values=(x - _MEAN) / _DEVIATION).last_hidden_state
        return self.fine(image), self.middle(image), self.coarse(image)
