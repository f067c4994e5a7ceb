"""An answer from a prompt: the loop over steps, with speculation, streaming and reasons to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from edge_perception.errors import DecodingError
from edge_perception.vlm.language_model import LanguageModel, Prompt, Yield, go_on
from edge_perception.vlm.sampling import GREEDY, Sampling
from edge_perception.vlm.speculation import MAX_DRAFT, PromptLookup
from edge_perception.vlm.text_stream import DecodeTokens, TextStream


@dataclass(frozen=True)
class GenerationOptions:
    """How to answer.

    ``end_tokens`` end the answer and are not part of it. ``draft_length`` is the most tokens that
    prompt lookup guesses at once (0: no speculation); the answer is the same with any.
    """

    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    end_tokens: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY
    draft_length: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise DecodingError("max_tokens", expected="1 or more", got=self.max_tokens)
        if not 0 <= self.draft_length <= MAX_DRAFT:
            raise DecodingError("draft_length", expected=f"0 to {MAX_DRAFT}", got=self.draft_length)


@dataclass(frozen=True)
class Answer:
    """Text and tokens of an answer.

    ``reason`` is "end" (an end token), "stop" (a stop string), "length" (``max_tokens``) or
    "context" (a full cache).
    ``steps`` counts calls of the model after prefill: with speculation fewer than tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    reason: str
    prompt_tokens: int
    steps: int


@dataclass
class TokenStream:
    """The tokens of an answer, one by one, end tokens left out; iterate over it once.

    ``reason`` is set when the iteration has ended by itself, ``steps`` counts on meanwhile.
    ``earlier`` are tokens for prompt lookup beside the prompt's (the last answers, say).
    """

    model: LanguageModel
    prompt: Prompt
    options: GenerationOptions = GenerationOptions()
    between: Yield = go_on
    earlier: Sequence[int] = ()
    reason: str = field(default="", init=False)
    steps: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[int]:
        for count, token in enumerate(self._unlimited(), start=1):
            if token in self.options.end_tokens:
                self.reason = "end"
                return
            yield token
            if count == self.options.max_tokens:
                self.reason = "length"
                return
        self.reason = "context"

    def _unlimited(self) -> Iterator[int]:
        """Tokens until the cache is full; the sequence starts anew."""
        options, model = self.options, self.model
        model.start(options.sampling)
        token = model.prefill(self.prompt, self.between)
        lookup = None
        if options.draft_length:
            lookup = PromptLookup(options.draft_length, self.earlier)
            lookup.extend(self.prompt.token_ids.tolist())
            lookup.extend([token])
        yield token
        while model.length < model.capacity:
            room = model.capacity - model.length - 1
            draft = lookup.draft()[:room] if lookup else []
            tokens = model.verify(draft, self.between) if draft else [model.step(self.between)]
            self.steps += 1
            if lookup:
                lookup.extend(tokens)
            yield from tokens


def generate(
    model: LanguageModel,
    prompt: Prompt,
    decode: DecodeTokens,
    options: GenerationOptions | None = None,
    *,
    on_text: Callable[[str], None] | None = None,
    between: Yield = go_on,
    earlier: Sequence[int] = (),
) -> Answer:
    """Answer ``prompt``; ``on_text`` is handed each piece of text as soon as it is certain.

    Raises ``DecodingError`` where the prompt does not fit into the model's cache.
    """
    stream = TokenStream(model, prompt, options or GenerationOptions(), between, earlier)
    text = TextStream(decode, stream.options.stop)
    pieces: list[str] = []
    token_ids: list[int] = []

    def emit(piece: str) -> None:
        if piece:
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)

    for token in stream:
        token_ids.append(token)
        emit(text.push(token))
        if text.stopped:
            break
    emit(text.finish())
    reason = "stop" if text.stopped else stream.reason
    return Answer("".join(pieces), tuple(token_ids), reason, len(prompt), stream.steps)
