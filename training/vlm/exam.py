"""How many questions of a data set a model answers exactly right.

All questions about a picture are read at once behind it, each with its right answer (see
``TurnLayout``). The answer counts where every one of its tokens, the end too, is the one that the
model ranks first: greedy decoding writes exactly those, for as long as it agrees it sees the same
tokens. This holds for any model of transformers' Idefics3 class, quantised layers and all.
"""

from __future__ import annotations

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from training.vlm.batch import answer_places, normalised
from training.vlm.model import TurnLayout, patch_features, read_turns
from training.vlm.prepare import read_square
from training.vlm.texts import TURN_TOKENS
from training.vlm.tokens import ASSISTANT_ID, PAD_ID, encode_turns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor, nn

_SLOTS = 12
_READERS = 8
BLANK = 128
"""The grey of a blank picture."""


@dataclass(frozen=True)
class Asked:
    """One line of ``questions.jsonl``."""

    image: str
    kind: str
    question: str
    answer: str


def read_questions(folder: Path) -> list[Asked]:
    """The questions of a data set."""
    lines = (folder / "questions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [Asked(r["image"], r["type"], r["question"], r["answer"]) for r in records]


@torch.no_grad()
def right_answers(
    vlm: nn.Module,
    questions: Sequence[Asked],
    folder: Path,
    tokenizer: Tokenizer,
    *,
    device: torch.device,
    side: int,
    blank: bool = False,
    batch: int = 64,
) -> list[bool]:
    """For each question whether the answer is exactly right; ``blank`` shows a grey picture."""
    right = [False] * len(questions)
    rows = list(_rows(questions))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        names = [questions[row[0]].image for row in part]
        pixels = _pixels(folder, names, side, blank, device)
        pairs = [[(questions[i].question, questions[i].answer) for i in row] for row in part]
        turns = _turn_table(tokenizer, pairs).to(device)
        found = _all_tokens_right(vlm, pixels, turns)
        for row, answers in zip(part, found.tolist(), strict=True):
            for index, answer in zip(row, answers, strict=False):
                right[index] = answer
    return right


def _rows(questions: Sequence[Asked]) -> Iterator[list[int]]:
    """Indices of questions about one picture, ``_SLOTS`` at most."""
    by_image: dict[str, list[int]] = defaultdict(list)
    for index, asked in enumerate(questions):
        by_image[asked.image].append(index)
    for indices in by_image.values():
        for start in range(0, len(indices), _SLOTS):
            yield indices[start : start + _SLOTS]


def _pixels(
    folder: Path, names: Sequence[str], side: int, blank: bool, device: torch.device
) -> Tensor:
    grey = np.full((side, side, 3), BLANK, np.uint8)
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(lambda name: read_square(folder / "images" / name, side), names)
        images = np.stack([grey] * len(names) if blank else list(read))
    return normalised(torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255)


def _turn_table(tokenizer: Tokenizer, rows: Sequence[list[tuple[str, str]]]) -> Tensor:
    table = torch.full((len(rows), _SLOTS, TURN_TOKENS), PAD_ID)
    for row, pairs in zip(table, rows, strict=True):
        for slot, ids in zip(row, encode_turns(tokenizer, pairs), strict=False):
            slot[: len(ids)] = torch.tensor(ids)
    return table


def _all_tokens_right(vlm: Any, pixels: Tensor, turns: Tensor) -> Tensor:
    """Whether the model ranks every answer token of turns (B, S, L) first; bool (B, S)."""
    dtype = next(vlm.model.vision_model.parameters()).dtype
    patches = patch_features(vlm, pixels.to(dtype))
    image_tokens = patches.shape[1] // int(vlm.config.scale_factor) ** 2
    lengths = [turns.shape[2]] * turns.shape[1]
    layout = TurnLayout.of(image_tokens, lengths, turns.device)
    states = read_turns(vlm, patches, turns.flatten(1), layout)
    predicted = vlm.lm_head(states).argmax(-1).view_as(turns)
    counted = answer_places(turns, ASSISTANT_ID, PAD_ID)
    return ((predicted == turns.roll(-1, -1)) | ~counted).all(-1)


def shares_by_kind(questions: Sequence[Asked], right: Sequence[bool]) -> dict[str, float]:
    """The share of right answers of all questions ("all") and of each kind."""
    kinds: dict[str, list[bool]] = defaultdict(list)
    for asked, answer in zip(questions, right, strict=True):
        kinds["all"].append(answer)
        kinds[asked.kind].append(answer)
    return {kind: round(sum(found) / len(found), 4) for kind, found in kinds.items()}


def exact_shares(
    vlm: nn.Module,
    questions: Sequence[Asked],
    folder: Path,
    tokenizer: Tokenizer,
    *,
    device: torch.device,
    side: int,
    blank: bool = False,
) -> dict[str, float]:
    """``shares_by_kind`` of what the model answers about pictures of ``side`` pixels."""
    right = right_answers(vlm, questions, folder, tokenizer, device=device, side=side, blank=blank)
    return shares_by_kind(questions, right)
