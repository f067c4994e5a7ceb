"""The runs of SmolLM2's ladder, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_perception.quantization.grid import PER_CHANNEL, WeightFormat
from edge_perception.quantization.recipe import (
    Clipping,
    OddWidth,
    Recipe,
    recipe_for,
)


@dataclass(frozen=True)
class Run:
    """A recipe and the calibration it gets (in windows of 2048 tokens)."""

    name: str
    recipe: Recipe
    windows: int = 64
    window_length: int = 2048


def ladder_runs(only: Sequence[str] | None = None) -> list[Run]:
    """All runs, or those named in ``only``, in that order."""
    runs = {run.name: run for run in _all_runs()}
    return [runs[name] for name in only] if only else list(runs.values())


def _all_runs() -> list[Run]:
    runs: list[Run] = []
    sm, im, no = Clipping.SECOND_MOMENT, Clipping.IMATRIX, Clipping.NONE
    for bits in (4, 3):
        g64 = WeightFormat(bits, 64)
        b = f"b{bits}"
        runs += [
            Run(f"{b}-rtn", recipe_for("rtn", g64)),
            Run(f"{b}-awq", recipe_for("awq", g64)),
            Run(f"{b}-awq-plain", recipe_for("awq-plain", g64)),
            Run(f"{b}-awq-noclip", recipe_for("awq", g64, clipping=no)),
            Run(f"{b}-clip", recipe_for("rtn", g64, clipping=sm)),
            Run(f"{b}-gptq", recipe_for("gptq", g64)),
            Run(f"{b}-gptq-natural", recipe_for("gptq", g64, activation_order=False)),
            Run(f"{b}-gptq-imatrix", recipe_for("gptq", g64, clipping=im)),
            Run(f"{b}-gptq-sm", recipe_for("gptq", g64, clipping=sm)),
            Run(f"{b}-awq+gptq", recipe_for("awq+gptq", g64)),
            Run(f"{b}-awq+gptq-sm", recipe_for("awq+gptq", g64, clipping=sm)),
            Run(f"{b}-awq+gptq-noclip", recipe_for("awq+gptq", g64, clipping=no)),
            Run(f"{b}-awq+gptq-d003", recipe_for("awq+gptq", g64, damping=0.003)),
            Run(f"{b}-awq+gptq-d05", recipe_for("awq+gptq", g64, damping=0.05)),
            *(
                Run(f"{b}-{m}-target{t}", recipe_for(m, g64, float_target=t, clipping=c))
                for m, c, t in (
                    ("gptq", im, 0.5),
                    ("gptq", im, 1.0),
                    ("awq+gptq", im, 0.25),
                    ("awq+gptq", im, 0.5),
                    ("awq+gptq", im, 1.0),
                    ("awq", sm, 0.5),
                )
            ),
            Run(
                f"{b}-awq+gptq-sm-target0.5",
                recipe_for("awq+gptq", g64, clipping=sm, float_target=0.5),
            ),
            Run(f"{b}-awq+gptq-128", recipe_for("awq+gptq", g64), windows=128),
            Run(f"{b}-awq+gptq-16", recipe_for("awq+gptq", g64), windows=16),
            Run(f"{b}-awq+gptq-512", recipe_for("awq+gptq", g64), window_length=512),
            Run(f"{b}-gptq-512", recipe_for("gptq", g64), window_length=512),
            Run(f"{b}-gptq-8x512", recipe_for("gptq", g64), windows=8, window_length=512),
        ]
    for tag, form in _OTHER_FORMS.items():
        runs += [
            Run(f"{tag}-{m}", recipe_for(m, form, odd_width=OddWidth.SHRINK_GROUP))
            for m in ("rtn", "awq", "gptq", "awq+gptq")
        ]
    for suffix in ("", "-static"):
        runs.append(Run(f"w8a8{suffix}", recipe_for(f"w8a8{suffix}")))
        runs += [
            Run(f"smoothquant{suffix}-{alpha}", recipe_for(f"smoothquant{suffix}", alpha=alpha))
            for alpha in SMOOTHQUANT_ALPHAS
        ]
    return runs


SMOOTHQUANT_ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)

# At group 128 SmolLM2's layers 576 wide (all but down_proj) get 64: 128 does not divide them.
_OTHER_FORMS = {
    "b4-g128": WeightFormat(4, 128),
    "b4-g32": WeightFormat(4, 32),
    "b4-sym": WeightFormat(4, 64, symmetric=True),
    "b4-channel": WeightFormat(4, PER_CHANNEL),
    "b3-g128": WeightFormat(3, 128),
    "b3-g32": WeightFormat(3, 32),
    "b3-sym": WeightFormat(3, 64, symmetric=True),
    "b3-channel": WeightFormat(3, PER_CHANNEL),
    "b8-channel": WeightFormat(8, PER_CHANNEL),
}
