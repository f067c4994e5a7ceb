import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_perception.errors import CheckpointError
from edge_perception.vlm.packed_linear import (
    PackedLinear,
    PackedWeight,
    exact_scales,
    pack_nibbles,
    unpack_nibbles,
)


def packed(rows: int = 6, columns: int = 64, groups: int = 2, bits: int = 4) -> PackedWeight:
    generator = torch.Generator().manual_seed(rows * columns)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)
    scales = torch.rand(rows, groups, generator=generator).half()
    zeros = torch.randint(0, 2**bits, (rows, groups), generator=generator)
    return PackedWeight.from_codes(codes, scales, zeros, bits=bits)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**31))
def test_nibbles_survive_packing(rows: int, words: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, 8 * words), dtype=torch.uint8, generator=generator)
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)


def test_one_mask_yields_neighbouring_columns() -> None:
    word = int(pack_nibbles(torch.arange(8, dtype=torch.uint8).unsqueeze(0)))
    for pair in range(4):
        masked = (word >> (4 * pair)) & 0x000F000F
        assert (masked & 0xFFFF, masked >> 16) == (2 * pair, 2 * pair + 1)


@pytest.mark.parametrize("bits", [4, 8])
def test_dequantised_weight_follows_the_formula(bits: int) -> None:
    weight = packed(bits=bits)
    codes, dense = weight.unpacked_codes(), weight.dequantize()
    for row, column in ((0, 0), (3, 31), (5, 63)):
        group = column // 32
        offset = int(codes[row, column]) - int(weight.zeros[row, group])
        assert dense[row, column] == offset * float(weight.scales[row, group])


def test_linear_layer_gathers_its_input_by_the_stored_order() -> None:
    plain = packed()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    ordered = PackedWeight(
        plain.codes, plain.scales, plain.zeros, bits=4, group_size=32, input_order=order
    )
    inputs = torch.randn(3, 64)
    expected = PackedLinear(plain)(inputs[:, order])
    # The order of the inputs is the order of a float32 sum: its rounding differs, nothing else.
    torch.testing.assert_close(PackedLinear(ordered)(inputs), expected, rtol=1e-5, atol=1e-4)


def test_linear_layer_hands_back_the_weight_it_was_given() -> None:
    weight = packed()
    assert torch.equal(PackedLinear(weight).packed.codes, weight.codes)


def test_linear_layer_adds_its_bias() -> None:
    weight = packed()
    biased = PackedWeight(
        weight.codes, weight.scales, weight.zeros, bits=4, group_size=32, bias=torch.ones(6)
    )
    inputs = torch.randn(2, 64)
    expected = PackedLinear(weight)(inputs) + 1
    # The bias may be added before or after rounding: see above.
    torch.testing.assert_close(PackedLinear(biased)(inputs), expected, rtol=1e-5, atol=1e-4)


def test_bytes_are_those_of_codes_scales_and_zeros() -> None:
    assert packed().nbytes == 6 * 32 + 6 * 2 * 2 + 6 * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bits": 5}, "unknown code width"),
        ({"group_size": 48}, "group size"),
        ({"group_size": 128}, "group size"),
        ({"scales": torch.ones(6, 2)}, "scales"),
        ({"zeros": torch.ones(6, 3, dtype=torch.uint8)}, "zeros"),
        ({"codes": torch.zeros(6, 8, dtype=torch.int64)}, "codes"),
        ({"bias": torch.ones(5)}, "bias"),
        ({"input_order": torch.arange(63)}, "input_order"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: dict[str, object], reason: str) -> None:
    good = packed()
    fields: dict[str, object] = {
        "codes": good.codes,
        "scales": good.scales,
        "zeros": good.zeros,
        "bits": 4,
        "group_size": 32,
    }
    with pytest.raises(CheckpointError, match=reason):
        PackedWeight(**(fields | change))  # type: ignore[arg-type]


def test_width_that_32_does_not_divide_is_refused() -> None:
    codes = torch.zeros(2, 40, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="width cannot be packed"):
        PackedWeight.from_codes(codes, torch.ones(2, 1), torch.ones(2, 1), bits=4)


@pytest.mark.parametrize(
    ("scales", "dtype"),
    [
        (torch.tensor([0.5]).bfloat16(), torch.float16),  # exact in both: fp16, as kernels want
        (torch.tensor([1e-30]).bfloat16(), torch.bfloat16),  # fp16 would make it 0
        (torch.tensor([0.25]), torch.float16),
    ],
)
def test_scales_keep_their_value_in_sixteen_bits(scales, dtype) -> None:
    kept = exact_scales(scales)
    assert kept.dtype == dtype
    assert torch.equal(kept.float(), scales.float())


def test_scales_without_a_sixteen_bit_image_are_refused() -> None:
    with pytest.raises(CheckpointError, match="16 bits"):
        exact_scales(torch.tensor([0.1]))
