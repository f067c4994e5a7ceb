import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_perception.errors import QuantizationError
from edge_perception.quantization.grid import (
    PER_CHANNEL,
    WeightFormat,
    diagonal_blocks,
    fit_grid,
    search_clipping,
)


def weights(rows: int = 8, columns: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([3, 4, 8]),
    st.sampled_from([32, 64, PER_CHANNEL]),
    st.booleans(),
    st.integers(0, 2**31),
    st.floats(-6, 6),
)
def test_rounding_errs_by_half_a_step_at_most(
    bits: int, group_size: int, symmetric: bool, seed: int, shift: float
) -> None:
    form = WeightFormat(bits, group_size, symmetric)
    weight = weights(seed=seed) + shift
    grid = fit_grid(weight, form)
    scales, _ = grid.expanded(128)
    # Half a step for rounding; another for the zero point's rounding, or for the code that a
    # symmetric grid lacks on one side; a thousandth for the scale's rounding to fp16.
    error = (grid.dequantize(grid.round(weight)) - weight).abs()
    assert bool((error <= scales * (1.0 + 2**bits * 1e-3)).all())


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([3, 4, 8]), st.booleans(), st.integers(0, 2**31))
def test_rounding_a_rounded_weight_changes_nothing(bits: int, symmetric: bool, seed: int) -> None:
    form = WeightFormat(bits, 32, symmetric)
    grid = fit_grid(weights(seed=seed), form)
    codes = grid.round(weights(seed=seed))
    assert torch.equal(grid.round(grid.dequantize(codes)), codes)


def test_scales_are_fp16_values_and_zeros_are_codes() -> None:
    grid = fit_grid(weights() + 3, WeightFormat(4, 32))
    assert torch.equal(grid.scales.half().float(), grid.scales)
    assert bool(((grid.zeros >= 0) & (grid.zeros <= 15)).all())
    assert torch.equal(grid.zeros, grid.zeros.round())


def test_zero_weights_stay_exactly_zero() -> None:
    weight = weights().clone()
    weight[:, 5] = 0.0
    weight[3] = 0.0
    for symmetric in (False, True):
        grid = fit_grid(weight, WeightFormat(4, 32, symmetric))
        rounded = grid.dequantize(grid.round(weight))
        assert not rounded[:, 5].any()
        assert not rounded[3].any()


def test_clipping_never_does_worse_by_its_own_measure() -> None:
    weight = weights(16, 128)
    weight[:, 7] *= 12  # an outlier that stretches its group's range
    inputs = torch.randn(512, 128, generator=torch.Generator().manual_seed(1))
    inputs[:, 7] *= 0.01  # and that hardly matters
    moments = diagonal_blocks(inputs.T @ inputs / 512, 32)
    form = WeightFormat(3, 32)
    clipped, plain = search_clipping(weight, form, moments), fit_grid(weight, form)

    def loss(grid) -> float:
        return float(((grid.dequantize(grid.round(weight)) - weight) @ inputs.T).square().mean())

    assert loss(clipped) < 0.7 * loss(plain)


def test_diagonal_blocks_are_the_groups_moments() -> None:
    matrix = torch.arange(64.0).view(8, 8)
    assert torch.equal(diagonal_blocks(matrix, 4)[1], matrix[4:, 4:])


@pytest.mark.parametrize(
    ("bits", "group_size", "match"),
    [(5, 64, "code width"), (4, 48, "group size"), (4, 0, "group size"), (4, 16, "group size")],
)
def test_unusable_formats_are_refused(bits: int, group_size: int, match: str) -> None:
    with pytest.raises(QuantizationError, match=match):
        WeightFormat(bits, group_size)


def test_group_that_does_not_divide_the_width_is_refused() -> None:
    with pytest.raises(QuantizationError, match="does not divide"):
        fit_grid(weights(4, 96), WeightFormat(4, 64))
