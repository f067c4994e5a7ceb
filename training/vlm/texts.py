"""Turns and captions of many pictures as arrays, made by a pool of processes.

Fifty thousand pictures, each as it is and mirrored, have some three million turns. The pool's
processes are forked, before CUDA is in use: fresh ones would spend longer on importing torch.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from edge_perception.world.captions import CAPTION_PROMPTS, caption, locations
from edge_perception.world.questions import KINDS, answer_limits, questions_of
from training.vlm.tokens import PAD_ID, encode_turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edge_perception.world.sight import Sight

TURN_KINDS = (*KINDS, "locate")
"""Kinds of short turns; a turn's kind is its place here."""

TURN_TOKENS = 24
CAPTION_TOKENS = 64
_TURNS = 32
_CAPTIONS = 2
_CHUNK = 256

Key = tuple[str, str, str]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Texts:
    """R rows, each picture as it is and then mirrored.

    ``turns`` int16 (R, 32, 24) padded; ``kinds`` int8, -1 for none, and ``weights`` float32 (R,
    32); ``captions`` int16 (R, 2, 64).
    """

    turns: NDArray[np.int16]
    kinds: NDArray[np.int8]
    weights: NDArray[np.float32]
    captions: NDArray[np.int16]


def texts_of(
    sights: Sequence[Sight], seed: int
) -> tuple[list[list[Pair]], list[list[Key]], list[list[Pair]]]:
    """Turns, their (kind, subject, answer) and captions of each sight; the same for a seed."""
    rng = np.random.default_rng([seed, 5])
    turns, keys, captions = [], [], []
    for sight in sights:
        asked = questions_of(sight, rng)
        places = locations(sight, rng)
        turns.append(([(q.prompt, q.answer) for q in asked] + places)[:_TURNS])
        known = [(q.kind, q.subject, q.answer) for q in asked]
        keys.append((known + [("locate", "", "")] * len(places))[:_TURNS])
        told = caption(sight)
        chosen = rng.permutation(len(CAPTION_PROMPTS))[:_CAPTIONS]
        captions.append([(CAPTION_PROMPTS[int(index)], told) for index in chosen])
    return turns, keys, captions


def text_arrays(sights: Sequence[Sight], tokenizer: Tokenizer, seed: int, workers: int) -> Texts:
    """Arrays of every sight and its mirror image."""
    both = list(chain.from_iterable((sight, sight.mirrored()) for sight in sights))
    chunks = [both[at : at + _CHUNK] for at in range(0, len(both), _CHUNK)]
    seeds = range(seed * len(chunks), (seed + 1) * len(chunks))
    written = [tokenizer.to_str()] * len(chunks)
    if workers > 1 and len(chunks) > 1:
        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(workers, mp_context=fork) as pool:
            made = list(pool.map(_chunk_arrays, chunks, seeds, written))
    else:
        made = list(map(_chunk_arrays, chunks, seeds, written))
    keys = list(chain.from_iterable(part[1] for part in made))
    return Texts(
        turns=np.concatenate([part[0] for part in made]),
        kinds=_filled([[TURN_KINDS.index(key[0]) for key in row] for row in keys], -1, np.int8),
        weights=_filled(drawing_weights(keys), 0.0, np.float32),
        captions=np.concatenate([part[2] for part in made]),
    )


def _chunk_arrays(
    sights: Sequence[Sight], seed: int, tokenizer: str
) -> tuple[NDArray[np.int16], list[list[Key]], NDArray[np.int16]]:
    turns, keys, captions = texts_of(sights, seed)
    reader = Tokenizer.from_str(tokenizer)
    return (
        _padded(reader, turns, _TURNS, TURN_TOKENS),
        keys,
        _padded(reader, captions, _CAPTIONS, CAPTION_TOKENS),
    )


def _padded(
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


def _filled(rows: Sequence[Sequence[Any]], empty: float, kind: Any) -> NDArray[Any]:
    table = np.full((len(rows), _TURNS), empty, kind)
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
