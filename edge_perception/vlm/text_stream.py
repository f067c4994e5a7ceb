"""Tokens to text as they come: whole characters only, and nothing of a stop string.

A character may span tokens (bytes of UTF-8), a word's leading blank belongs to the token before or
after it as the tokenizer pleases, and a stop string may begin in one token and end in a later one.
So text is emitted only when no later token can change it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_perception.errors import DecodingError

DecodeTokens = Callable[[Sequence[int]], str]
"""A tokenizer's decode: token ids to text."""

_INCOMPLETE = "�"


class TextStream:
    """Text of a growing answer. ``stopped`` tells that a stop string has been met."""

    def __init__(self, decode: DecodeTokens, stop: Sequence[str] = ()) -> None:
        if not all(stop):
            raise DecodingError("stop string", expected="text that is not empty", got="")
        self._decode = decode
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._context = 0  # tokens from here on are decoded again, for the blanks between words
        self._emitted = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; returns the text that is certain now, often none."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._context : self._emitted])
        text = self._decode(self._tokens[self._context :])
        if len(text) <= len(before) or text.endswith(_INCOMPLETE):
            return ""
        self._context, self._emitted = self._emitted, len(self._tokens)
        return self._release(text[len(before) :])

    def finish(self) -> str:
        """The text held back, at the end of the answer."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._context : self._emitted])
        rest = self._decode(self._tokens[self._context :])[len(before) :]
        self._emitted = len(self._tokens)
        certain = self._release(rest)
        held, self._held = self._held, ""
        return certain if self.stopped else certain + held

    def _release(self, text: str) -> str:
        """Hold back what may become a stop string; cut at one that is complete."""
        text, self._held = self._held + text, ""
        # (end, start): the string that is complete first, however the text came in pieces
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop]
        found = [(end, start) for end, start in found if start >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` with which ``stop`` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
