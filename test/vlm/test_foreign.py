import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_decoders import pack_model
from tiny_language_models import tiny_text_model

from edge_perception.errors import DecodingError
from edge_perception.vlm.foreign import ForeignModel
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
