"""What the VLM node asks of a model, and the loop that makes an answer of chosen tokens.

A model does three things: it encodes a picture at one of its resolutions, it begins an answer about
an encoded picture (which tokenises the question and prepares the prompt, and runs nothing yet), and
it chooses one token after the other. Everything that is the same for every model is here: ends,
limits, deadlines, cancelling, streaming and times. So a runtime (torch, ONNX Runtime) implements
two small protocols, none of which needs torch to be imported:

    features = model.encode_image(pixels, side_px)
    source = model.begin(features, Question("Is the way free?"), GREEDY)
    completion = complete(model, source, Limits(max_tokens=32))

Left out: batches. A robot asks one question at a time, and the detector must not wait for two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_perception.core.image import UInt8Array
from edge_perception.core.sampling import Sampling
from edge_perception.errors import DecodingError
from edge_perception.vlm.text_stream import TextStream
from edge_perception.vlm.turns import Yield, go_on

TokenMask = npt.NDArray[np.bool_]
"""Which tokens may come next: bool ``(vocabulary,)``. End tokens are among them."""

StopReason = Callable[[], str]
"""Asked between tokens: "" to go on, or why the answer ends now ("deadline", "cancelled")."""


def never_stop() -> str:
    """The ``StopReason`` that never ends an answer."""
    return ""


@dataclass(frozen=True)
class Question:
    """What is asked about a picture; ``system`` is the system prompt, "" for the model's own."""

    text: str
    system: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """The model's tokens, as constraints need them.

    ``tokenizer_json`` is the content of a ``tokenizer.json``. ``size`` is the width of the logits,
    which may exceed the tokenizer's. ``end_tokens`` end an answer and are not part of it.
    """

    tokenizer_json: str
    size: int
    end_tokens: frozenset[int]


class ImageFeatures(Protocol):
    """An encoded picture, opaque to all but its model. Lives until nothing refers to it."""

    @property
    def nbytes(self) -> int:
        """Memory held."""


class TokenSource(Protocol):
    """One answer, token by token. It ends with the model's next ``begin``.

    Both methods raise ``DeviceMemoryError`` where memory is short, and pass on what ``between``
    raises; the answer is then over, and the model is ready for the next ``begin``.
    """

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, the picture's among them."""

    @property
    def room(self) -> int:
        """Tokens that still fit into the model's context, the one to be chosen next included."""

    def first(self, mask: TokenMask | None = None, between: Yield = go_on) -> int:
        """Run the prompt and choose the first token, among ``mask`` if one is given."""

    def next(self, mask: TokenMask | None = None, between: Yield = go_on) -> int:
        """Run the token chosen last, and choose the one after it."""


class VisionLanguageModel(Protocol):
    """Answers questions about pictures, one at a time. Not thread-safe.

    ``image_sides_px`` are the resolutions it encodes pictures at, ascending: the side of the square
    (or the longest side) that a picture is resized to. ``name`` and ``backend`` are told in answers
    and diagnostics.
    """

    name: str
    backend: str
    image_sides_px: tuple[int, ...]
    vocabulary: Vocabulary

    def encode_image(
        self, pixels_rgb: UInt8Array, side_px: int, between: Yield = go_on
    ) -> ImageFeatures:
        """Encode a picture, uint8 ``(height, width, 3)``; the array is not kept.

        Raises ``DeviceMemoryError`` where memory is short; a smaller side may then do.
        """

    def begin(self, features: Any, question: Question, sampling: Sampling) -> TokenSource:
        """Begin an answer about what ``encode_image`` returned; the one before ends.

        Raises ``DecodingError`` where the prompt cannot fit.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Turn tokens into text; special tokens are left out."""

    def close(self) -> None:
        """Free what the model holds; using it afterwards raises."""


class Constraint(Protocol):
    """What an answer must look like, while it is being written."""

    def mask(self) -> TokenMask:
        """Which tokens may come next; an end token is among them where the answer may end."""

    def take(self, token: int) -> None:
        """Go on by a token of the mask."""

    @property
    def finished(self) -> bool:
        """Whether nothing but the end can follow."""


