"""How much a quantised model differs from its float reference.

Perplexity over consecutive windows of a text, and over the same positions the Kullback-Leibler
divergence KL(float || quantised) of the next-token distributions and how often both name the same
next token. Perplexity alone hides errors that cancel; the divergence does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edge_perception.errors import QuantizationError

LogitsOf = Callable[[Tensor], Tensor]
"""Maps token ids int64 [1, T] to logits [T, V] (T positions, V words)."""

_SLICE = 512
"""Positions compared at a time: the float32 logits of a whole window need not exist at once."""


@dataclass(frozen=True)
class Fidelity:
    """Figures over all compared positions; ``kl`` in nats, ``agreement`` a share of 1."""

    perplexity: float
    kl: float
    agreement: float
    tokens: int


def windows_of(
    token_ids: Tensor, length: int, count: int | None = None, *, bos: int | None = None
) -> list[Tensor]:
    """Consecutive windows [1, length] of a token sequence [T], the rest dropped.

    ``bos`` takes the first place of every window: some models (Gemma) make sense of a text only
    after their begin-of-text token. Raises ``QuantizationError`` where the text is shorter than
    one window.
    """
    if bos is not None:
        start = torch.tensor([[bos]], dtype=token_ids.dtype, device=token_ids.device)
        return [torch.cat([start, w], dim=1) for w in windows_of(token_ids, length - 1, count)]
    available = token_ids.numel() // length
    if available == 0:
        raise QuantizationError(
            "too little text", expected=f"{length} tokens or more", got=token_ids.numel()
        )
    chosen = available if count is None else min(count, available)
    return [token_ids[i * length : (i + 1) * length].unsqueeze(0) for i in range(chosen)]


@torch.no_grad()
def measure_fidelity(
    logits_of: LogitsOf, reference_of: LogitsOf | None, windows: Sequence[Tensor]
) -> Fidelity:
    """Compare a model with its reference over ``windows``; without one, perplexity alone.

    Each window is scored by itself: its first token is given, its others are predicted.
    """
    loss = divergence = 0.0
    agreed = tokens = 0
    for window in windows:
        logits = logits_of(window)[:-1]
        reference = logits if reference_of is None else reference_of(window)[:-1]
        targets = window[0, 1:].to(logits.device)
        for start in range(0, len(targets), _SLICE):
            part = slice(start, start + _SLICE)
            ours = functional.log_softmax(logits[part].float(), dim=-1)
            theirs = functional.log_softmax(reference[part].float(), dim=-1)
            loss += float(functional.nll_loss(ours, targets[part], reduction="sum"))
            divergence += float((theirs.exp() * (theirs - ours)).sum())
            agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            tokens += len(ours)
    return Fidelity(math.exp(loss / tokens), divergence / tokens, agreed / tokens, tokens)


def gap_share(perplexity: float, float_perplexity: float, rtn_perplexity: float) -> float:
    """The perplexity lost against float, as a share of what round-to-nearest loses."""
    lost = rtn_perplexity - float_perplexity
    return math.nan if lost <= 0 else (perplexity - float_perplexity) / lost
