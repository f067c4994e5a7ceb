"""Where a transformers model keeps its linear layers, and what feeds each of them.

The families here share their layers' names, so one table says which layers share an input and
which layer before them can take a scale in: a norm, or a linear layer whose output reaches them by
an element-wise product alone (v_proj through attention's weighted mean, up_proj through the
gate's product). A linear layer that no row names is a group of its own that nothing is folded
into: it is quantised all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_perception.errors import QuantizationError


@dataclass(frozen=True)
class Tower:
    """A stack of blocks inside a model: the language tower or a vision tower."""

    path: str
    blocks: nn.ModuleList
    is_vision: bool


@dataclass(frozen=True)
class LinearGroup:
    """Linear layers of one block that see the same input.

    ``layers`` are names within the block; ``source`` is the layer before, or None. ``head_dim``
    and ``repeats`` describe how a v_proj's channels are repeated among query heads.
    """

    layers: tuple[str, ...]
    source: str | None = None
    head_dim: int = 0
    repeats: int = 1

    def tie(self, vector: Tensor) -> Tensor:
        """Average a vector [K] over the query heads that share a key-value head."""
        if self.repeats == 1:
            return vector
        heads = vector.view(-1, self.repeats, self.head_dim)
        return heads.mean(dim=1, keepdim=True).expand_as(heads).reshape(-1)

    def source_scales(self, scales: Tensor) -> Tensor:
        """The scales [K] as the source's output channels have them."""
        if self.repeats == 1:
            return scales
        return scales.view(-1, self.repeats, self.head_dim)[:, 0].reshape(-1)


# (source candidates, layers): the first source present is taken.
_GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("input_layernorm",), ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    (("self_attn.v_proj",), ("self_attn.o_proj",)),
    (
        ("pre_feedforward_layernorm", "post_attention_layernorm"),
        ("mlp.gate_proj", "mlp.up_proj"),
    ),
    (("mlp.up_proj",), ("mlp.down_proj",)),
    # Vision towers: CLIP and SigLIP, Qwen-VL, InternVL. GELU stands before their second layer.
    (("layer_norm1",), ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    (("self_attn.v_proj",), ("self_attn.out_proj",)),
    (("layer_norm2",), ("mlp.fc1",)),
    (("norm1",), ("attn.qkv",)),
    (("norm2",), ("mlp.gate_proj", "mlp.up_proj")),
    (("norm2",), ("mlp.linear_fc1",)),
    (("layernorm_before",), ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
    (("layernorm_after",), ("mlp.fc1",)),
)
_VISION_WORDS = ("vision", "visual", "image")


def find_towers(model: nn.Module) -> list[Tower]:
    """Every stack of like blocks that holds linear layers, language towers first.

    Raises ``QuantizationError`` where there is none.
    """
    towers = [
        Tower(path, module, any(word in path for word in _VISION_WORDS))
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _is_stack(module)
    ]
    outermost = [
        tower
        for tower in towers
        if not any(tower.path.startswith(f"{other.path}.") for other in towers)
    ]
    if not outermost:
        raise QuantizationError(
            "no stack of transformer blocks found", expected="a transformers model"
        )
    return sorted(outermost, key=lambda tower: tower.is_vision)


def _is_stack(blocks: nn.ModuleList) -> bool:
    children = [{name for name, _ in block.named_children()} for block in blocks]
    alike = len({type(block) for block in blocks}) == 1
    return alike and all(any(part in name for name in children[0]) for part in ("norm", "att"))


def linear_names(block: nn.Module) -> list[str]:
    """Names of the block's linear layers, in definition order."""
    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def linear_groups(block: nn.Module) -> list[LinearGroup]:
    """The block's linear layers by shared input, in the order in which they run."""
    present = dict(block.named_modules())
    groups: list[LinearGroup] = []
    for sources, layers in _GROUPS:
        source = next((name for name in sources if name in present), None)
        if source is not None and all(name in present for name in layers):
            groups.append(_with_heads(block, LinearGroup(layers, source)))
    covered = {name for group in groups for name in group.layers}
    loose = [LinearGroup((name,)) for name in linear_names(block) if name not in covered]
    position = {name: index for index, name in enumerate(linear_names(block))}
    return sorted(groups + loose, key=lambda group: position[group.layers[0]])


def _with_heads(block: nn.Module, group: LinearGroup) -> LinearGroup:
    """Say how v_proj's channels repeat; a layout that does not repeat evenly is not folded."""
    if group.source is None or not group.source.endswith("v_proj"):
        return group
    wide = int(block.get_submodule(group.layers[0]).in_features)  # type: ignore[arg-type]
    narrow = int(block.get_submodule(group.source).out_features)  # type: ignore[arg-type]
    head_dim = getattr(block.get_submodule(group.source.split(".")[0]), "head_dim", None)
    if wide == narrow:
        return group
    if not isinstance(head_dim, int) or wide % narrow or narrow % head_dim:
        return LinearGroup(group.layers)
    return LinearGroup(group.layers, group.source, head_dim, wide // narrow)


@torch.no_grad()
def fold_scales(block: nn.Module, group: LinearGroup, scales: Tensor) -> None:
    """Multiply the group's weights by ``scales`` [K] and divide the source's output by them.

    The block computes the same function as before, rounding aside.
    """
    if group.source is None:
        raise QuantizationError("no layer before to fold scales into", got=group.layers)
    for name in group.layers:
        weight = block.get_submodule(name).weight
        weight.copy_(weight * scales.to(weight.dtype))  # type: ignore[operator,union-attr]
    _divide_output(block.get_submodule(group.source), group.source_scales(scales))


def _divide_output(source: nn.Module, scales: Tensor) -> None:
    weight = source.get_parameter("weight")
    divisor = scales.to(torch.float32)
    if isinstance(source, nn.Linear):
        weight.copy_(weight.to(torch.float32) / divisor.unsqueeze(1))
    elif type(source).__name__.startswith("Gemma"):  # Gemma's norms multiply by 1 + weight
        weight.copy_((weight.to(torch.float32) + 1.0) / divisor - 1.0)
    else:
        weight.copy_(weight.to(torch.float32) / divisor)
    bias = getattr(source, "bias", None)
    if isinstance(bias, nn.Parameter):
        bias.copy_(bias.to(torch.float32) / divisor)
