from copy import deepcopy
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_decoders import round_to_grid, tiny_model
from torch import nn

from edge_perception.errors import CheckpointError
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.int8_linear import Int8Weight, int8_linear, quantise_rows
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.packed_linear import PackedLinear, PackedWeight
from edge_perception.vlm.rounded_inputs import RoundedInputLinear
from edge_perception.vlm.tower import take_tower
from edge_perception.vlm.weights import FloatWeight, in_dtype, to_w8a8


def symmetric(weight: torch.Tensor) -> PackedWeight:
    """A weight [N, K] in 8 bits, one scale a channel, as SmoothQuant holds it."""
    scales = (weight.detach().abs().amax(1, keepdim=True) / 127).half()
    codes = (weight.detach() / scales.float()).round().clamp(-127, 127) + 128
    zeros = torch.full_like(scales, 128)
    return PackedWeight.from_codes(codes.to(torch.uint8), scales, zeros, bits=8)


def test_turned_codes_are_the_packed_ones_about_zero() -> None:
    packed = symmetric(torch.randn(5, 64))
    weight = Int8Weight.of(packed)
    assert torch.equal(weight.codes.float() * weight.scales.float(), packed.dequantize())
    assert weight.nbytes == 5 * 64 + 5 * 2


def test_rows_are_rounded_by_their_largest_value() -> None:
    codes, scales = quantise_rows(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[64, -127, 32], [0, 0, 0]]
    assert scales[0].item() == pytest.approx(2 / 127)


def test_product_is_that_of_rounded_inputs_and_weights() -> None:
    x, bias = torch.randn(3, 64), torch.randn(5)
    weight = Int8Weight.of(replace(symmetric(torch.randn(5, 64)), bias=bias))
    codes, scales = quantise_rows(x)
    wanted = (codes.float() * scales) @ (weight.codes.float() * weight.scales.float()).T + bias
    torch.testing.assert_close(int8_linear(x, weight), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("bits", "group"), [(4, 64), (8, 32)], ids=["4 bits", "more than one scale a channel"]
)
def test_other_weights_are_refused(bits: int, group: int) -> None:
    with pytest.raises(CheckpointError, match="8 bits, one scale a channel"):
        Int8Weight.of(round_to_grid(torch.randn(4, 64), bits, group))


def test_decoder_of_a_smoothquant_checkpoint_answers_near_its_own_in_float() -> None:
    model = tiny_model("Llama 3, SmolLM2")
    wanted = Decoder(take_tower(deepcopy(model)), capacity=16)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, PackedLinear(symmetric(module.weight)))
    weights = to_w8a8(take_tower(model))
    assert all(isinstance(layer.gate_up, Int8Weight) for layer in weights.layers)
    prompt = Prompt(torch.arange(12))
    got, exact = Decoder(weights, capacity=16).logits(prompt), wanted.logits(prompt)
    assert float((got - exact).norm() / exact.norm()) < 0.05


def test_checkpoint_of_rounded_inputs_becomes_such_a_decoder() -> None:
    model = tiny_model("Llama 3, SmolLM2")
    name = "model.layers.0.mlp.down_proj"
    packed = symmetric(model.get_submodule(name).weight)
    model.get_submodule("model.layers.0.mlp").down_proj = RoundedInputLinear(packed, None)
    weights = take_tower(model)
    assert isinstance(weights.layers[0].down, Int8Weight)
    assert isinstance(weights.layers[1].down, FloatWeight)


@pytest.mark.parametrize(
    ("scale", "wanted"),
    [(1.5 * 2.0**-18, torch.float16), (1e-30, torch.bfloat16), (1e20, torch.bfloat16)],
    ids=["held by both", "too small", "too large"],
)
def test_bfloat16_scales_become_fp16_where_nothing_is_lost(scale, wanted) -> None:
    packed = symmetric(torch.randn(2, 64))
    scales = torch.full((2, 1), scale).bfloat16()
    given = replace(packed, scales=scales, bias=torch.ones(2).bfloat16())
    got = in_dtype(given, torch.float16)
    assert isinstance(got, PackedWeight)
    assert got.scales.dtype == wanted
    assert got.bias is not None
    assert got.bias.dtype == torch.float16


def test_decoder_without_such_weights_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no layer can be multiplied"):
        to_w8a8(take_tower(tiny_model("Llama 3, SmolLM2")))
