import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from tiny_language_models import (
    TEXT_FAMILIES,
    VISION_FAMILIES,
    tiny_text_model,
    tiny_vision_model,
)

from edge_perception.errors import CheckpointError
from edge_perception.vlm.assembly import build_skeleton, load_model, model_names
from edge_perception.vlm.packed_linear import PackedEmbedding, PackedWeight

TOKENS = torch.arange(10, 34).unsqueeze(0)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
@torch.no_grad()
def test_float_model_loads_as_transformers_saved_it(family: str, tmp_path: Path) -> None:
    model = tiny_text_model(family)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path)(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("family", VISION_FAMILIES)
@torch.no_grad()
def test_vision_model_loads_under_the_names_it_is_published_with(
    family: str, tmp_path: Path
) -> None:
    model = tiny_vision_model(family)
    model.save_pretrained(tmp_path)  # transformers writes the older, published names
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_skeleton_takes_no_memory_for_weights() -> None:
    config = tiny_text_model("Mistral").config.to_dict()
    config["architectures"] = ["MistralForCausalLM"]
    model = build_skeleton(config, torch.float16)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_published_names_are_told_from_the_models() -> None:
    model = tiny_vision_model("LLaVA")
    stored = "language_model.model.layers.0.mlp.up_proj.weight"
    assert model_names(model, [stored]) == {
        stored: "model.language_model.layers.0.mlp.up_proj.weight"
    }


def saved(folder: Path) -> dict[str, torch.Tensor]:
    tiny_text_model("Mistral").save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def test_missing_weight_is_named(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 .*layers\.1\.mlp\.up_proj"):
        load_model(tmp_path)


def test_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    tensors["model.norm.weight"] = torch.ones(63)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*\[64\].*\[63\]"):
        load_model(tmp_path)


CONFIGS = [
    ({"architectures": ["Evil"], "auto_map": {"AutoModel": "evil.Model"}}, "code of its own"),
    ({"architectures": None}, "no class"),
    ({"architectures": ["AutoModelForCausalLM"]}, "no model's class"),
    ({"architectures": ["pipeline"]}, "a function"),
    ({"num_attention_heads": "many"}, "text for a number"),
    ({"model_type": "no such"}, "an unknown type"),
    ({"dtype": "complex64"}, "a type that weights have not"),
]


@pytest.mark.parametrize(("change", "reason"), CONFIGS, ids=[row[1] for row in CONFIGS])
def test_configuration_that_names_no_model_of_transformers_is_refused(
    change: dict[str, object], reason: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json|dtype"):
        load_model(tmp_path)


def test_packed_embedding_gives_the_rows_of_its_table() -> None:
    codes = torch.randint(0, 255, (10, 64), dtype=torch.uint8)
    ones = torch.ones(10, 2)
    table = PackedWeight.from_codes(codes, ones.half() / 64, ones * 128, bits=8)
    embedding = PackedEmbedding(table, torch.float32, factor=2.0)
    words = torch.tensor([[3, 9], [0, 3]])
    assert torch.equal(embedding(words), 2 * table.dequantize()[words])
