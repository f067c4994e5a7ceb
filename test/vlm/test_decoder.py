import weakref

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_decoders import DECODER_FAMILIES, pack_model, tiny_decoder, tiny_model
from tiny_language_models import VISION_FAMILIES, tiny_text_model, tiny_vision_model

from edge_perception.errors import CheckpointError, DecodingError
from edge_perception.vlm import tower
from edge_perception.vlm.decoder import Decoder, divide_layers, load_decoder
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.sampling import GREEDY, Sampling
from edge_perception.vlm.tower import take_tower

TOKENS = torch.randint(10, 128, (40,), generator=torch.Generator().manual_seed(3))
VISION_TOWERS = [family for family in VISION_FAMILIES if family != "Gemma 3"]


def reference_logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS[None]).logits[0]


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", DECODER_FAMILIES)
@pytest.mark.parametrize(("chunk", "how"), [(64, "at once"), (7, "in chunks"), (1, "by ones")])
def test_prefill_gives_the_logits_of_transformers(row: str, chunk: int, how: str) -> None:
    model = tiny_model(row)
    wanted = reference_logits(model)
    decoder = Decoder(take_tower(model), capacity=64, prefill_chunk=chunk)
    assert_close(decoder.logits(Prompt(TOKENS)), wanted)


@pytest.mark.parametrize("row", DECODER_FAMILIES)
def test_steps_choose_the_tokens_of_transformers_generate(row: str) -> None:
    model = tiny_model(row)
    told = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = model.generate(TOKENS[None, :9], **told)[0, 9:].tolist()
    decoder = Decoder(take_tower(model), capacity=64, segments=2)
    assert greedy_tokens(decoder, 24) == wanted


def greedy_tokens(decoder: Decoder, count: int) -> list[int]:
    decoder.start(GREEDY)
    return [decoder.prefill(Prompt(TOKENS[:9])), *(decoder.step() for _ in range(count - 1))]


