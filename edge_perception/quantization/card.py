"""The README.md of a written checkpoint: what was done, in figures a reader can check."""

from __future__ import annotations

from collections.abc import Mapping

from edge_perception import __version__
from edge_perception.quantization.grid import PER_CHANNEL
from edge_perception.quantization.plan import Plan
from edge_perception.quantization.recipe import Activations, Recipe

_CITATIONS = {
    "awq": "AWQ (Lin et al., MLSys 2024, arXiv 2306.00978)",
    "gptq": "GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323)",
    "rtn": "round to nearest",
    "smoothquant": "SmoothQuant (Xiao et al., ICML 2023, arXiv 2211.10438)",
    "w8a8": "round to nearest, weights and activations",
}


def model_card(name: str, recipe: Recipe, layout: str, plan: Plan, notes: Mapping[str, str]) -> str:
    """Markdown; ``notes`` are further rows of the table (the calibration text, say)."""
    form = recipe.form
    size = "per channel" if form.group_size == PER_CHANNEL else str(form.group_size)
    cited = [text for method, text in _CITATIONS.items() if method in recipe.method]
    rows = {
        "method": f"{recipe.method}: {', '.join(cited)}",
        "bits, group size": f"{form.bits}, {size}",
        "zero points": "symmetric" if form.symmetric else "integer, asymmetric",
        "layout": layout,
        "scaling, clipping, rounding": ", ".join(
            (recipe.scaling.value, recipe.clipping.value, recipe.rounding.value)
        ),
        "towers": ", ".join(tower.path for tower in plan.towers),
        "quantised beside the blocks": ", ".join(
            f"{outer} ({form.bits} bits)" for outer, form in plan.outer.items()
        )
        or "nothing",
        "layers kept in float for their width": ", ".join(plan.kept_float) or "none",
        "size": f"{plan.bytes / 1e6:.1f} MB, {plan.float_bytes / 1e6:.1f} MB before",
        **notes,
    }
    if recipe.settings["alpha"] is not None:
        rows["alpha"] = str(recipe.alpha)
    if recipe.activations is not Activations.FLOAT:
        rows["activations"] = f"8 bits, {recipe.activations.value}"
    if recipe.float_target:
        rows["float target"] = f"{recipe.float_target} (GPTAQ's idea, arXiv 2504.02692)"
    table = "\n".join(f"| {row} | {value} |" for row, value in rows.items())
    return (
        f"# {name}, quantised\n\n"
        f"Written by edge_perception {__version__} (`edge-perception quantize`).\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        "The licence of the original model holds. Measure the loss on your own data:\n"
        "`edge-perception evaluate-lm` compares this checkpoint with its float reference.\n"
    )
