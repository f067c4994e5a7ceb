"""The language tower of a transformers model, taken out of it as ``DecoderWeights``.

Names of modules, not of stored tensors, say what is what: so every checkpoint layout and every
vision-language model that ``assembly`` loads comes through one path. What is taken leaves the
model: each layer is dropped when its matrices are stacked, so at most one layer exists twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_perception.core.language_model import LanguageModelShape, read_shape
from edge_perception.errors import CheckpointError
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.rounded_inputs import RoundedInputLinear
from edge_perception.vlm.weights import (
    DecoderWeights,
    FloatWeight,
    LayerWeights,
    in_dtype,
    stack,
    to_w8a8,
    weight_of,
)

_CHANGING_ROTATION = ("dynamic", "longrope")


def take_tower(model: nn.Module) -> DecoderWeights:
    """Move the decoder out of ``model``, which keeps its embedding and its vision tower.

    Raises:
        CheckpointError: an unknown family, or a rotary scaling that changes with the length.
    """
    settings = model.config.get_text_config().to_dict()  # type: ignore[operator,union-attr]
    shape = read_shape(settings)
    tower: nn.Module = model.get_decoder()  # type: ignore[operator]
    _expect_steady_rotation(settings)
    embedding_module = tower.get_submodule("embed_tokens")
    embedding = weight_of(embedding_module)
    blocks = tower.get_submodule("layers")
    dtype = tower.get_parameter("norm.weight").dtype
    assert isinstance(blocks, nn.ModuleList)
    rounds_inputs = any(_rounds_inputs(module) for module in blocks.modules())
    layers = []
    for index in range(len(blocks)):
        layers.append(_take_layer(blocks[index], shape, dtype))
        blocks[index] = nn.Identity()
    rotary = tower.get_submodule("rotary_emb")
    weights = DecoderWeights(
        shape=shape,
        dtype=dtype,
        embedding=embedding,
        layers=tuple(layers),
        final_norm=tower.get_parameter("norm.weight").detach(),
        head=_head_of(model, embedding),
        inverse_frequencies=rotary.get_buffer("inv_freq").to(torch.float32),
        rotary_scale=float(getattr(rotary, "attention_scaling", 1.0)),
        rotary_axes=rotary_axes(shape, settings.get("rope_parameters") or {}),
    )
    return to_w8a8(weights) if rounds_inputs else weights


def _rounds_inputs(module: nn.Module) -> bool:
    """Whether a layer's inputs are to be rounded by a scale a token (W8A8)."""
    return isinstance(module, RoundedInputLinear) and module.input_scale is None


def _take_layer(block: nn.Module, shape: LanguageModelShape, dtype: torch.dtype) -> LayerWeights:
    def linear(name: str) -> FloatWeight | PackedWeight:
        return in_dtype(weight_of(block.get_submodule(name)), dtype)

    def norm(name: str) -> Tensor:
        return block.get_parameter(f"{name}.weight").detach()

    return LayerWeights(
        attention_norm=norm("input_layernorm"),
        qkv=stack([linear(f"self_attn.{part}_proj") for part in ("q", "k", "v")]),
        output=linear("self_attn.o_proj"),
        mlp_norm=norm("post_attention_layernorm"),
        gate_up=stack([linear("mlp.gate_proj"), linear("mlp.up_proj")]),
        down=linear("mlp.down_proj"),
        query_norm=norm("self_attn.q_norm") if shape.qk_norm else None,
        key_norm=norm("self_attn.k_norm") if shape.qk_norm else None,
    )


def _head_of(model: nn.Module, embedding: FloatWeight | PackedWeight) -> FloatWeight | PackedWeight:
    module = model.get_output_embeddings()  # type: ignore[operator]
    if module is None:
        raise CheckpointError("the model has no head", expected="a causal language model")
    head = weight_of(module)
    return embedding if _is_same(head, embedding) else head


def _is_same(one: FloatWeight | PackedWeight, other: FloatWeight | PackedWeight) -> bool:
    """Whether two weights are one piece of memory."""
    if isinstance(one, FloatWeight) and isinstance(other, FloatWeight):
        return one.values.data_ptr() == other.values.data_ptr()
    if isinstance(one, PackedWeight) and isinstance(other, PackedWeight):
        return one.codes.data_ptr() == other.codes.data_ptr()
    return False


def _expect_steady_rotation(settings: dict[str, object]) -> None:
    rope = settings.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default") if isinstance(rope, dict) else None
    if kind in _CHANGING_ROTATION:
        raise CheckpointError(
            "rotary scaling that changes with the length: a static cache cannot hold such keys",
            expected="default, linear, llama3 or yarn",
            got=kind,
        )


def rotary_axes(shape: LanguageModelShape, rope: dict[str, object]) -> Tensor | None:
    """The position axis of each rotary frequency, int64 [head_dim / 2]; None for text models.

    Qwen2-VL lays the axes in blocks, Qwen3-VL in turns (time, height, width, time, ...) for as
    long as height and width have frequencies left (both: transformers' ``mrope_section``).
    """
    sections = rope.get("mrope_section")
    if not isinstance(sections, (list, tuple)):
        return None
    if len(sections) != 3 or sum(sections) != shape.head_dim // 2:
        raise CheckpointError(
            "mrope_section", expected=f"three sizes, {shape.head_dim // 2} in all", got=sections
        )
    if not shape.family.startswith("qwen3_vl"):
        return torch.repeat_interleave(torch.arange(3), torch.tensor(sections))
    axes = torch.zeros(shape.head_dim // 2, dtype=torch.int64)
    for axis in (1, 2):
        axes[axis : 3 * int(sections[axis]) : 3] = axis
    return axes
