import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_language_models import TEXT_FAMILIES, tiny_text_model

from edge_perception.errors import QuantizationError
from edge_perception.quantization.structure import (
    find_towers,
    fold_scales,
    linear_groups,
    linear_names,
)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_every_linear_layer_of_a_block_is_in_exactly_one_group(family: str) -> None:
    block = find_towers(tiny_text_model(family))[0].blocks[0]
    layers = [name for group in linear_groups(block) for name in group.layers]
    assert sorted(layers) == sorted(linear_names(block))
    assert len(layers) == 7


@pytest.mark.parametrize("family", TEXT_FAMILIES)
@torch.no_grad()
def test_folding_scales_leaves_the_model_as_it_was(family: str) -> None:
    model = tiny_text_model(family)
    tokens = torch.arange(24).unsqueeze(0)
    before = model(tokens).logits
    for block in find_towers(model)[0].blocks:
        for group in linear_groups(block):
            assert group.source is not None
            width = block.get_submodule(group.layers[0]).in_features
            fold_scales(block, group, group.tie(torch.rand(width) + 0.5))
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-5)


def test_tied_heads_share_the_mean_of_their_scales() -> None:
    block = find_towers(tiny_text_model("Qwen3"))[0].blocks[0]
    group = next(g for g in linear_groups(block) if g.layers == ("self_attn.o_proj",))
    vector = torch.arange(64.0)
    tied = group.tie(vector)
    assert torch.equal(tied[:16], (vector[:16] + vector[16:32]) / 2)
    assert torch.equal(tied[:16], tied[16:32])
    assert torch.equal(group.source_scales(tied)[:16], tied[:16])


def test_model_without_blocks_is_refused() -> None:
    with pytest.raises(QuantizationError, match="no stack of transformer blocks"):
        find_towers(torch.nn.Linear(4, 4))
