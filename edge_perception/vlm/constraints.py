"""Answers that must parse: one of some choices, or JSON by a schema.

llguidance (Rust, MIT) says which tokens may come next. It was taken because it needs nothing else,
its wheel is 3 MB for x86_64 and aarch64 and for every Python, and it makes its masks as it goes;
xgrammar wants torch and transformers, and outlines-core builds an automaton over the whole
vocabulary first, for a schema that is used once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_perception.errors import RequestError
from edge_perception.vlm.answering import TokenMask, Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MOST_SCHEMA_CHARACTERS = 65_536


def constrain_to_choices(vocabulary: Vocabulary, choices: Sequence[str]) -> GrammarConstraint:
    """Answers that are one of ``choices``, to the letter; a blank before it is left to the model.

    Raises ``RequestError`` where the vocabulary cannot spell them.
    """
    alternatives = " | ".join(_lark_text(choice) for choice in choices)
    return _constrain(vocabulary, _matcher().grammar_from_lark(f'start: " "? ({alternatives})'))


def constrain_to_schema(vocabulary: Vocabulary, schema: Mapping[str, Any]) -> GrammarConstraint:
    """Answers that are JSON by ``schema``, without blanks between its parts.

    Raises ``RequestError`` for a schema that is none, that nothing can meet, or that uses what
    llguidance does not know.
    """
    try:
        text = json.dumps(schema)
        if len(text) > _MOST_SCHEMA_CHARACTERS:
            expected = f"at most {_MOST_SCHEMA_CHARACTERS} characters"
            raise RequestError("schema is too long", expected=expected, got=len(text))
        grammar = _matcher().grammar_from_json_schema(
            text, overrides={"whitespace_flexible": False}
        )
    except (ValueError, RecursionError) as error:  # what was read may be too deep to be written
        raise RequestError(f"schema cannot be read ({error})") from error
    return _constrain(vocabulary, grammar)


def _lark_text(text: str) -> str:
    """A text as a literal of llguidance's grammar, whose escapes are JSON's."""
    return json.dumps(text.strip(), ensure_ascii=False)


def _constrain(vocabulary: Vocabulary, grammar: str) -> GrammarConstraint:
    matcher = _matcher()(_tokenizer(vocabulary), grammar, log_level=0)
    constraint = GrammarConstraint(matcher, vocabulary)
    if matcher.is_error() or not constraint.mask().any():
        raise RequestError(
            "the answer cannot be constrained as asked",
            expected="a schema that a value can meet, of JSON Schema's common keywords",
            got=matcher.get_error()[:300] or "no token fits",
        )
    return constraint


class GrammarConstraint:
    """A ``Constraint`` by llguidance; for one answer."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._size = vocabulary.size
        self._end_tokens = list(vocabulary.end_tokens)

    def mask(self) -> TokenMask:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.zeros(self._size, np.bool_)
        known = np.unpackbits(bits, bitorder="little")[: self._size]
        mask[: len(known)] = known
        mask[self._end_tokens] = self._matcher.is_accepting()
        return mask

    def take(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise RequestError(
                "the answer cannot be constrained any further", got=self._matcher.get_error()[:300]
            )

    @property
    def finished(self) -> bool:
        matcher = self._matcher
        return matcher.is_stopped() or (matcher.is_accepting() and not self._can_go_on())

    def _can_go_on(self) -> bool:
        mask = self.mask()
        mask[self._end_tokens] = False
        return bool(mask.any())


def _matcher() -> type[LLMatcher]:
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise RequestError(
            f"constrained answers need llguidance ({error})", mend="pip install llguidance."
        ) from error
    return LLMatcher


@lru_cache(maxsize=2)
def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """A vocabulary in llguidance's own form: slow to make for a large one, so it is kept."""
    from llguidance import LLTokenizer

    return LLTokenizer(
        vocabulary.tokenizer_json,
        n_vocab=vocabulary.size,
        eos_token=sorted(vocabulary.end_tokens),
    )
