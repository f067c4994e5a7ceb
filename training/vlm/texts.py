"""Turns and captions of pictures as token ids, and how often each turn is to be drawn.

Nothing here imports torch: a process of a pool is to begin at once.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_perception.world.captions import CAPTION_PROMPTS, caption, locations
from edge_perception.world.questions import KINDS, answer_limits, questions_of
from training.vlm.tokens import PAD_ID, encode_turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from edge_perception.world.sight import Sight

TURN_KINDS = (*KINDS, "locate")
"""Kinds of short turns; a turn's kind is its place here."""

TURN_TOKENS = 24
CAPTION_TOKENS = 64
TURNS = 32
CAPTIONS = 2

Key = tuple[str, str, str]
Pair = tuple[str, str]


def texts_of(
    sights: Sequence[Sight], seed: int
) -> tuple[list[list[Pair]], list[list[Key]], list[list[Pair]]]:
    """Turns, their (kind, subject, answer) and captions of each sight; the same for a seed."""
    rng = np.random.default_rng([seed, 5])
    turns, keys, captions = [], [], []
    for sight in sights:
        asked = questions_of(sight, rng)
        places = locations(sight, rng)
        turns.append(([(q.prompt, q.answer) for q in asked] + places)[:TURNS])
        known = [(q.kind, q.subject, q.answer) for q in asked]
        keys.append((known + [("locate", "", "")] * len(places))[:TURNS])
        told = caption(sight)
        chosen = rng.permutation(len(CAPTION_PROMPTS))[:CAPTIONS]
        captions.append([(CAPTION_PROMPTS[int(index)], told) for index in chosen])
    return turns, keys, captions


def padded(
    tokenizer: Tokenizer, rows: Sequence[Sequence[Pair]], slots: int, length: int
) -> NDArray[np.int16]:
    """Token ids (rows, slots, length); a turn too long for its slot is left out."""
    table = np.full((len(rows), slots, length), PAD_ID, np.int16)
    flat = encode_turns(tokenizer, list(chain.from_iterable(rows)))
    places = ((row, slot) for row, pairs in enumerate(rows) for slot in range(len(pairs)))
    for (row, slot), ids in zip(places, flat, strict=True):
        if len(ids) <= length:
            table[row, slot, : len(ids)] = ids
    return table


def filled(rows: Sequence[Sequence[Any]], empty: float, kind: Any) -> NDArray[Any]:
    """Values of each row's turns, then ``empty``, (rows, 32)."""
    table = np.full((len(rows), TURNS), empty, kind)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table


def drawing_weights(keys: Sequence[Sequence[Key]]) -> list[list[float]]:
    """How often each turn is to be drawn: answers balanced within a subject, kinds alike."""
    counts = Counter(chain.from_iterable(keys))
    limits = answer_limits(counts)
    limits["locate", ""] = counts["locate", "", ""]
    share = {key: min(1.0, limits[key[:2]] / count) for key, count in counts.items()}
    mass: dict[str, float] = {}
    for key, count in counts.items():
        mass[key[0]] = mass.get(key[0], 0.0) + share[key] * count
    return [[1e3 * share[key] / max(mass[key[0]], 1e-9) for key in row] for row in keys]