@dataclass(frozen=True)
class Limits:
    """When an answer ends at the latest: after ``max_tokens``, or at a ``stop`` string."""

    max_tokens: int = 128
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise DecodingError("max_tokens", expected="1 or more", got=self.max_tokens)


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    ``reason`` is "end" (an end token, or a constraint that is met), "stop" (a stop string),
    "length" (``max_tokens``), "context" (the model's context is full) or what a ``StopReason``
    said. ``first_ms`` runs from the call to the first token, ``rest_ms`` from there to the last.
    """

    text: str
    tokens: tuple[int, ...]
    reason: str
    prompt_tokens: int
    first_ms: float
    rest_ms: float

    @property
    def token_ms(self) -> float | None:
        """Milliseconds a token after the first; None for fewer than two."""
        return self.rest_ms / (len(self.tokens) - 1) if len(self.tokens) > 1 else None


class _Stopped(Exception):
    """Raised through a model's ``between`` to leave a prompt that is being run."""


def complete(
    model: VisionLanguageModel,
    source: TokenSource,
    limits: Limits,
    *,
    constraint: Constraint | None = None,
    on_text: Callable[[str], Any] | None = None,
    should_stop: StopReason = never_stop,
    between: Yield = go_on,
) -> Completion:
    """Write an answer; ``on_text`` is handed each piece of text as soon as it is certain.

    ``between`` is called where the work may wait; ``should_stop`` is asked there as well.
    Raises what the model raises; ``DeviceMemoryError`` among it.
    """
    writing = _Writing(model, source, limits, constraint, should_stop, between)
    start_ns = time.monotonic_ns()
    text = TextStream(model.decode, limits.stop)
    pieces: list[str] = []
    for piece in writing.pieces(text):
        pieces.append(piece)
        if piece and on_text is not None:
            on_text(piece)
    times_ns = writing.times_ns or [time.monotonic_ns()]
    first_ns, last_ns = times_ns[0], times_ns[: max(1, len(writing.tokens))][-1]
    return Completion(
        text="".join(pieces),
        tokens=tuple(writing.tokens),
        reason=writing.reason,
        prompt_tokens=source.prompt_tokens,
        first_ms=(first_ns - start_ns) / 1e6,
        rest_ms=(last_ns - first_ns) / 1e6,
    )


class _Writing:
    """One answer being written: its tokens, when each was there, and why it ended."""

    def __init__(
        self,
        model: VisionLanguageModel,
        source: TokenSource,
        limits: Limits,
        constraint: Constraint | None,
        should_stop: StopReason,
        between: Yield,
    ) -> None:
        self.tokens: list[int] = []
        self.times_ns: list[int] = []
        self.reason = ""
        self._source, self._constraint = source, constraint
        self._end_tokens = model.vocabulary.end_tokens
        self._max_tokens = limits.max_tokens
        self._should_stop, self._wait = should_stop, between

    def pieces(self, text: TextStream) -> Iterator[str]:
        """Yield the answer's text piece by piece, until it ends."""
        for token in self._accepted():
            yield text.push(token)
            if text.stopped:
                self.reason = "stop"
                return
        yield text.finish()

    def _accepted(self) -> Iterator[int]:
        """Yield the answer's tokens, end tokens left out."""
        try:
            token = self._choose(self._source.first)
            while not self._is_end(token):
                self.tokens.append(token)
                yield token
                if self._ends_after(token):
                    return
                token = self._choose(self._source.next)
        except _Stopped as stopped:
            self.reason = str(stopped)

    def _choose(self, chooser: Callable[[TokenMask | None, Yield], int]) -> int:
        self._check()
        mask = None if self._constraint is None else self._constraint.mask()
        if mask is not None and not mask.any():
            raise DecodingError("no token of the model's vocabulary can go on as was asked")
        token = chooser(mask, self._between)
        self.times_ns.append(time.monotonic_ns())
        return token

    def _between(self) -> None:
        self._check()
        self._wait()

    def _check(self) -> None:
        if reason := self._should_stop():
            raise _Stopped(reason)

    def _is_end(self, token: int) -> bool:
        if token not in self._end_tokens:
            return False
        self.reason = "end"
        return True

    def _ends_after(self, token: int) -> bool:
        if self._constraint is not None:
            self._constraint.take(token)
            if self._constraint.finished:
                self.reason = "end"
        if not self.reason and len(self.tokens) == self._max_tokens:
            self.reason = "length"
        if not self.reason and self._source.room < 1:
            self.reason = "context"
        return bool(self.reason)
