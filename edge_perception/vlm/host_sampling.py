"""Choosing the next token on the host, from logits that a runtime hands back as an array.

The same choice as ``vlm.sampling`` makes on a device, draw for draw (see there for the idea), in
NumPy, so that a model on ONNX Runtime needs no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_perception.core.sampling import Sampling

FloatArray = npt.NDArray[np.floating[Any]]

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def uniform_at(seed: int, slot: int) -> float:
    """A number in [0, 1) with 24 random bits, for the token whose logits lie at ``slot``."""
    state = (seed + (slot + 1) * _GOLDEN) & _WORD
    state = ((state ^ state >> 30) * _MIX_1) & _WORD
    state = ((state ^ state >> 27) * _MIX_2) & _WORD
    return float((state ^ state >> 31) >> 40) * 2.0**-24


def choose_token(
    logits: FloatArray, sampling: Sampling, slot: int, mask: npt.NDArray[np.bool_] | None = None
) -> int:
    """The next token after ``logits`` ``(V,)``, which are those of sequence position ``slot``.

    ``mask`` bool ``(V,)``, at least one of it true, leaves out the words that may not come.
    """
    allowed = logits if mask is None else np.where(mask, logits, -np.inf)
    if sampling.temperature == 0.0:
        return int(allowed.argmax())
    scaled = allowed.astype(np.float32) / np.float32(sampling.temperature)
    words = np.argsort(-scaled, kind="stable")
    words = words[: sampling.top_k] if sampling.top_k else words
    ranked = scaled[words]
    weights = np.exp(ranked - ranked[0])
    cumulative = np.cumsum(weights / weights.sum(), dtype=np.float32)
    last = min(int((cumulative < sampling.top_p).sum()), len(words) - 1)
    total = cumulative[last]
    drawn = np.float32(uniform_at(sampling.seed, slot)) * total
    rank = min(int((cumulative <= drawn).sum()), int((cumulative < total).sum()))
    return int(words[rank])
