import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from edge_perception.errors import CheckpointError
from edge_perception.vlm.loaders.checkpoint import Checkpoint
from edge_perception.vlm.loaders.int_quantized import (
    expect_input_scale,
    read_int_quantized,
    write_int_quantized,
)
from edge_perception.vlm.loaders.layouts import Codes
from edge_perception.vlm.loaders.scheme import read_scheme

SECTION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token",
                "dynamic": True,
            },
        }
    },
}  # fmt: skip


def codes(rows: int = 8, columns: int = 64, seed: int = 0) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
    scales = (torch.rand(rows, 1, generator=generator) + 0.1).half()
    return Codes(values, scales, torch.full((rows, 1), 128, dtype=torch.uint8))


@given(rows=st.integers(1, 40), columns=st.integers(1, 80), seed=st.integers(0, 999))
def test_whole_bytes_round_trip(rows: int, columns: int, seed: int) -> None:
    want = codes(rows, columns, seed)
    got = read_int_quantized(**{
        {"weight": "weight", "weight_scale": "scale"}[name]: value
        for name, value in write_int_quantized(want).items()
    })  # fmt: skip
    assert torch.equal(got.codes, want.codes)
    assert torch.equal(got.scales, want.scales)
    assert torch.equal(got.zeros, want.zeros)


def test_asymmetric_zero_points_are_shifted_like_the_codes() -> None:
    tensors = write_int_quantized(codes(2))
    zero_point = torch.tensor([[-128], [127]], dtype=torch.int8)
    got = read_int_quantized(tensors["weight"], tensors["weight_scale"], zero_point)
    assert got.zeros.tolist() == [[0], [255]]
    with pytest.raises(CheckpointError, match="symmetric"):
        write_int_quantized(got)


HOSTILE = [
    ({"weight": torch.zeros(8, 64)}, "'weight'", "floats, not bytes"),
    ({"weight": torch.zeros(0, 64, dtype=torch.int8)}, "'weight'", "no rows"),
    ({"scale": torch.ones(7, 1)}, "'weight_scale'", "a row too few"),
    ({"scale": torch.ones(8, 3)}, "'weight_scale'", "3 does not divide 64"),
    ({"zero_point": torch.zeros(8, 2, dtype=torch.int8)}, "'weight_zero_point'", "two groups"),
]


@pytest.mark.parametrize(("damage", "match", "reason"), HOSTILE, ids=[row[2] for row in HOSTILE])
def test_tensors_that_do_not_fit_are_refused(damage, match: str, reason: str) -> None:
    tensors = write_int_quantized(codes())
    sound = {"weight": tensors["weight"], "scale": tensors["weight_scale"]}
    with pytest.raises(CheckpointError, match=match):
        read_int_quantized(**(sound | damage))


@pytest.mark.parametrize("bad", [[0.0], [-1.0], [float("nan")], [1.0, 2.0]], ids=str)
def test_input_scale_that_is_no_positive_number_is_refused(bad: list[float]) -> None:
    with pytest.raises(CheckpointError, match="input_scale"):
        expect_input_scale(torch.tensor(bad))


def test_checkpoint_tells_bytes_and_input_scale(tmp_path: Path) -> None:
    want = codes()
    tensors = {f"layer.{name}": value for name, value in write_int_quantized(want).items()}
    tensors |= {"layer.input_scale": torch.tensor(0.5), "head.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": SECTION}))
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.packed_layers() == ["layer"]
        assert checkpoint.is_packed("layer")
        assert not checkpoint.is_packed("head")
        assert checkpoint.input_scale("layer").tolist() == [0.5]
        assert checkpoint.input_scale("head") is None
        weight = checkpoint.packed("layer").dequantize()
    assert torch.equal(weight, (want.codes.float() - 128) * want.scales.float())


def with_inputs(**changes: object) -> dict[str, object]:
    group = SECTION["config_groups"]["group_0"]  # type: ignore[index]
    inputs = group["input_activations"] | changes
    return SECTION | {"config_groups": {"group_0": group | {"input_activations": inputs}}}


def test_scheme_says_that_inputs_are_rounded() -> None:
    for section in (SECTION, with_inputs(strategy="tensor", dynamic=False)):
        scheme = read_scheme({"quantization_config": section})
        assert scheme is not None
        assert (scheme.rounds_inputs, scheme.bits, scheme.group_size) == (True, 8, -1)


UNKNOWN = [
    ({"num_bits": 4}, "4-bit activations"),
    ({"type": "float"}, "FP8"),
    ({"symmetric": False}, "asymmetric activations"),
    ({"strategy": "group"}, "a scale a group"),
]


@pytest.mark.parametrize(("changes", "reason"), UNKNOWN, ids=[row[1] for row in UNKNOWN])
def test_activations_of_other_kinds_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(CheckpointError, match="activations not supported"):
        read_scheme({"quantization_config": with_inputs(**changes)})
