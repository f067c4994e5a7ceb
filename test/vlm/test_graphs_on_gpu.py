"""Steps as CUDA graphs: the tokens of the same decoder run step by step without graphs."""

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("cuda.bindings")

from tiny_decoders import pack_model, tiny_model

from edge_perception.errors import DecodingError
from edge_perception.gpu.cuda import Stream, get_device
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.generation import GenerationOptions, TokenStream
from edge_perception.vlm.graphs import SegmentGraphs, capture_decoder, gpu_operators
from edge_perception.vlm.kernel_operators import KernelOperators
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.pipeline import PipelinedDecoder
from edge_perception.vlm.sampling import GREEDY, Sampling
from edge_perception.vlm.torch_operators import TorchOperators
from edge_perception.vlm.tower import take_tower
from edge_perception.vlm.weights import DecoderWeights

pytestmark = pytest.mark.gpu

PROMPT = Prompt(torch.randint(0, 128, (12,), generator=torch.Generator().manual_seed(1)))
SAMPLINGS = [GREEDY, Sampling(0.9, top_k=20, top_p=0.95, seed=4), Sampling(1.5, seed=5)]


@pytest.fixture(scope="module")
def operators() -> KernelOperators:
    return gpu_operators()


@pytest.fixture(scope="module")
def weights() -> DecoderWeights:
    return take_tower(pack_model(tiny_model("Qwen3")).half().cuda())


@pytest.fixture
def stream() -> Iterator[int]:
    made = Stream(get_device())
    yield made.handle
    made.close()


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("kv_format", ["float", "int8"])
def test_answers_are_those_of_steps_without_graphs(
    operators, weights, stream, segments: int, kv_format: str
) -> None:
    options = {"capacity": 64, "kv_format": kv_format, "segments": segments}
    plain = Decoder(weights, operators=operators, **options)
    with capture_decoder(weights, stream, **options) as model:
        for sampling in SAMPLINGS:
            for draft_length in (0, 1, 3, 7):
                told = GenerationOptions(200, sampling=sampling, draft_length=draft_length)
                wanted = list(TokenStream(plain, PROMPT, GenerationOptions(200, sampling=sampling)))
                assert list(TokenStream(model, PROMPT, told)) == wanted


def test_verified_drafts_of_every_length_are_the_tokens_of_single_steps(weights, stream) -> None:
    with capture_decoder(weights, stream, capacity=64, segments=2) as model:
        model.start(GREEDY)
        truth = [model.prefill(PROMPT), *(model.step() for _ in range(40))]
        for right in range(8):
            model.start(GREEDY)
            tokens = [model.prefill(PROMPT)]
            while len(tokens) < 30:
                draft = truth[len(tokens) : len(tokens) + 7]
                draft[right:] = [(token + 1) % 128 for token in draft[right:]]
                tokens += model.verify(draft)
            assert tokens == truth[: len(tokens)]


def test_turns_of_a_sequence_are_those_without_graphs(operators, weights, stream) -> None:
    plain = Decoder(weights, capacity=64, operators=operators)
    with capture_decoder(weights, stream, capacity=64) as model:
        told = []
        for one in (plain, model):
            one.start(GREEDY)
            tokens = [one.prefill(PROMPT), *(one.step() for _ in range(5))]
            tokens += [one.prefill(Prompt.of([7, 8])), one.step()]
            one.rewind(14)
            tokens += [one.prefill(PROMPT), *(one.step() for _ in range(5)), one.length]
            told.append(tokens)
        assert told[0] == told[1]


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("kv_format", ["float", "int8"])
def test_prompts_by_graphs_are_those_without(
    operators, weights, stream, segments: int, kv_format: str
) -> None:
    options = {"capacity": 64, "kv_format": kv_format, "segments": segments}
    plain = Decoder(weights, operators=operators, **options)
    decoder = Decoder(weights, operators=operators, **options)
    graphs = SegmentGraphs(decoder, stream, most_rows=1, prompt_rows=(16, 24))
    with PipelinedDecoder(decoder, graphs), graphs.work():
        for length in (12, 16, 20, 30, 9):  # 30 is too long for a graph
            tokens = torch.arange(length) * 7 % 128
            for one in (plain, decoder):
                one.start(GREEDY)
            for part in (Prompt(tokens), Prompt.of([5]), Prompt.of([6, 7, 8])):
                got, wanted = decoder.logits(part), plain.logits(part)
                torch.testing.assert_close(got, wanted, rtol=0.03, atol=0.03)


def test_steps_that_synchronise_are_refused_by_name(weights, stream) -> None:
    decoder = Decoder(weights, capacity=32, operators=TorchOperators())
    with pytest.raises(DecodingError, match="cannot be captured"):
        PipelinedDecoder(decoder, SegmentGraphs(decoder, stream, most_rows=1))
