"""From logits to the next token: greedy, temperature, top-k, top-p, by a seed.

The draw for a token needs one uniform number, and that number is a hash of the seed and the slot
whose logits are sampled (splitmix64, Steele et al. 2014), not the next of a generator's sequence.
So the token at a place depends on nothing but the logits there: a step replayed from a CUDA graph,
a chunk verified at once and a run that starts anew in the middle all draw alike, and speculation
is exact for sampling as it is for greedy decoding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_perception.core.sampling import GREEDY, Sampling

__all__ = ["GREEDY", "Sampling", "choose_tokens", "uniform_at"]

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def uniform_at(seed: int, slots: Tensor) -> Tensor:
    """A float32 number in [0, 1) for each slot, int64 [T], with 24 random bits."""
    state = seed + (slots + 1) * _GOLDEN  # int64 wraps around, as the algorithm wants
    state = (state ^ _shifted(state, 30)) * _MIX_1
    state = (state ^ _shifted(state, 27)) * _MIX_2
    state = state ^ _shifted(state, 31)
    return _shifted(state, 40).to(torch.float32) * 2.0**-24


def _shifted(state: Tensor, places: int) -> Tensor:
    """A logical shift to the right: torch's own carries the sign along."""
    return (state >> places) & ((1 << (64 - places)) - 1)


def choose_tokens(logits: Tensor, sampling: Sampling, slots: Tensor) -> Tensor:
    """The next token int64 [T] after each row of ``logits`` [T, V], whose slots are ``slots``.

    Words are ranked by their logits (of equal ones the lower id first), cut to ``top_k``, then to
    the fewest whose probability reaches ``top_p``; the draw inverts the cumulative distribution of
    what is left. Does not synchronise.
    """
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1)
    scaled = logits.to(torch.float32) / sampling.temperature
    ranked, words = scaled.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        ranked, words = ranked[:, : sampling.top_k], words[:, : sampling.top_k]
    cumulative = ranked.softmax(dim=-1).cumsum(dim=-1)
    total = _mass_kept(cumulative, sampling.top_p)
    drawn = uniform_at(sampling.seed, slots).unsqueeze(-1) * total
    rank = (cumulative <= drawn).sum(dim=-1, keepdim=True)
    last = (cumulative < total).sum(dim=-1, keepdim=True)
    return words.gather(-1, torch.minimum(rank, last)).squeeze(-1)


def _mass_kept(cumulative: Tensor, top_p: float) -> Tensor:
    """The cumulative probability [T, 1] of the fewest words that reach ``top_p`` (or of all)."""
    last = cumulative.shape[-1] - 1
    rank = (cumulative < top_p).sum(dim=-1, keepdim=True).clamp(max=last)
    return cumulative.gather(-1, rank)
