"""Vision towers in 8 bits: the layers against their oracle, towers against themselves in float."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_decoders import round_to_grid
from tiny_vlm_checkpoints import write_vlm
from torch import nn

from edge_perception.errors import CheckpointError
from edge_perception.vlm.int8_linear import int8_linear
from edge_perception.vlm.int8_vision import Int8Linear, product_on, round_weight, to_int8_vision
from edge_perception.vlm.kernel_prefill import Prefill
from edge_perception.vlm.model_choice import ModelChoice
from edge_perception.vlm.models import open_model
from edge_perception.vlm.packed_linear import PackedLinear

CPU = torch.device("cpu")
PICTURE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)


def linear(outputs: int = 48, inputs: int = 64, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_multiplies_as_the_oracle_does(bias: bool) -> None:
    weight = round_weight(linear(bias=bias))
    x = torch.randn(2, 9, 64)
    wanted = int8_linear(x.view(18, 64), weight).view(2, 9, 48)
    got = Int8Linear(weight, product_on(CPU))(x)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_layer_by_the_kernels_multiplies_alike(kernels) -> None:
    weight = round_weight(linear().half())
    x = torch.randn(40, 64).half()
    prefill = Prefill(kernels._launcher, CPU, processors=1, fused_rows=0)
    got = Int8Linear(weight, lambda i, w: prefill.multiply_int8(i, w, None, 0.0, None, False))(x)
    torch.testing.assert_close(got, int8_linear(x, weight), rtol=2e-3, atol=2e-3)


def test_weight_is_rounded_by_each_channels_largest_value() -> None:
    layer = linear()
    weight = round_weight(layer)
    back = weight.codes.float() * weight.scales.float()
    reach = layer.weight.detach().abs().amax(dim=1, keepdim=True)
    assert weight.codes.abs().amax(dim=1).tolist() == [127] * 48
    assert ((back - layer.weight.detach()).abs() <= 0.51 * reach / 127).all()


def test_packed_layer_is_turned_from_what_it_stands_for() -> None:
    packed = PackedLinear(round_to_grid(torch.randn(32, 64), 4, 32))
    back = round_weight(packed)
    error = (back.codes * back.scales.float() - packed.packed.dequantize()).abs().max()
    assert error < 0.51 * packed.packed.dequantize().abs().max() / 127


@pytest.mark.parametrize(("outputs", "inputs"), [(36, 64), (48, 20), (7, 9)])
def test_widths_that_the_product_does_not_take_are_filled_up(outputs: int, inputs: int) -> None:
    weight = round_weight(linear(outputs, inputs))
    layer = Int8Linear(weight, product_on(CPU))
    assert layer.weight.in_features % 16 == layer.weight.out_features % 16 == 0
    x = torch.randn(5, inputs)
    torch.testing.assert_close(layer(x), int8_linear(x, weight), rtol=1e-5, atol=1e-6)


def with_tower(name: str, tower: nn.Module) -> nn.Module:
    model = nn.Module()
    model.model = nn.Module()
    setattr(model.model, name, tower)
    return model


def test_attention_of_torch_that_reads_its_weights_stays_as_it_is() -> None:
    tower = nn.Sequential(linear(), nn.MultiheadAttention(48, 2))
    assert to_int8_vision(with_tower("visual", tower)) == 1
    assert isinstance(tower[0], Int8Linear)
    x = torch.randn(3, 48)
    assert tower[1](x, x, x)[0].shape == (3, 48)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (with_tower("ear", linear()), "no vision tower"),
        (with_tower("visual", nn.Sequential(nn.LayerNorm(4))), "no linear layer"),
    ],
    ids=["no tower", "nothing to turn"],
)
def test_model_that_cannot_be_turned_is_refused(model: nn.Module, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        to_int8_vision(model)


@pytest.mark.parametrize("family", ["LLaVA", "Qwen2.5-VL", "SmolVLM"])
def test_picture_in_8_bits_looks_nearly_the_same(tmp_path: Path, family: str) -> None:
    write_vlm(tmp_path, family)
    plain, rounded = (
        open_model(ModelChoice(tmp_path, context=200, vision_int8=int8)) for int8 in (False, True)
    )
    side = plain.image_sides_px[0]
    wanted = plain.encode_image(PICTURE, side).embeddings
    got = rounded.encode_image(PICTURE, side).embeddings
    error = ((got - wanted).norm() / wanted.norm()).item()
    assert 0 < error < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["LLaVA", "Qwen2.5-VL"])
def test_picture_in_8_bits_on_gpu_looks_nearly_the_same(tmp_path: Path, family: str) -> None:
    write_vlm(tmp_path, family, hidden_size=256, intermediate_size=512)
    embeddings = []
    for int8 in (False, True):
        choice = ModelChoice(tmp_path, "cuda:0", context=200, segments=2, vision_int8=int8)
        model = open_model(choice)
        embeddings.append(model.encode_image(PICTURE, model.image_sides_px[0]).embeddings.float())
        model.close()
    error = (embeddings[1] - embeddings[0]).norm() / embeddings[0].norm()
    assert 0 < error.item() < 0.05
