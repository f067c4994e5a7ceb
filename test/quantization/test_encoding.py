"""What is written, read by the libraries whose layouts they are."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_language_models import tiny_text_model

from edge_perception.errors import QuantizationError
from edge_perception.quantization.encoding import (
    ExportLayout,
    decode_layer,
    encode_layer,
    quantization_config,
    round_alone,
)
from edge_perception.quantization.grid import PER_CHANNEL, WeightFormat
from edge_perception.quantization.job import Job, run_job
from edge_perception.quantization.recipe import recipe_for
from edge_perception.vlm.assembly import load_model
from edge_perception.vlm.loaders.scheme import read_scheme

FORMS = [
    WeightFormat(bits, group_size, symmetric)
    for bits in (3, 4, 8)
    for group_size in (32, PER_CHANNEL)
    for symmetric in (False, True)
]


def weight() -> torch.Tensor:
    return torch.randn(40, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_compressed_tensors_decompresses_what_we_pack(form: WeightFormat) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    section = quantization_config(ExportLayout.COMPRESSED_TENSORS, form, {}, ["lm_head"])
    parsed = quantization.QuantizationConfig.model_validate(section)
    scheme = parsed.config_groups["group_0"]
    rounded = round_alone(weight(), form)
    packed = encode_layer(rounded, ExportLayout.COMPRESSED_TENSORS)
    compressor = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    theirs = compressor.decompress({name: value.clone() for name, value in packed.items()}, scheme)[
        "weight"
    ]
    want = rounded.grid.dequantize(rounded.codes)
    # They multiply in the scale's own type, fp16.
    torch.testing.assert_close(theirs.float(), want, rtol=1e-3, atol=1e-5)
    repacked = compressor.compress(
        {"weight": theirs.float(), "weight_scale": packed["weight_scale"].float(),
         **({} if form.symmetric else {
             "weight_zero_point": (rounded.grid.zeros - 2 ** (form.bits - 1)).to(torch.int8)})},
        scheme,
    )  # fmt: skip
    assert torch.equal(repacked["weight_packed"], packed["weight_packed"])
    if not form.symmetric:
        assert torch.equal(repacked["weight_zero_point"], packed["weight_zero_point"])


# Symmetric only: compressed-tensors 0.20.0 builds the model with zero points that are not packed,
# so that transformers refuses asymmetric checkpoints, those that its own compressor wrote as well.
@pytest.mark.parametrize("bits", [3, 4, 8])
@torch.no_grad()
def test_transformers_loads_our_checkpoint_to_the_same_logits(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    tiny_text_model("Llama 3, SmolLM2").save_pretrained(tmp_path / "float")
    words = torch.arange(10, 42).unsqueeze(0)
    recipe = recipe_for("awq", WeightFormat(bits, 32, symmetric=True))
    run_job(
        Job(tmp_path / "float", tmp_path / "out", recipe, ExportLayout.COMPRESSED_TENSORS),
        [{"input_ids": words}],
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    ).eval()
    ours = load_model(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(theirs(words).logits, ours(words).logits, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_decoding_returns_the_grids_own_values(form: WeightFormat) -> None:
    rounded = round_alone(weight(), form)
    want = rounded.grid.dequantize(rounded.codes)
    packed = encode_layer(rounded, ExportLayout.COMPRESSED_TENSORS)
    assert torch.equal(decode_layer(packed, ExportLayout.COMPRESSED_TENSORS, form.bits), want)
    if form.bits == 4:
        packed = encode_layer(rounded, ExportLayout.AWQ)
        assert torch.equal(decode_layer(packed, ExportLayout.AWQ, 4), want)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_our_configuration_reads_back_as_the_scheme_it_says(form: WeightFormat) -> None:
    others = {"lm_head": WeightFormat(8, form.group_size, form.symmetric)}
    section = quantization_config(ExportLayout.COMPRESSED_TENSORS, form, others, ["visual"])
    scheme = read_scheme({"quantization_config": json.loads(json.dumps(section))})
    assert scheme is not None
    assert (scheme.bits, scheme.group_size, scheme.symmetric) == (
        form.bits, form.group_size, form.symmetric,
    )  # fmt: skip
    assert scheme.bits_for("lm_head") == 8
    assert scheme.ignored == ("visual",)


def test_awq_configuration_reads_back_as_gemm() -> None:
    section = quantization_config(ExportLayout.AWQ, WeightFormat(4, 64), {}, ["lm_head"])
    scheme = read_scheme({"quantization_config": section})
    assert scheme is not None
    assert (scheme.layout, scheme.bits, scheme.group_size) == ("gemm", 4, 64)


def test_awq_layout_refuses_layers_of_other_formats() -> None:
    with pytest.raises(QuantizationError, match="one group size"):
        quantization_config(
            ExportLayout.AWQ, WeightFormat(4, 128), {"layer": WeightFormat(4, 64)}, []
        )


@pytest.mark.parametrize("method", ["smoothquant", "smoothquant-static"])
@torch.no_grad()
def test_transformers_loads_our_w8a8_checkpoint(method: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    tiny_text_model("Llama 3, SmolLM2").save_pretrained(tmp_path / "float")
    words = torch.arange(10, 42).unsqueeze(0)
    made = Job(tmp_path / "float", tmp_path / "out", recipe_for(method), ExportLayout.W8A8)
    run_job(made, [{"input_ids": words}])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    ).eval()
    layer = theirs.get_submodule("model.layers.0.mlp.down_proj")
    assert layer.quantization_scheme.input_activations.num_bits == 8
    ours = load_model(tmp_path / "out", dtype=torch.float32)
    float_model = load_model(tmp_path / "float", dtype=torch.float32)
    want, got = ours(words).logits, theirs(words).logits
    rounding = (want - float_model(words).logits).square().mean().sqrt()
    assert (got - want).square().mean().sqrt() < rounding
