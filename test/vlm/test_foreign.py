import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_decoders import pack_model
from tiny_language_models import tiny_text_model

from edge_perception.errors import DecodingError
from edge_perception.vlm.foreign import ForeignModel, KernelLinear, use_kernels
from edge_perception.vlm.generation import GenerationOptions, TokenStream
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.packed_linear import PackedLinear

PROMPT = Prompt.of(range(20, 40))


def packed_gemma() -> torch.nn.Module:
    return pack_model(tiny_text_model("Gemma 3"))


def test_family_without_a_decoder_answers_by_its_own_forward_over_packed_layers() -> None:
    model = packed_gemma()
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    told = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = model.generate(PROMPT.token_ids[None], **told)[0, 20:].tolist()
    for draft_length in (0, 4):
        foreign = ForeignModel(model, capacity=64)
        options = GenerationOptions(20, draft_length=draft_length)
        assert list(TokenStream(foreign, PROMPT, options)) == wanted


def test_sequence_goes_on_after_a_rewind() -> None:
    foreign = ForeignModel(packed_gemma(), capacity=64)
    wanted = foreign.prefill(PROMPT)
    foreign.rewind(12)
    assert foreign.prefill(Prompt.of(range(32, 40))) == wanted


def test_what_it_cannot_do_is_refused() -> None:
    foreign = ForeignModel(packed_gemma(), capacity=24)
    with pytest.raises(DecodingError, match="Prefill a prompt first"):
        foreign.step()
    with pytest.raises(DecodingError, match="does not fit"):
        foreign.prefill(Prompt.of(range(25)))
    with pytest.raises(DecodingError, match="without positions"):
        foreign.prefill(Prompt(PROMPT.token_ids, None, torch.zeros(3, 20).long()))
    with pytest.raises(DecodingError, match="from 0 to 0"):
        foreign.rewind(1)


def half_gemma() -> torch.nn.Module:
    return packed_gemma().half()


def test_packed_layers_of_few_rows_run_by_kernels(kernels) -> None:
    model, plain = half_gemma(), half_gemma()
    layers = sum(isinstance(module, PackedLinear) for module in plain.modules())
    assert use_kernels(model, kernels) == layers
    assert sum(isinstance(module, KernelLinear) for module in model.modules()) == layers
    for tokens in (
        PROMPT.token_ids[:5],
        PROMPT.token_ids,
    ):  # few rows, and more than a kernel takes
        got, wanted = (one(tokens[None]).logits for one in (model, plain))
        torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)


def test_float32_layers_run_as_before(kernels) -> None:
    model = packed_gemma()
    wanted = model(PROMPT.token_ids[None, :4]).logits
    use_kernels(model, kernels)
    assert torch.equal(model(PROMPT.token_ids[None, :4]).logits, wanted)


@pytest.mark.gpu
def test_foreign_model_answers_on_a_gpu_by_our_kernels() -> None:
    pytest.importorskip("cuda.bindings")
    from edge_perception.vlm.graphs import gpu_operators

    plain, model = half_gemma().cuda(), half_gemma().cuda()
    assert use_kernels(model, gpu_operators()) > 0
    tokens = PROMPT.token_ids[None].cuda()
    for rows in (1, 5, 8, 20):
        got, wanted = (one(tokens[:, :rows]).logits.float() for one in (model, plain))
        torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)
    answer = list(TokenStream(ForeignModel(model, capacity=64), PROMPT, GenerationOptions(20)))
    assert len(answer) == 20
