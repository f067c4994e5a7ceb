import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_decoders import tiny_decoder

from edge_perception.errors import DecodingError
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.generation import GenerationOptions, TokenStream
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.pipeline import PipelinedDecoder
from edge_perception.vlm.sampling import GREEDY, Sampling

TOKENS = torch.randint(10, 128, (40,), generator=torch.Generator().manual_seed(3))
PROMPT = Prompt(TOKENS[:9])
SAMPLINGS = [GREEDY, Sampling(0.9, top_k=20, seed=4)]


class LazyQueue:
    """Runs a segment only when it must: the latest moment that a GPU could come to it."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.waiting: list[tuple[int, int, int]] = []
        self.tokens: dict[int, int] = {}
        self.queued = 0
        self.most_waiting = 0
        self.holds = 0
        self.closed = False

    def queue(self, index: int, rows: int) -> int:
        self.run_until(self.queued - 2)
        self.waiting.append((self.queued, index, rows))
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        self.queued += 1
        if rows > 1:  # what reads its result waits for it
            self.run_until(self.queued)
        return self.queued - 1

    @torch.inference_mode()
    def run_until(self, number: int) -> None:
        while self.waiting and self.waiting[0][0] <= number:
            own, index, rows = self.waiting.pop(0)
            self.decoder.run_segment(index, rows)
            self.tokens[own] = int(self.decoder.state.tokens[0])

    def token(self, number: int) -> int:
        assert number > self.queued - 4, "asked too late: its place has been used again"
        self.run_until(number)
        return self.tokens[number]

    @contextmanager
    def work(self) -> Iterator[None]:
        # On a stream, other work comes behind all that is queued.
        yield_to = self.decoder.settle, self.decoder.rewind, self.decoder.prefill

        def behind(call):
            def run(*arguments):
                self.run_until(self.queued)
                return call(*arguments)

            return run

        names = ("settle", "rewind", "prefill")
        for name, call in zip(names, yield_to):
            setattr(self.decoder, name, behind(call))
        try:
            yield
        finally:
            for name in names:
                delattr(self.decoder, name)

    def hold(self) -> None:
        self.holds += 1

    def close(self) -> None:
        self.closed = True


def pipelined(**options) -> tuple[PipelinedDecoder, LazyQueue]:
    decoder = tiny_decoder(**options)
    queue = LazyQueue(decoder)
    return PipelinedDecoder(decoder, queue), queue


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_tokens_are_those_of_the_plain_decoder_in_every_turn(
    segments: int, sampling: Sampling
) -> None:
    plain = tiny_decoder(segments=segments)
    model, _ = pipelined(segments=segments)
    for turn in range(2):  # the second one starts while a segment of the first is still queued
        for each in (plain, model):
            each.start(sampling)
        told = [[], []]
        for one, tokens in zip((plain, model), told):
            tokens.append(one.prefill(PROMPT))
            tokens += [one.step() for _ in range(5)]
            tokens += one.verify([tokens[-1], 11, 12])
            tokens += [one.step() for _ in range(3)]
            tokens.append(one.length)
            tokens.append(one.prefill(Prompt(TOKENS[9:20])))
            tokens += [one.step() for _ in range(2)]
            one.rewind(12 + turn)
            tokens.append(one.prefill(Prompt(TOKENS[20:24])))
            tokens += [one.step() for _ in range(4)]
        assert told[0] == told[1]


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("draft_length", [0, 4])
def test_answer_goes_on_until_the_cache_is_full(segments: int, draft_length: int) -> None:
    model, _ = pipelined(segments=segments, capacity=30)
    stream = TokenStream(model, PROMPT, GenerationOptions(100, draft_length=draft_length))
    plain = TokenStream(tiny_decoder(capacity=30), PROMPT, GenerationOptions(100))
    assert list(stream) == list(plain)
    assert stream.reason == "context"
    assert model.length == 30


def test_one_segment_is_queued_before_a_token_is_read_and_never_a_third() -> None:
    model, queue = pipelined(segments=2)
    model.prefill(PROMPT)
    for _ in range(4):
        model.step()
        assert [part[1:] for part in queue.waiting] == [(0, 1)]
    assert queue.most_waiting == 2


def test_nothing_runs_ahead_once_drafts_are_verified() -> None:
    model, queue = pipelined()
    model.prefill(PROMPT)
    model.verify([1])
    model.step()
    assert not queue.waiting
    model.start(GREEDY)
    model.prefill(PROMPT)
    model.step()
    assert len(queue.waiting) == 1


def test_every_segment_but_the_first_of_a_sequence_waits_for_its_turn() -> None:
    model, queue = pipelined(segments=2)
    model.prefill(PROMPT)
    turns: list[int] = []
    for _ in range(3):
        model.step(lambda: turns.append(queue.queued))
    assert turns == [1, 2, 3, 4, 5, 6]


def test_turn_within_a_prompt_waits_for_what_was_queued_before_the_last() -> None:
    model, queue = pipelined(prefill_chunk=4)
    turns: list[int] = []
    model.prefill(PROMPT, lambda: turns.append(queue.holds))
    assert turns == [1, 2, 3, 4, 5]
    model.start(GREEDY)
    model.prefill(PROMPT)
    assert queue.holds == 5, "nobody wants a turn, nobody waits"


def test_what_a_turn_raises_ends_the_sequence_and_not_the_model() -> None:
    def leave() -> None:
        raise InterruptedError

    model, _ = pipelined()
    model.prefill(PROMPT)
    wanted = [model.step() for _ in range(4)]
    with pytest.raises(InterruptedError):
        model.step(leave)
    model.start(GREEDY)
    model.prefill(PROMPT)
    assert [model.step() for _ in range(4)] == wanted


def test_memory_is_free_when_a_closed_decoder_is_let_go() -> None:
    model, queue = pipelined()
    model.prefill(PROMPT)
    model.close()
    held = weakref.ref(queue.decoder)
    del model, queue
    assert held() is None


def test_closed_decoder_refuses_work() -> None:
    model, queue = pipelined()
    model.prefill(PROMPT)
    with model:
        pass
    assert queue.closed
    with pytest.raises(DecodingError, match="closed"):
        model.step()
    with pytest.raises(DecodingError, match="closed"):
        model.start(GREEDY)
