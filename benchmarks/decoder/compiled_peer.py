"""A model of transformers, compiled layer by layer over a static cache, a step as one CUDA graph.

What ``torch.compile(model, mode="reduce-overhead")`` makes of a decode step, at a fraction of the
time that it takes: all layers have the same code, so one is compiled and serves them all. What is
lost is the fusion of a layer's last addition with the next one's norm, one small kernel a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Compiler = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


class OneLayer:
    """Keys and values [1, heads, slots, channels] of a layer, as its attention asks for them."""

    def __init__(self, keys: Tensor, values: Tensor, length: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = length

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store one position's keys and values; returns all slots'."""
        self.keys.index_copy_(2, self.length, keys)
        self.values.index_copy_(2, self.length, values)
        return self.keys, self.values


def run_layer(
    layer: nn.Module, hidden: Tensor, mask: Tensor, cosines: Tensor, sines: Tensor, cache: OneLayer
) -> Tensor:
    """One decoder layer, by its own forward."""
    made = layer(
        hidden,
        attention_mask=mask,
        position_embeddings=(cosines, sines),
        position_ids=cache.length[None],
        past_key_values=cache,
        use_cache=True,
    )
    return made if isinstance(made, Tensor) else made[0]


class CompiledSteps:
    """Decode steps of ``model`` over ``slots`` slots; ``token`` and ``length`` are the state."""

    def __init__(self, model: nn.Module, slots: int, compiler: Compiler) -> None:
        config: Any = model.config
        tower: Any = model.model
        like = tower.embed_tokens.weight
        self.token = torch.full((1, 1), 5, device=like.device)
        self.length = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.logits = torch.zeros(1, config.vocab_size, dtype=like.dtype, device=like.device)
        self._slots = torch.arange(slots, device=like.device)
        channels = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        size = (1, config.num_key_value_heads, slots, channels)
        self._caches = [
            OneLayer(*torch.zeros(2, *size, dtype=like.dtype, device=like.device), self.length)
            for _ in tower.layers
        ]
        for layer in tower.layers:  # a number of its own would have each layer compiled anew
            layer.self_attn.layer_idx = 0
        self._tower = tower
        self._layer = compiler(run_layer)
        self._head = compiler(lambda hidden: model.lm_head(tower.norm(hidden))[:, -1])

    def step(self) -> None:
        """Run the token at slot ``length``; leaves ``logits`` and the next token."""
        tower = self._tower
        hidden = tower.embed_tokens(self.token)
        mask = (self._slots <= self.length)[None, None, None]
        cosines, sines = tower.rotary_emb(hidden, position_ids=self.length[None])
        for layer, cache in zip(tower.layers, self._caches):
            hidden = self._layer(layer, hidden, mask, cosines, sines, cache)
        self.logits.copy_(self._head(hidden))
        self.token.copy_(self.logits.argmax(-1, keepdim=True))

    def captured(self) -> torch.cuda.CUDAGraph:
        """The step as a graph, compiled and warmed up before."""
        for _ in range(3):
            self.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph
