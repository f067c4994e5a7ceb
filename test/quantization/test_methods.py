"""The methods on single layers, against brute force and against rounding to nearest."""

from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch")

from edge_perception.errors import QuantizationError
from edge_perception.quantization.awq import search_scales
from edge_perception.quantization.gptq import compensated_target, round_with_feedback
from edge_perception.quantization.grid import Grid, WeightFormat, fit_grid
from edge_perception.quantization.recipe import OddWidth, Recipe, Rounding, recipe_for
from edge_perception.quantization.smoothquant import smoothing_scales
from edge_perception.quantization.statistics import InputStatistics
from edge_perception.vlm.rounded_inputs import round_inputs, static_scale

FORM = WeightFormat(4, 32)


def layer_with_outliers(columns: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [N, K] and inputs [T, K] of which some channels are thirty times as large."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(2048, columns, generator=generator) @ (mixing + torch.eye(columns))
    inputs[:, ::13] *= 30
    return weight, inputs


def statistics_of(inputs: torch.Tensor) -> InputStatistics:
    statistics = InputStatistics.empty(inputs.shape[1], inputs.device)
    statistics.add(inputs)
    return statistics


def loss(weight: torch.Tensor, rounded: torch.Tensor, inputs: torch.Tensor) -> float:
    return float((inputs @ (rounded - weight).T).square().mean())


def nearest(weight: torch.Tensor, form: WeightFormat = FORM) -> torch.Tensor:
    grid = fit_grid(weight, form)
    return grid.dequantize(grid.round(weight))


@pytest.mark.parametrize("duo_scaling", [True, False])
def test_awq_loses_less_than_rounding_where_channels_stand_out(duo_scaling: bool) -> None:
    weight, inputs = layer_with_outliers()
    scales = search_scales([weight], statistics_of(inputs), FORM, duo_scaling=duo_scaling)
    assert scales is not None
    scaled = nearest(weight * scales) / scales
    assert loss(weight, scaled, inputs) < 0.5 * loss(weight, nearest(weight), inputs)


def test_awq_leaves_a_layer_alone_that_it_cannot_help() -> None:
    # Weights that lie on the grid already: any scaling would only add error.
    weight = nearest(layer_with_outliers()[0])
    assert search_scales([weight], statistics_of(torch.randn(256, 64)), FORM) is None


def test_gptq_loses_less_than_rounding() -> None:
    weight, inputs = layer_with_outliers()
    grid = fit_grid(weight, FORM)
    for order in (True, False):
        codes = round_with_feedback(
            weight, grid, statistics_of(inputs).second_moment, activation_order=order
        )
        rounded = loss(weight, nearest(weight), inputs)
        assert loss(weight, grid.dequantize(codes), inputs) < 0.7 * rounded


def test_gptq_equals_rounding_where_channels_are_independent() -> None:
    weight, _ = layer_with_outliers()
    grid = fit_grid(weight, FORM)
    independent = torch.diag(torch.rand(64) + 0.5)
    assert torch.equal(round_with_feedback(weight, grid, independent), grid.round(weight))


def gptq_by_the_book(
    weight: torch.Tensor, grid: Grid, second_moment: torch.Tensor, damping: float
) -> torch.Tensor:
    """The paper's update with an explicit inverse for each remaining set of columns (OBQ)."""
    scales, zeros = grid.expanded(weight.shape[1])
    moment = second_moment.double().clone()
    moment.diagonal().add_(damping * moment.diagonal().mean())
    left = weight.double().clone()
    codes = torch.empty_like(weight, dtype=torch.uint8)
    for column in range(weight.shape[1]):
        code = (left[:, column] / scales[:, column]).round() + zeros[:, column]
        codes[:, column] = code.clamp(0, grid.highest_code).to(torch.uint8)
        value = (codes[:, column].double() - zeros[:, column]) * scales[:, column]
        inverse = torch.linalg.inv(moment[column:, column:])
        error = (left[:, column] - value) / inverse[0, 0]
        left[:, column:] -= error.unsqueeze(1) * inverse[0]
    return codes


def test_gptq_follows_the_papers_update() -> None:
    weight, inputs = layer_with_outliers(columns=160)  # more than one block of columns
    grid = fit_grid(weight, FORM)
    moment = statistics_of(inputs).second_moment
    ours = round_with_feedback(weight, grid, moment, activation_order=False)
    theirs = gptq_by_the_book(weight, grid, moment, 0.01)
    assert float((ours == theirs).float().mean()) > 0.995  # a tie may fall to either side
    assert loss(weight, grid.dequantize(ours), inputs) == pytest.approx(
        loss(weight, grid.dequantize(theirs), inputs), rel=0.02
    )


def test_gptq_is_near_the_best_of_all_codes() -> None:
    # Small enough to try every combination: 6 columns of 3 bits.
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(64, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    moment = inputs.T @ inputs / 64
    every = torch.tensor(list(itertools.product(range(8), repeat=6)), dtype=torch.float32)
    ratios = []
    for seed in range(8):
        weight = torch.randn(1, 6, generator=torch.Generator().manual_seed(seed))
        reach = weight.abs().max()
        grid = Grid(reach.view(1, 1) / 3.5, torch.full((1, 1), 4.0), 7)
        values = (every - 4) * grid.scales
        best = float(((values - weight) @ moment * (values - weight)).sum(1).min())
        codes = round_with_feedback(weight, grid, moment, damping=1e-6)
        got = loss(weight, grid.dequantize(codes), inputs)
        assert got >= best * 0.999
        ratios.append(got / loss(weight, grid.dequantize(grid.round(weight)), inputs))
    assert math.prod(ratios) ** (1 / len(ratios)) < 0.8  # on average far below nearest


def test_gptq_stands_dead_and_duplicate_channels() -> None:
    weight, inputs = layer_with_outliers()
    inputs[:, 3] = 0.0
    inputs[:, 9] = inputs[:, 10]
    grid = fit_grid(weight, FORM)
    codes = round_with_feedback(weight, grid, statistics_of(inputs).second_moment)
    assert loss(weight, grid.dequantize(codes), inputs) < loss(weight, nearest(weight), inputs)


def test_gptq_names_a_moment_that_damping_cannot_save() -> None:
    weight, _ = layer_with_outliers()
    moment = torch.full((64, 64), float("nan"))
    with pytest.raises(QuantizationError, match="singular"):
        round_with_feedback(weight, fit_grid(weight, FORM), moment)


def test_float_target_undoes_a_linear_drift_of_the_inputs() -> None:
    weight, inputs = layer_with_outliers()
    generator = torch.Generator().manual_seed(5)
    mixed = inputs @ (torch.eye(64) + 0.05 * torch.randn(64, 64, generator=generator))
    statistics = InputStatistics.empty(64, inputs.device)
    statistics.add(mixed, inputs)
    assert statistics.drift is not None
    target = compensated_target(
        weight, statistics.second_moment, statistics.drift, share=1.0, damping=1e-6
    )
    before = float((inputs @ weight.T - mixed @ weight.T).square().mean())
    after = float((inputs @ weight.T - mixed @ target.T).square().mean())
    assert after < 0.05 * before


def test_smoothquant_scales_follow_the_formula() -> None:
    weight = torch.tensor([[1.0, -4.0], [2.0, 1.0]])
    got = smoothing_scales([weight], torch.tensor([16.0, 1.0]), alpha=0.5)
    torch.testing.assert_close(got, torch.tensor([16**0.5 / 2**0.5, 1 / 4**0.5]))


def test_smoothquant_makes_w8a8_lose_less() -> None:
    weight, inputs = layer_with_outliers()
    form = recipe_for("w8a8").form
    scales = smoothing_scales([weight], inputs.abs().amax(0), alpha=0.5)

    def w8a8(weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return round_inputs(inputs) @ nearest(weight, form).T

    exact = inputs @ weight.T
    naive = float((w8a8(weight, inputs) - exact).square().mean())
    smooth = float((w8a8(weight * scales, inputs / scales) - exact).square().mean())
    assert smooth < 0.5 * naive


def test_static_activations_use_the_range_they_were_given() -> None:
    inputs = torch.tensor([[0.5, 2.0]])
    assert round_inputs(inputs, static_scale(1.27)).max() == pytest.approx(1.27)
    assert round_inputs(inputs).max() == pytest.approx(2.0)


def test_statistics_of_scaled_inputs_are_those_of_the_inputs_scaled() -> None:
    _, inputs = layer_with_outliers()
    scales = torch.rand(64) + 0.5
    ours, theirs = statistics_of(inputs).rescaled(scales), statistics_of(inputs / scales)
    torch.testing.assert_close(ours.second_moment, theirs.second_moment, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.mean_magnitude, theirs.mean_magnitude, rtol=1e-4, atol=1e-5)


ODD = [
    (OddWidth.SHRINK_GROUP, 64, "576 is 9 groups of 64"),
    (OddWidth.KEEP_FLOAT, None, "left in float"),
]


@pytest.mark.parametrize(("choice", "group", "reason"), ODD, ids=[row[2] for row in ODD])
def test_odd_width_gets_the_choice_that_was_made(choice, group, reason) -> None:
    form = recipe_for("rtn", WeightFormat(4, 128), odd_width=choice).form_for(576)
    assert (form and form.group_size) == group


def test_odd_width_is_refused_unless_a_choice_was_made() -> None:
    with pytest.raises(QuantizationError, match="--odd-width"):
        recipe_for("rtn", WeightFormat(4, 128)).form_for(576)


@pytest.mark.parametrize(
    "changes", [{"damping": 0.0}, {"alpha": 1.5}, {"float_target": -0.1}], ids=str
)
def test_recipe_refuses_settings_out_of_range(changes: dict[str, float]) -> None:
    with pytest.raises(QuantizationError, match="out of range"):
        Recipe("gptq", rounding=Rounding.FEEDBACK, **changes)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"unknown method.*expected rtn or awq"):
        recipe_for("magic")
