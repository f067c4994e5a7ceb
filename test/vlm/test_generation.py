from collections.abc import Sequence

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_decoders import tiny_decoder

from edge_perception.errors import DecodingError
from edge_perception.vlm.generation import GenerationOptions, TokenStream, generate
from edge_perception.vlm.language_model import Prompt, go_on
from edge_perception.vlm.sampling import Sampling

PROMPT = Prompt.of(range(20, 40))


class Script:
    """A language model that says what it was told, whatever it is asked."""

    def __init__(self, tokens: Sequence[int], capacity: int = 100) -> None:
        self.capacity = capacity
        self.length = 0
        self.calls: list[int] = []
        self._tokens = list(tokens)
        self._said = 0

    def start(self, sampling: Sampling) -> None:
        self.length = self._said = 0

    def prefill(self, prompt: Prompt, between=go_on) -> int:
        self.length += len(prompt)
        return self._next()

    def step(self, between=go_on) -> int:
        self.calls.append(1)
        self.length += 1
        return self._next()

    def verify(self, draft: Sequence[int], between=go_on) -> list[int]:
        self.calls.append(1 + len(draft))
        said = [self._next()]
        for guess in draft:
            if guess != said[-1]:
                break
            said.append(self._next())
        self.length += len(said)
        return said

    def rewind(self, length: int) -> None:
        self.length = length

    def _next(self) -> int:
        self._said += 1
        return self._tokens[self._said - 1]


def letters(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


def say(text: str, **options):
    return generate(Script(text.encode()), PROMPT, letters, GenerationOptions(**options))


def test_end_token_ends_the_answer_and_is_not_part_of_it() -> None:
    answer = say("hello.x", end_tokens=frozenset(b"."))
    assert (answer.text, answer.reason, answer.prompt_tokens) == ("hello", "end", 20)
    assert answer.steps == 5


def test_longest_answer_ends_for_its_length() -> None:
    answer = say("hello", max_tokens=3)
    assert (answer.text, answer.reason, len(answer.token_ids)) == ("hel", "length", 3)


def test_stop_string_across_tokens_ends_the_answer_before_it() -> None:
    answer = say("one END two", stop=(" END",))
    assert (answer.text, answer.reason) == ("one", "stop")


def test_full_cache_ends_the_answer() -> None:
    model = Script(b"abcdefgh" * 20, capacity=25)
    answer = generate(model, PROMPT, letters)
    assert (answer.text, answer.reason) == ("abcdef", "context")


def test_text_is_streamed_as_it_becomes_certain() -> None:
    pieces: list[str] = []
    options = GenerationOptions(stop=("cd",), max_tokens=6)
    answer = generate(Script(b"abcabe"), PROMPT, letters, options, on_text=pieces.append)
    assert pieces == ["a", "b", "ca", "b", "e"]
    assert answer.text == "abcabe"


def test_repeated_text_takes_fewer_steps_with_speculation() -> None:
    text = "red cup, red cup, red cup, red cup."
    plain = say(text, end_tokens=frozenset(b"."))
    guessed = say(text, end_tokens=frozenset(b"."), draft_length=7)
    assert guessed.text == plain.text
    assert guessed.steps < plain.steps / 2


@pytest.mark.parametrize("capacity", [21, 22, 26, 29])
def test_speculation_never_asks_for_more_than_the_cache_holds(capacity: int) -> None:
    class Strict(Script):
        def verify(self, draft: Sequence[int], between=go_on) -> list[int]:
            assert self.length + 1 + len(draft) <= self.capacity
            return super().verify(draft, between)

    options = GenerationOptions(draft_length=7)
    answer = generate(Strict(b"ab" * 20, capacity), PROMPT, letters, options)
    assert answer.reason == "context"
    assert answer.text == ("ab" * 20)[: capacity - 20 + 1]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, seed=2), Sampling(0.8, top_k=5)])
@pytest.mark.parametrize("row", ["Llama 3, SmolLM2", "Mistral"])
def test_answer_of_a_real_decoder_is_the_same_with_speculation(
    sampling: Sampling, row: str
) -> None:
    model = tiny_decoder(row, capacity=128)
    prompt = Prompt.of([*range(20, 40), *range(20, 40)])
    plain = TokenStream(model, prompt, GenerationOptions(80, sampling=sampling))
    wanted = list(plain)
    for draft_length in (1, 4, 7):
        options = GenerationOptions(80, sampling=sampling, draft_length=draft_length)
        guessed = TokenStream(model, prompt, options, earlier=wanted)
        assert list(guessed) == wanted
        assert guessed.steps < plain.steps
    assert plain.reason == "length"


@pytest.mark.parametrize(
    ("values", "told"), [({"max_tokens": 0}, "max_tokens"), ({"draft_length": 8}, "draft_length")]
)
def test_option_out_of_range_is_refused(values: dict[str, int], told: str) -> None:
    with pytest.raises(DecodingError, match=told):
        GenerationOptions(**values)
