"""A whole transformers model, run by its own forward."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from edge_perception.core.sampling import Sampling
from edge_perception.vlm.language_tower import AskedPrompt, choose_among
from edge_perception.vlm.turns import Yield


class ForwardTower:
    """The forward of transformers' own model, token by token."""

    needs_output = True

    def __init__(self, capacity: int) -> None:
        self.name = "transformers"
        self.capacity = capacity
        self.length = 0
        self._model: nn.Module | None = None
        self._asked: AskedPrompt | None = None
        self._cache: DynamicCache | None = None
        self._sampling = Sampling()
        self._token = 0

    def start(self, model: nn.Module, prompt: AskedPrompt, sampling: Sampling) -> None:
        self._model, self._asked, self._sampling = model, prompt, sampling
        self._cache, self.length = DynamicCache(config=model.config), 0

    def first(self, mask: Tensor | None, between: Yield) -> int:
        assert self._asked is not None
        picture, token_ids = self._asked.picture, self._asked.token_ids
        between()
        more: dict[str, Any] = {"mm_encoder_outputs": {"image": picture.output}}
        if picture.grid is not None:
            more["image_grid_thw"] = picture.grid
            more["mm_token_type_ids"] = self._asked.is_image.to(torch.int64)[None]
        return self._forward(token_ids, mask, more)

    def next(self, mask: Tensor | None, between: Yield) -> int:
        between()
        token_ids = torch.tensor([self._token], device=self._asked_device())
        return self._forward(token_ids, mask, {})

    def work(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def synchronize(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        self._model = self._asked = self._cache = None

    def _asked_device(self) -> torch.device:
        assert self._asked is not None
        return self._asked.token_ids.device

    def _forward(self, token_ids: Tensor, mask: Tensor | None, more: dict[str, Any]) -> int:
        assert self._model is not None
        output = self._model(
            input_ids=token_ids[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **more,
        )
        self.length += len(token_ids)
        self._token = choose_among(output.logits[0], mask, self._sampling, self.length - 1)
        return self._token
