"""A vision tower whose linear layers multiply whole numbers (W8A8), made when a model is opened.

A vision tower is a prompt without a decode step: hundreds of rows at once, bound by arithmetic, so
that 8-bit products can gain what 8-bit weights alone do not. Weights get one scale an output
channel, inputs one a row when they arrive (``int8_linear``): nothing is calibrated, and any
checkpoint will do. Left out: SmoothQuant's shift of outliers into the weights, which wants
calibration pictures and a norm before each layer; attention's own products, norms and the projector
stay as they are. The library's product wants widths of whole sixteens: others (Qwen2.5-VL's 3420)
are filled up by zeros.

The price: each layer is four launches from Python instead of one, and on a fast GPU that outweighs
the products (``docs/benchmarks/vision_int8_h100.json``: 2.9 times slower than FP16 on an H100).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_perception.errors import CheckpointError
from edge_perception.vlm.int8_linear import Int8Weight, quantise_rows
from edge_perception.vlm.packed_linear import PackedLinear
from edge_perception.vlm.rounded_inputs import HIGHEST

TOWERS = ("vision_tower", "vision_model", "visual")
"""What transformers' classes call their vision tower."""

_WIDTHS = 16  # the library's product of whole numbers wants multiples of it
Product = Callable[[Tensor, Int8Weight], Tensor]
"""``inputs W^T + bias`` [T, N] of inputs [T, K], their rows rounded to 8 bits."""


class Int8Linear(nn.Module):
    """``y = x W^T + bias`` by whole numbers, in place of a linear layer."""

    def __init__(self, weight: Int8Weight, product: Product) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self.weight = _filled_up(weight)
        self._product = product

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer to float ``inputs`` [..., K]."""
        rows = inputs.reshape(-1, self.in_features)
        rows = functional.pad(rows, (0, self.weight.in_features - self.in_features)).contiguous()
        result = self._product(rows, self.weight)[:, : self.out_features]
        return result.reshape(*inputs.shape[:-1], self.out_features)


def to_int8_vision(model: nn.Module) -> int:
    """Turn a transformers model's vision tower; returns how many layers were turned.

    Raises ``CheckpointError`` where there is no tower, or no linear layer in it.
    """
    tower = _tower(model)
    product = product_on(next(tower.parameters()).device)
    layers = [
        (parent, name, layer)
        for parent in tower.modules()
        for name, layer in parent.named_children()
        # A subclass of Linear (in torch's own attention) is there for its weight to be read.
        if type(layer) is nn.Linear or isinstance(layer, PackedLinear)
    ]
    for parent, name, layer in layers:
        setattr(parent, name, Int8Linear(round_weight(layer), product))
    if not layers:
        raise CheckpointError("the vision tower has no linear layer to turn to 8 bits")
    return len(layers)


def round_weight(layer: nn.Linear | PackedLinear) -> Int8Weight:
    """A layer's weight in 8 bits, one scale a channel: its largest magnitude / 127."""
    weight = layer.packed.dequantize() if isinstance(layer, PackedLinear) else layer.weight.data
    scales = quantise_rows(weight)[1].to(torch.float16)
    codes = torch.round(weight.float() / scales.float()).clamp(-HIGHEST, HIGHEST)
    return Int8Weight(codes.to(torch.int8), scales, layer.bias)


def _filled_up(weight: Int8Weight) -> Int8Weight:
    """The same matrix with zeros below and beside it, up to widths that the product takes."""
    below, beside = (-width % _WIDTHS for width in (weight.out_features, weight.in_features))
    bias = None if weight.bias is None else functional.pad(weight.bias, (0, below))
    codes = functional.pad(weight.codes, (0, beside, 0, below))
    return Int8Weight(codes, functional.pad(weight.scales, (0, 0, 0, below)), bias)


def product_on(device: torch.device) -> Product:
    """The kernels around the library's product on a GPU, torch's own operations elsewhere."""
    if device.type != "cuda":
        return _product_by_torch
    from edge_perception.vlm.kernel_launcher import GpuLauncher
    from edge_perception.vlm.kernel_prefill import Prefill

    prefill = Prefill(GpuLauncher(device.index or 0), device, processors=1, fused_rows=0)
    return lambda inputs, weight: prefill.multiply_int8(inputs, weight, None, 0.0, None, False)


def _product_by_torch(inputs: Tensor, weight: Int8Weight) -> Tensor:
    codes, row_scales = quantise_rows(inputs)
    sums = torch._int_mm(codes, weight.codes.T)
    result = sums * row_scales * weight.scales.T.float()
    if weight.bias is not None:
        result += weight.bias
    return result.to(inputs.dtype)


def _tower(model: nn.Module) -> nn.Module:
    inner = model.get_submodule("model")
    for name in TOWERS:
        found = getattr(inner, name, None)
        if isinstance(found, nn.Module):
            return found
    raise CheckpointError("the model has no vision tower", expected=" or ".join(TOWERS))
