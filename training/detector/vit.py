"""A plain vision transformer as the detector's backbone: one map at stride 16, three made of it.

Li et al., *Exploring Plain Vision Transformer Backbones for Object Detection* (ViTDet, 2022): a
transformer needs no hierarchy; a pyramid made from its last map alone, by a deconvolution for the
fine level and a strided convolution for the coarse one, serves as well as a neck. The head, the
loss and the decoder stay the convolutional detector's, so a manifest names it ``yolox`` too.

Chosen over YOLOS, whose hundred queries learn from one matched box each and need hundreds of
epochs or a pre-trained backbone: a dense head learns from every cell, and converges from scratch
in the minutes that this recipe has. Attention stays global at 1,200 tokens; windows would save
time only at larger inputs. The price: half of the multiply-accumulates lie in attention's two
products, which have no weights to quantise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from training.detector.model import ConvBlock

if TYPE_CHECKING:
    from training.detector.model import ModelConfig

PATCH_PX = 16
HEAD_WIDTH = 64
# Of BGR values 0..255: the rendered world's, to a few levels.
_MEAN, _DEVIATION = 114.0, 58.0


class VitBackbone(nn.Module):
    """Images to features at strides 8, 16 and 32, by a transformer at stride 16."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, act = config.vit_width, config.activation
        self.vit = ViTModel(
            ViTConfig(
                hidden_size=width,
                num_hidden_layers=config.vit_depth,
                num_attention_heads=max(1, width // HEAD_WIDTH),
                intermediate_size=4 * width,
                image_size=(config.height, config.width),
                patch_size=PATCH_PX,
            ),
            add_pooling_layer=False,
        )
        w3, w4, w5 = config.widths[2:]
        self.fine = nn.ConvTranspose2d(width, w3, 2, stride=2)
        self.middle = ConvBlock(width, w4, 1, act)
        self.coarse = ConvBlock(width, w5, 3, act, stride=2)
        self._grid = (config.height // PATCH_PX, config.width // PATCH_PX)

    @property
    def stem(self) -> nn.Module:
        """What turns pixels into tokens."""
        stem: nn.Module = self.vit.embeddings
        return stem

    @property
    def stages(self) -> nn.ModuleList:
        """The transformer's layers."""
        return next(m for m in self.vit.modules() if isinstance(m, nn.ModuleList))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map BGR images (B, 3, H, W), 0..255, to the features of strides 8, 16 and 32."""
        tokens = self.vit(pixel_values=(x - _MEAN) / _DEVIATION).last_hidden_state[:, 1:]
        image = tokens.transpose(1, 2).unflatten(2, self._grid)
        return self.fine(image), self.middle(image), self.coarse(image)
