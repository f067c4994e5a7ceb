"""What runs a transformers model's language tower, and answers by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edge_perception.core.sampling import Sampling
from edge_perception.vlm.answering import TokenMask
from edge_perception.vlm.device_memory import memory_errors
from edge_perception.vlm.language_model import check_room
from edge_perception.vlm.sampling import choose_tokens
from edge_perception.vlm.turns import Yield, go_on


class Encoded(Protocol):
    """An encoded picture: embeddings [T, hidden], Qwen's grid int64 [1, 3], the whole output."""

    embeddings: Tensor
    grid: Tensor | None
    output: Any


@dataclass(frozen=True)
class AskedPrompt:
    """A question's token ids int64 [T] on the model's device, and the picture it is about."""

    token_ids: Tensor
    picture: Encoded
    image_token: int

    @property
    def is_image(self) -> Tensor:
        """Which tokens are the picture's: bool [T]."""
        return self.token_ids == self.image_token


class LanguageTower(Protocol):
    """Runs one sequence; chooses tokens among a mask's, or all of them.

    ``needs_output`` tells whether it wants a vision tower's whole output.
    """

    name: str
    capacity: int
    needs_output: bool

    @property
    def length(self) -> int:
        """Tokens in the cache."""

    def start(self, model: nn.Module, prompt: AskedPrompt, sampling: Sampling) -> None:
        """Prepare a prompt; the sequence before ends. Runs nothing yet."""

    def first(self, mask: Tensor | None, between: Yield) -> int:
        """Run the prompt and choose a token."""

    def next(self, mask: Tensor | None, between: Yield) -> int:
        """Run the token chosen last and choose another."""

    def work(self) -> AbstractContextManager[Any]:
        """Within it, torch's work goes where the tower's goes."""

    def synchronize(self) -> None:
        """Wait for what was queued within ``work``."""

    def close(self) -> None:
        """Free what the tower holds; idempotent."""


class TowerSource:
    """A ``TokenSource`` by a language tower."""

    def __init__(
        self, tower: LanguageTower, model: nn.Module, prompt: AskedPrompt, sampling: Sampling
    ) -> None:
        check_room(0, len(prompt.token_ids), tower.capacity)
        self.prompt_tokens = len(prompt.token_ids)
        self._tower = tower
        self._device = prompt.token_ids.device
        tower.start(model, prompt, sampling)

    @property
    def room(self) -> int:
        """Tokens that still fit; the one chosen last has not been run yet."""
        return self._tower.capacity - self._tower.length

    def first(self, mask: TokenMask | None = None, between: Yield = go_on) -> int:
        """Run the prompt; see ``TokenSource``."""
        return self._run(self._tower.first, mask, between)

    def next(self, mask: TokenMask | None = None, between: Yield = go_on) -> int:
        """Run a token; see ``TokenSource``."""
        return self._run(self._tower.next, mask, between)

    @torch.inference_mode()
    def _run(
        self, run: Callable[[Tensor | None, Yield], int], mask: TokenMask | None, between: Yield
    ) -> int:
        with memory_errors(), self._tower.work():
            allowed = None if mask is None else torch.from_numpy(mask).to(self._device)
            return run(allowed, between)


def choose_among(logits: Tensor, mask: Tensor | None, sampling: Sampling, slot: int) -> int:
    """Choose after the last row of ``logits`` [T, V], among the tokens of a mask [V]."""
    row = logits[-1:]
    if mask is not None:
        row = row.masked_fill(~mask[: row.shape[-1]], float("-inf"))
    return int(choose_tokens(row, sampling, torch.tensor([slot], device=row.device)))
