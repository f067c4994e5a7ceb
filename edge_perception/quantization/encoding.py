"""Quantised layers as the tensors and the configuration of a published layout.

Three layouts are written: AutoAWQ "gemm" (4 bits, one group size), compressed-tensors
"pack-quantized" (3, 4 or 8 bits; group sizes and widths may differ from layer to layer) and
compressed-tensors "int-quantized" (W8A8: 8 bits a channel, activations in 8 bits too).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from edge_perception.errors import QuantizationError
from edge_perception.quantization.block import QuantizedWeight
from edge_perception.quantization.grid import PER_CHANNEL, Grid, WeightFormat, fit_grid
from edge_perception.quantization.recipe import Activations, Recipe
from edge_perception.vlm.loaders.int_quantized import read_int_quantized, write_int_quantized
from edge_perception.vlm.loaders.layouts import (
    Codes,
    read_awq_gemm,
    read_compressed,
    write_awq_gemm,
    write_compressed,
)
from edge_perception.vlm.rounded_inputs import static_scale


class ExportLayout(str, Enum):
    """The layout of the written checkpoint."""

    AWQ = "awq"
    COMPRESSED_TENSORS = "compressed-tensors"
    W8A8 = "w8a8"


def check_expressible(recipe: Recipe, layout: ExportLayout, extra_bits: Sequence[int]) -> None:
    """Refuse what the layout cannot hold, before hours are spent on it."""
    rounds_inputs = recipe.activations is not Activations.FLOAT
    if rounds_inputs is not (layout is ExportLayout.W8A8):
        raise QuantizationError(
            f"layout {layout.value} does not hold what {recipe.method} makes",
            expected="w8a8 for methods that quantise activations, and for them alone",
            got=layout.value,
            mend=f"Use --layout {'w8a8' if rounds_inputs else 'awq or compressed-tensors'}.",
        )
    if rounds_inputs and extra_bits:
        raise QuantizationError(
            "the W8A8 layout holds linear layers of the blocks only",
            expected="head and embedding in float",
            got=tuple(extra_bits),
        )
    if layout is ExportLayout.AWQ and (recipe.form.bits != 4 or extra_bits):
        raise QuantizationError(
            "AutoAWQ's layout holds 4-bit linear layers of the blocks only",
            expected="4 bits, head and embedding in float",
            got=(recipe.form.bits, *extra_bits),
            mend="Use --layout compressed-tensors.",
        )


def encode_layer(
    weight: QuantizedWeight, layout: ExportLayout, *, static_inputs: bool = False
) -> dict[str, Tensor]:
    """The layer's tensors by suffix ("qweight", "weight_packed", ...); raises where none fit.

    ``static_inputs`` writes the range that W8A8 inputs had in calibration.
    """
    codes = Codes(
        weight.codes,
        weight.grid.scales.to(torch.float16),  # exact: grids hold fp16 values
        weight.grid.zeros.to(torch.uint8),
    )
    if layout is ExportLayout.AWQ:
        return {name: value.contiguous() for name, value in write_awq_gemm(codes).items()}
    if layout is ExportLayout.W8A8:
        scale = {"input_scale": static_scale(weight.input_abs_max)} if static_inputs else {}
        return write_int_quantized(codes) | scale
    return write_compressed(codes, bits=weight.form.bits, symmetric=weight.form.symmetric)


def decode_layer(tensors: Mapping[str, Tensor], layout: ExportLayout, bits: int) -> Tensor:
    """The float32 weight [N, K] that ``encode_layer``'s tensors stand for."""
    if layout is ExportLayout.AWQ:
        codes = read_awq_gemm(tensors["qweight"], tensors["qzeros"], tensors["scales"])
    elif layout is ExportLayout.W8A8:
        codes = read_int_quantized(tensors["weight"], tensors["weight_scale"])
    else:
        codes = read_compressed(
            tensors["weight_packed"],
            tensors["weight_scale"],
            tensors.get("weight_zero_point"),
            tensors["weight_shape"],
            bits=bits,
        )
    grid = Grid(codes.scales.float(), codes.zeros.float(), 2**bits - 1)
    return grid.dequantize(codes.codes)


def marker_of(layout: ExportLayout) -> str:
    """The suffix by which a quantised layer is known."""
    return {
        ExportLayout.AWQ: "qweight",
        ExportLayout.COMPRESSED_TENSORS: "weight_packed",
        ExportLayout.W8A8: "weight_scale",
    }[layout]


def round_alone(weight: Tensor, form: WeightFormat) -> QuantizedWeight:
    """A weight rounded to nearest: heads and embeddings, whose inputs are not looked at."""
    grid = fit_grid(weight.float(), form)
    return QuantizedWeight(grid.round(weight.float()), grid, form)


def quantization_config(
    layout: ExportLayout,
    form: WeightFormat,
    others: Mapping[str, WeightFormat],
    ignored: Sequence[str],
    activations: Activations = Activations.FLOAT,
) -> dict[str, Any]:
    """The ``quantization_config`` of ``config.json``.

    ``others`` are the layers whose format differs from ``form``; ``ignored`` the linear layers
    (or the modules that hold them) that stay in float.
    """
    if layout is ExportLayout.AWQ:
        if others:
            raise QuantizationError(
                "AutoAWQ's layout holds one group size for all layers",
                expected=str(form),
                got=dict(others),
                mend="Use --layout compressed-tensors, or --odd-width keep-float.",
            )
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": form.bits,
            "group_size": form.group_size,
            "zero_point": True,  # written for symmetric weights too: all are 8
            "modules_to_not_convert": list(ignored),
        }
    by_form: dict[WeightFormat, list[str]] = {form: ["Linear"]}
    for name, other in others.items():
        by_form.setdefault(other, []).append(name)
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if layout is ExportLayout.W8A8 else "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": list(ignored),
        "config_groups": {
            f"group_{index}": _config_group(targets, each, activations)
            for index, (each, targets) in enumerate(by_form.items())
        },
    }


def _config_group(
    targets: list[str], form: WeightFormat, activations: Activations
) -> dict[str, Any]:
    per_channel = form.group_size == PER_CHANNEL
    return {
        "targets": targets,
        "weights": {
            "num_bits": form.bits,
            "type": "int",
            "symmetric": form.symmetric,
            "strategy": "channel" if per_channel else "group",
            "group_size": None if per_channel else form.group_size,
            "dynamic": False,
            "actorder": None,
        },
        "input_activations": _input_settings(activations),
        "output_activations": None,
    }


def _input_settings(activations: Activations) -> dict[str, Any] | None:
    if activations is Activations.FLOAT:
        return None
    dynamic = activations is Activations.DYNAMIC
    return {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "token" if dynamic else "tensor",
        "dynamic": dynamic,
    }
