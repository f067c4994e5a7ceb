"""What answers a prompt: the interface of our decoder and of transformers' own models.

A model holds one sequence. Its first ``length`` tokens are in the cache; one more, the *pending*
token, has been chosen and not yet been run. Prefill and every step end by choosing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edge_perception.errors import DecodingError
from edge_perception.vlm.sampling import Sampling
from edge_perception.vlm.turns import Yield, go_on

__all__ = ["LanguageModel", "Prompt", "Yield", "agreeing", "check_room", "go_on"]


@dataclass(frozen=True)
class Prompt:
    """Token ids int64 [T], on any device, T at least 1.

    ``embeddings`` [T, hidden], if given, are used in place of the table's rows: a vision tower's
    outputs stand where its placeholder tokens do. ``positions`` int64 [3, T] (time, height, width)
    are for models with three rotary axes; without them, positions count on from the cache's length.
    Raises ``DecodingError`` for shapes that do not fit.
    """

    token_ids: Tensor
    embeddings: Tensor | None = None
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        tokens = self.token_ids
        if tokens.dtype != torch.int64 or tokens.dim() != 1 or not len(tokens):
            raise DecodingError(
                "prompt", expected="token ids int64 [T], T at least 1",
                got=(tokens.dtype, list(tokens.shape)),
            )  # fmt: skip
        if self.embeddings is not None and self.embeddings.shape[:-1] != tokens.shape:
            raise DecodingError(
                "prompt's embeddings", expected=f"[{len(tokens)}, hidden]",
                got=list(self.embeddings.shape),
            )  # fmt: skip
        if self.positions is not None and self.positions.shape != (3, len(tokens)):
            raise DecodingError(
                "prompt's positions", expected=f"[3, {len(tokens)}]",
                got=list(self.positions.shape),
            )  # fmt: skip

    @classmethod
    def of(cls, token_ids: Sequence[int]) -> Prompt:
        """A prompt of text alone."""
        return cls(torch.tensor(list(token_ids), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.token_ids)


class LanguageModel(Protocol):
    """One sequence being answered. Not thread-safe; every method may synchronise at its end."""

    capacity: int

    @property
    def length(self) -> int:
        """Tokens in the cache; the pending one is not among them."""

    def start(self, sampling: Sampling) -> None:
        """Forget the sequence; choose tokens by ``sampling`` from now on."""

    def prefill(self, prompt: Prompt, between: Yield = go_on) -> int:
        """Append a prompt, choose the next token and return it.

        Raises ``DecodingError`` where the prompt does not fit into what is left of the cache; the
        sequence is then as before.
        """

    def step(self, between: Yield = go_on) -> int:
        """Run the pending token, choose the next and return it.

        Raises ``DecodingError`` where the cache is full or no token is pending.
        """

    def verify(self, draft: Sequence[int], between: Yield = go_on) -> list[int]:
        """Run the pending token and a guess of those after it, in one call.

        Returns what as many single steps would have returned: the part of the draft that agrees
        with them, and one token more.
        """

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens; none is pending then: go on by prefill."""


def check_room(length: int, rows: int, capacity: int) -> None:
    """Raise ``DecodingError`` where ``rows`` more tokens do not fit."""
    if length + rows > capacity:
        raise DecodingError(
            "the sequence does not fit into the cache",
            expected=f"{capacity - length} tokens or fewer ({length} of {capacity} are taken)",
            got=rows,
            mend="Shorten the prompt or open the model with a larger context.",
        )


def agreeing(draft: Sequence[int], chosen: Sequence[int]) -> int:
    """How many tokens of a draft are what the model chose in their places."""
    for count, (guess, truth) in enumerate(zip(draft, chosen)):
        if guess != truth:
            return count
    return len(draft)