class FilledUp:
    """Prompts of up to 16 tokens run as 16 rows, as CUDA graphs run them."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.hidden = torch.randn(16, decoder.weights.shape.hidden_size)
        self._positions = torch.arange(16)
        self.replays = 0

    def load(self, hidden: torch.Tensor, positions: torch.Tensor) -> int | None:
        if len(hidden) > 16:
            return None
        self.hidden[: len(hidden)] = hidden
        self._positions[: len(hidden)] = positions
        return 16

    def replay(self, index: int, rows: int) -> None:
        assert rows == 16
        self.replays += 1
        self.hidden = self._decoder.run_prompt_segment(index, self.hidden, self._positions)


@pytest.mark.parametrize(("tokens", "replays"), [(9, 2), (16, 2), (17, 0)])
def test_prompt_filled_up_with_rows_changes_nothing(tokens: int, replays: int) -> None:
    decoder, plain = tiny_decoder(segments=2), tiny_decoder(segments=2)
    decoder.prompts = FilledUp(decoder)
    for one in (decoder, plain):
        one.start(GREEDY)
    first = Prompt(TOKENS[:tokens])
    assert_close(decoder.logits(first), plain.logits(first))
    assert decoder.prompts.replays == replays
    # What goes on from there is no prompt from the start, and sees none of the rows filled up.
    assert_close(decoder.logits(Prompt(TOKENS[20:])), plain.logits(Prompt(TOKENS[20:])))
    assert decoder.prompts.replays == replays


@pytest.mark.parametrize("family", VISION_TOWERS)
def test_language_tower_of_a_vision_model_is_taken_out_of_it(family: str) -> None:
    model = tiny_vision_model(family)
    wanted = reference_logits(model)
    assert_close(Decoder(take_tower(model), capacity=64).logits(Prompt(TOKENS)), wanted)


@pytest.mark.parametrize("family", ["Qwen2.5-VL", "Qwen3-VL"])
@torch.no_grad()
def test_positions_on_three_axes_turn_as_in_transformers(family: str) -> None:
    model = tiny_vision_model(family)
    embeddings = model.get_input_embeddings()(TOKENS)
    # Four words, an image of 4 x 5 patches (time stands still), words from the largest on.
    image = torch.stack((torch.zeros(20), torch.arange(20) // 5, torch.arange(20) % 5)).long() + 4
    words = torch.arange(16).expand(3, 16)
    positions = torch.cat((words[:, :4], image, words + 9), dim=1)
    hidden = model.get_decoder()(
        inputs_embeds=embeddings[None], position_ids=positions[:, None]
    ).last_hidden_state
    wanted = model.lm_head(hidden[0])
    decoder = Decoder(take_tower(model), capacity=64, prefill_chunk=7)
    seen = Prompt(TOKENS[:30], embeddings[:30], positions[:, :30])
    assert_close(decoder.logits(seen), wanted[:30])
    # What follows is text: its positions go on behind the image's, not behind its tokens.
    assert_close(decoder.logits(Prompt(TOKENS[30:])), wanted[30:])


@pytest.mark.parametrize("row", ["Llama 3, SmolLM2", "Qwen2, Qwen2.5", "Mistral"])
@pytest.mark.parametrize("embedding_bits", [None, 8, 4])
def test_packed_model_decodes_as_its_linear_layers_do_in_transformers(
    row: str, embedding_bits: int | None
) -> None:
    model = pack_model(tiny_model(row), embedding_bits=embedding_bits)
    wanted = reference_logits(model)
    assert_close(Decoder(take_tower(model), capacity=64).logits(Prompt(TOKENS)), wanted)


def test_layers_left_in_float_run_beside_packed_ones() -> None:
    plain, model = tiny_model("Mistral"), pack_model(tiny_model("Mistral"))
    for block, source in zip(model.model.layers, plain.model.layers):
        block.self_attn.v_proj = source.self_attn.v_proj
    wanted = reference_logits(model)
    assert_close(Decoder(take_tower(model), capacity=64).logits(Prompt(TOKENS)), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_within_its_rounding_of_float32(dtype: torch.dtype) -> None:
    model = tiny_model("Qwen3")
    wanted = reference_logits(model)
    got = Decoder(take_tower(model.to(dtype)), capacity=64).logits(Prompt(TOKENS))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), wanted, rtol=0.05, atol=0.02)


def test_int8_cache_stays_near_the_float_one() -> None:
    wanted = tiny_decoder().logits(Prompt(TOKENS))
    got = tiny_decoder(kv_format="int8").logits(Prompt(TOKENS))
    assert 0 < float((got - wanted).abs().max()) < 0.02 * float(wanted.abs().max())


@pytest.mark.parametrize("segments", [1, 2])
def test_number_of_segments_changes_no_bit_and_yields_between_them(segments: int) -> None:
    waits = []
    decoder = tiny_decoder(segments=segments)
    decoder.prefill(Prompt(TOKENS))
    tokens = [decoder.step(lambda: waits.append(1)) for _ in range(5)]
    assert len(waits) == 5 * (segments - 1)
    other = tiny_decoder()
    other.prefill(Prompt(TOKENS))
    assert [other.step() for _ in range(5)] == tokens


def test_prefill_yields_before_every_layer_of_every_chunk_but_the_first() -> None:
    waits: list[int] = []
    decoder = tiny_decoder(prefill_chunk=16)
    assert len(decoder.weights.layers) == 2
    decoder.prefill(Prompt(TOKENS), lambda: waits.append(decoder.length))
    assert waits == [0, 16, 16, 32, 32]


SAMPLINGS = [GREEDY, Sampling(temperature=1.0, seed=5), Sampling(0.7, top_k=20, top_p=0.9, seed=1)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("row", ["Qwen3", "Mistral"])
@pytest.mark.parametrize("kv_format", ["float", "int8"])
def test_verified_drafts_are_the_tokens_of_single_steps(
    sampling: Sampling, row: str, kv_format: str
) -> None:
    decoder = tiny_decoder(row, kv_format=kv_format, segments=2)
    decoder.start(sampling)
    truth = [decoder.prefill(Prompt(TOKENS[:9])), *(decoder.step() for _ in range(40))]
    for right in range(8):  # of a draft of seven, the first `right` tokens are right
        decoder.start(sampling)
        tokens = [decoder.prefill(Prompt(TOKENS[:9]))]
        while len(tokens) < 30:
            draft = truth[len(tokens) : len(tokens) + 7]
            draft[right:] = [(token + 1) % 128 for token in draft[right:]]
            taken = decoder.verify(draft)
            assert len(taken) == right + 1
            tokens += taken
            assert decoder.length == 9 + len(tokens) - 1
        assert tokens == truth[: len(tokens)]


def test_sequence_goes_on_after_a_rewind_as_if_nothing_had_been_between() -> None:
    decoder = tiny_decoder()
    decoder.prefill(Prompt(TOKENS[:20]))
    decoder.step()
    decoder.rewind(10)
    assert_close(decoder.logits(Prompt(TOKENS[10:])), tiny_decoder().logits(Prompt(TOKENS))[10:])


def test_tower_is_moved_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("Qwen3")
    sources = [weakref.ref(block.self_attn.q_proj.weight) for block in model.model.layers]
    alive = []
    stack = tower.stack

    def counting(parts):
        alive.append(sum(source() is not None for source in sources))
        return stack(parts)

    monkeypatch.setattr(tower, "stack", counting)
    weights = take_tower(model)
    assert alive == [2, 2, 1, 1]  # the second layer is stacked when the first one's source is gone
    assert not any(source() is not None for source in sources)
    assert weights.embedding.values.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_bytes_are_those_of_all_tensors_with_what_is_tied_counted_once() -> None:
    for row in ("Llama 3, SmolLM2", "Qwen2, Qwen2.5", "Qwen3"):
        model = tiny_model(row)
        wanted = sum(parameter.nbytes for parameter in model.parameters())
        assert take_tower(model).nbytes == wanted


def test_checkpoint_on_disk_becomes_a_decoder(tmp_path) -> None:
    model = tiny_model("Mistral")
    model.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path, capacity=64, segments=2)
    assert_close(decoder.logits(Prompt(TOKENS)), reference_logits(model))


@pytest.mark.parametrize(
    ("layers", "segments", "sizes"),
    [(32, 1, [32]), (32, 4, [8] * 4), (30, 4, [8, 8, 7, 7]), (3, 3, [1, 1, 1])],
)
def test_layers_are_divided_evenly(layers: int, segments: int, sizes: list[int]) -> None:
    parts = divide_layers(layers, segments)
    assert [len(part) for part in parts] == sizes
    assert [index for part in parts for index in part] == list(range(layers))


OPTIONS = [
    ({"capacity": 0}, "context", "nothing fits"),
    ({"capacity": 257}, "256 tokens", "beyond the positions that the model knows"),
    ({"segments": 3}, "segments", "more than layers"),
    ({"segments": 0}, "segments", "none"),
    ({"kv_format": "fp8"}, "KV format", "Orin has no FP8"),
    ({"prefill_chunk": 0}, "prefill chunk", "no progress"),
]


@pytest.mark.parametrize(("options", "told", "reason"), OPTIONS, ids=[row[2] for row in OPTIONS])
def test_option_out_of_range_is_refused(options, told: str, reason: str) -> None:
    with pytest.raises(DecodingError, match=told):
        tiny_decoder(**options)


def test_prompt_longer_than_the_cache_is_refused_and_leaves_the_sequence() -> None:
    decoder = tiny_decoder(capacity=30)
    decoder.prefill(Prompt(TOKENS[:20]))
    with pytest.raises(DecodingError, match=r"10 tokens or fewer \(20 of 30 are taken\), got 11"):
        decoder.prefill(Prompt(TOKENS[:11]))
    assert decoder.length == 20
    decoder.step()


def test_full_cache_refuses_another_step() -> None:
    decoder = tiny_decoder(capacity=10)
    decoder.prefill(Prompt(TOKENS[:9]))
    decoder.step()
    with pytest.raises(DecodingError, match="does not fit into the cache"):
        decoder.step()


def test_step_without_a_prompt_is_refused() -> None:
    decoder = tiny_decoder()
    with pytest.raises(DecodingError, match="Prefill a prompt first"):
        decoder.step()
    with pytest.raises(DecodingError, match="Prefill a prompt first"):
        decoder.verify([1])


@pytest.mark.parametrize("draft", [[], [1] * 8])
def test_draft_of_a_wrong_length_is_refused(draft: list[int]) -> None:
    decoder = tiny_decoder()
    decoder.prefill(Prompt(TOKENS))
    with pytest.raises(DecodingError, match="1 to 7 tokens"):
        decoder.verify(draft)


def test_rewind_forward_is_refused() -> None:
    with pytest.raises(DecodingError, match="from 0 to 0"):
        tiny_decoder().rewind(1)


def test_unknown_family_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="gemma3_text"):
        take_tower(tiny_text_model("Gemma 3"))


def test_rotary_scaling_that_changes_with_the_length_is_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(CheckpointError, match="dynamic"):
        take_tower(tiny_text_model("Llama 3, SmolLM2", rope_parameters=rope))


BAD_PROMPTS = [
    ({"token_ids": torch.zeros(0, dtype=torch.int64)}, "T at least 1"),
    ({"token_ids": torch.zeros(3)}, "int64"),
    ({"token_ids": torch.zeros(1, 3, dtype=torch.int64)}, r"\[T\]"),
    ({"token_ids": TOKENS, "embeddings": torch.zeros(3, 64)}, "hidden"),
    ({"token_ids": TOKENS, "positions": torch.zeros(40, dtype=torch.int64)}, r"\[3, 40\]"),
]


@pytest.mark.parametrize(("fields", "told"), BAD_PROMPTS)
def test_prompt_of_a_wrong_shape_is_refused(fields, told: str) -> None:
    with pytest.raises(DecodingError, match=told):
        Prompt(**fields)


UNFIT_PROMPTS = [
    (Prompt.of([1, 128]), r"token ids.*0 to 127"),
    (Prompt.of([-1]), r"token ids"),
    (Prompt(TOKENS, torch.zeros(40, 32)), "64 channels"),
    (Prompt(TOKENS, None, torch.full((3, 40), 64)), r"positions.*0 to 63"),
]


@pytest.mark.parametrize(("prompt", "told"), UNFIT_PROMPTS)
def test_prompt_that_would_read_beyond_a_table_is_refused(prompt: Prompt, told: str) -> None:
    with pytest.raises(DecodingError, match=told):
        tiny_decoder().prefill(prompt)
