"""Prompt lookup: guess the next tokens from what followed the same words before.

No draft model: the last few tokens are looked up in the prompt, in the answer so far and in what
the caller adds (a robot's answer about this frame repeats much of its answer about the last), and
what came after them then is the guess (Saxena, "Prompt Lookup Decoding", 2023). A wrong guess
costs a little more than a plain step, so a draft is short and none is made without a match.
"""

from __future__ import annotations

from collections.abc import Iterable

from edge_perception.errors import DecodingError
from edge_perception.vlm.operators import SAME_ORDER_ROWS

LONGEST_MATCH = 3
"""Tokens that are looked up; where they never occurred, fewer are, down to ``SHORTEST_MATCH``."""

SHORTEST_MATCH = 2
MAX_DRAFT = SAME_ORDER_ROWS - 1


class PromptLookup:
    """All tokens so far, with an index of where each run of them was last seen to go on.

    ``draft_length`` is the most tokens a guess has, 1 to ``MAX_DRAFT``. Each token costs two
    dictionary writes; a guess costs two look-ups.
    """

    def __init__(self, draft_length: int, earlier: Iterable[int] = ()) -> None:
        if not 1 <= draft_length <= MAX_DRAFT:
            raise DecodingError("draft length", expected=f"1 to {MAX_DRAFT}", got=draft_length)
        self._draft_length = draft_length
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.extend(earlier)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens; what they follow is indexed."""
        for token in tokens:
            place = len(self._tokens)
            for size in range(SHORTEST_MATCH, LONGEST_MATCH + 1):
                if place >= size:
                    self._after[tuple(self._tokens[-size:])] = place
            self._tokens.append(token)

    def draft(self) -> list[int]:
        """The guess at what follows all tokens so far; empty where nothing matches."""
        for size in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
            start = self._after.get(tuple(self._tokens[-size:]))
            if start is not None:
                return self._tokens[start : start + self._draft_length]
        return []
