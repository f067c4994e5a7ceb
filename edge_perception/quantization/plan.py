"""What a quantisation run will do and how large its result will be, told before it starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from edge_perception.errors import QuantizationError
from edge_perception.quantization.encoding import ExportLayout
from edge_perception.quantization.grid import WeightFormat
from edge_perception.quantization.recipe import Activations, Recipe
from edge_perception.quantization.structure import Tower, find_towers, linear_names
from edge_perception.vlm.assembly import is_tied


@dataclass(frozen=True)
class Plan:
    """Formats by the model's layer names; None where a block's layer stays in float.

    ``layers`` are the blocks' linear layers, ``outer`` the head and the embedding if they are
    quantised. ``float_bytes`` is the model in its float type, ``bytes`` the written tensors.
    """

    towers: tuple[Tower, ...]
    layers: Mapping[str, WeightFormat | None]
    outer: Mapping[str, WeightFormat]
    ignored: tuple[str, ...]
    float_bytes: int
    bytes: int

    def differing(self, common: WeightFormat) -> dict[str, WeightFormat]:
        """Layers whose format is not the common one."""
        every = {**self.layers, **self.outer}
        return {name: form for name, form in every.items() if form not in (None, common)}  # type: ignore[misc]

    @property
    def kept_float(self) -> list[str]:
        """The blocks' layers that stay in float for their width."""
        return [name for name, form in self.layers.items() if form is None]


def make_plan(
    model: nn.Module,
    recipe: Recipe,
    layout: ExportLayout,
    *,
    vision: bool = False,
    head_bits: int | None = None,
    embedding_bits: int | None = None,
) -> Plan:
    """Decide every layer's format on a model (or its skeleton); raises for what does not fit."""
    every = find_towers(model)
    # Vision first: the language tower is then calibrated on what the quantised one sees.
    chosen = tuple(sorted((t for t in every if vision or not t.is_vision), key=_vision_first))
    layers = {
        f"{tower.path}.{index}.{name}": recipe.form_for(_columns(block, name))
        for tower in chosen
        for index, block in enumerate(tower.blocks)
        for name in linear_names(block)
    }
    outer = _outer_forms(model, recipe, head_bits, embedding_bits)
    formats = {name: form for name, form in {**layers, **outer}.items() if form is not None}
    sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    packed = {
        f"{name}.weight": encoded_bytes(model.get_submodule(name), form, layout)
        + (4 if recipe.activations is Activations.STATIC else 0)  # the inputs' scale
        for name, form in formats.items()
    }
    ignored = _ignored(model, formats, [t for t in every if t not in chosen], layout)
    total = sum({**sizes, **packed}.values())
    return Plan(chosen, layers, outer, ignored, sum(sizes.values()), total)


def _vision_first(tower: Tower) -> bool:
    return not tower.is_vision


def _columns(block: nn.Module, name: str) -> int:
    return int(block.get_submodule(name).get_parameter("weight").shape[1])


def _outer_forms(
    model: nn.Module, recipe: Recipe, head_bits: int | None, embedding_bits: int | None
) -> dict[str, WeightFormat]:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head_bits and is_tied(model):
        raise QuantizationError(
            "the head shares the embedding's weights",
            expected="--embedding-bits alone",
            got=f"--head-bits {head_bits}",
        )
    forms = {}
    for bits, module in ((embedding_bits, embedding), (head_bits, head)):
        if bits:
            name = next(name for name, found in model.named_modules() if found is module)
            form = recipe.form_for(int(module.weight.shape[1]))
            if form is not None:
                forms[name] = replace(form, bits=bits)
    return forms


def encoded_bytes(module: nn.Module, form: WeightFormat, layout: ExportLayout) -> int:
    """Bytes of a layer's weight in a layout, scales and zero points included."""
    rows, columns = module.get_parameter("weight").shape
    groups = columns // form.group_size_for(columns)
    if layout is ExportLayout.AWQ:
        return rows * columns // 2 + groups * rows // 2 + 2 * groups * rows
    if layout is ExportLayout.W8A8:
        return rows * columns + 2 * groups * rows
    shape_bytes = 2 * 8
    words = rows * -(-columns * form.bits // 32)
    zero_words = 0 if form.symmetric else groups * -(-rows * form.bits // 32)
    return 4 * (words + zero_words) + 2 * groups * rows + shape_bytes


def _ignored(
    model: nn.Module,
    formats: Mapping[str, WeightFormat],
    untouched: list[Tower],
    layout: ExportLayout,
) -> tuple[str, ...]:
    """Linear layers left in float: those of an untouched tower by its path, others by name."""
    prefixes = tuple(f"{tower.path}." for tower in untouched)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name not in formats
        and not name.startswith(prefixes or ("\0",))
    ]
    if layout is ExportLayout.AWQ:
        return (*(tower.path for tower in untouched), *names)
    return (*(f"re:{re.escape(tower.path)}.*" for tower in untouched), *names)


def float_type_name(dtype: torch.dtype) -> str:
    """The name that configurations use: "float16" of torch.float16."""
    return str(dtype).removeprefix("torch.")
