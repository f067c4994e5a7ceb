"""The embedded model: transformers' Idefics3 class in a small size, and what helps it learn.

A SigLIP tower looks at a square of 20 x 20 patches; 2 x 2 of them become one token (pixel
shuffle) of a Llama. During training every patch also tells, by linear heads that are dropped
afterwards, which class and colour each of its quarters shows, how far away it is and where the
object's middle lies. Answers of one or two tokens say little about 400 patches; this says much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from edge_perception.world.spec import CLASS_NAMES
from training.vlm.prepare import COLOUR_NAMES
from training.vlm.tokens import BOS_ID, END_ID, IMAGE_ID, PAD_ID, prefix_ids

QUARTERS = 2
"""Dense targets a patch, along each side."""


@dataclass(frozen=True)
class ModelSize:
    """What the weights and the latency follow from; widths are multiples of 64, AWQ's group."""

    image_px: int = 320
    patch_px: int = 16
    vision_width: int = 320
    vision_layers: int = 12
    pooling: int = 2
    text_width: int = 384
    text_layers: int = 6
    text_hidden: int = 1024
    kv_heads: int = 2
    head_dim: int = 64

    def image_tokens(self, side_px: int) -> int:
        """Tokens that the language tower sees of a picture of ``side_px``."""
        return (side_px // self.patch_px // self.pooling) ** 2


def smaller_sides(size: ModelSize) -> tuple[int, ...]:
    """Resolutions that a model learns beside its own, for answers that must come sooner."""
    step = size.patch_px * size.pooling
    return tuple(size.image_px * part // (5 * step) * step for part in (3, 4))


def model_config(size: ModelSize, vocabulary: int) -> Idefics3Config:
    """The configuration of transformers' class; the head shares the embedding's weight."""
    vision: dict[str, Any] = {
        "hidden_size": size.vision_width,
        "intermediate_size": 4 * size.vision_width,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.vision_width // size.head_dim,
        "image_size": size.image_px,
        "patch_size": size.patch_px,
    }
    text: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": size.text_width,
        "intermediate_size": size.text_hidden,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": size.text_width // size.head_dim,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": END_ID,
    }
    config = Idefics3Config(
        vision_config=vision,
        text_config=text,
        scale_factor=size.pooling,
        image_token_id=IMAGE_ID,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
    )
    config.bos_token_id, config.eos_token_id = BOS_ID, END_ID
    return config


@dataclass(frozen=True)
class DenseOutput:
    """What patches tell, over a grid G of quarters: logits (B, G, G, ...) and values."""

    classes: Tensor
    colours: Tensor
    middle: Tensor
    log_distance: Tensor


class Learner(nn.Module):
    """The model with its dense heads, run on many turns about each picture at once."""

    def __init__(self, size: ModelSize, vocabulary: int) -> None:
        super().__init__()
        self.size = size
        self.vlm = Idefics3ForConditionalGeneration(model_config(size, vocabulary))
        self._parts = (len(CLASS_NAMES) + 1, len(COLOUR_NAMES), 2, 1)
        self.dense = nn.Linear(size.vision_width, sum(self._parts) * QUARTERS**2)

    def see(self, pixels: Tensor) -> Tensor:
        """Patches (B, N, width) of pictures (B, 3, side, side), -1..1."""
        return patch_features(self.vlm, pixels)

    def dense_output(self, patches: Tensor) -> DenseOutput:
        """The heads' values on the grid of quarters."""
        grid, parts = math.isqrt(patches.shape[1]), sum(self._parts)
        values = self.dense(patches).view(-1, grid, grid, QUARTERS, QUARTERS, parts)
        side = grid * QUARTERS
        values = values.permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, parts)
        return DenseOutput(*values.float().split(self._parts, dim=-1))

    def read(self, patches: Tensor, turns: Tensor, layout: TurnLayout) -> Tensor:
        """Hidden states (B, T, width) of turns (B, T), each behind the picture alone."""
        return read_turns(self.vlm, patches, turns, layout)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head's logits, float32."""
        values: Tensor = self.vlm.lm_head(hidden)
        return values.float()


def patch_features(vlm: nn.Module, pixels: Tensor) -> Tensor:
    """The vision tower's patches, without the search for padding of transformers' forward."""
    vision: Any = vlm.model.vision_model
    side = pixels.shape[-1] // vision.patch_size
    whole = torch.ones(len(pixels), side, side, dtype=torch.bool, device=pixels.device)
    hidden = vision.embeddings(pixel_values=pixels, patch_attention_mask=whole)
    for layer in vision.encoder.layers:
        hidden = layer(hidden, attention_mask=None)
    patches: Tensor = vision.post_layernorm(hidden)
    return patches


def read_turns(vlm: Any, patches: Tensor, turns: Tensor, layout: TurnLayout) -> Tensor:
    """The language tower's hidden states (B, T, width) of turns (B, T) behind a picture."""
    embed = vlm.get_input_embeddings()
    before = embed(layout.prefix).expand(len(turns), -1, -1)
    picture = vlm.model.connector(patches).to(before.dtype)
    first = len(layout.prefix) - picture.shape[1] - 1
    parts = (before[:, :first], picture, before[:, -1:], embed(turns))
    states = vlm.model.text_model(
        inputs_embeds=torch.cat(parts, dim=1),
        attention_mask=layout.mask,
        position_ids=layout.positions,
        use_cache=False,
    ).last_hidden_state
    hidden: Tensor = states[:, len(layout.prefix) :]
    return hidden


@dataclass(frozen=True)
class TurnLayout:
    """Turns beside each other behind one picture: mask (1, 1, S, S) and positions (1, S).

    ``prefix`` are the ids before the turns, the picture's places among them. A token sees the
    picture and the earlier tokens of its own turn; every turn's positions go on from the
    picture's, as if it stood there alone.
    """

    prefix: Tensor
    mask: Tensor
    positions: Tensor

    @classmethod
    def of(cls, image_tokens: int, lengths: Sequence[int], device: torch.device) -> TurnLayout:
        """The layout of turns of these lengths behind a picture of ``image_tokens``."""
        ids = prefix_ids(image_tokens)
        before = len(ids)
        turn = [0] * before + [i + 1 for i, length in enumerate(lengths) for _ in range(length)]
        steps = [*range(before), *[before + i for length in lengths for i in range(length)]]
        owner = torch.tensor(turn, device=device)
        seen = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
        causal = torch.ones_like(seen).tril()
        positions = torch.tensor(steps, device=device)[None]
        prefix = torch.tensor(ids, device=device)
        return cls(prefix, (seen & causal)[None, None], positions)
