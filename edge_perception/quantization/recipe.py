"""What to do with a model's linear layers: three independent choices and a weight format.

Every method is a point in a small space: how input channels are scaled before rounding (not at
all, AWQ's search, SmoothQuant's formula), whether ranges are clipped (not, by the whole second
moment of a group's inputs, by its diagonal: the "imatrix"), and how weights are rounded (to
nearest, or with GPTQ's feedback). ``METHODS`` names the points that people know; their settings
are the papers' (AWQ: 20 steps, clipping to 0.5; GPTQ: damping 0.01, activation order), none was
chosen by looking at a test text.

``float_target`` is an option of ours, off by default: the closed form of GPTAQ's idea (Li et al.,
ICML 2025, arXiv 2504.02692), see ``gptq.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from edge_perception.errors import QuantizationError
from edge_perception.quantization.grid import PER_CHANNEL, WeightFormat


class Scaling(str, Enum):
    """How input channels are scaled, the scales folded into the layer before."""

    NONE = "none"
    AWQ = "awq"
    AWQ_PLAIN = "awq-plain"
    SMOOTHQUANT = "smoothquant"


class Clipping(str, Enum):
    """By what error the ranges of groups are shrunk."""

    NONE = "none"
    SECOND_MOMENT = "second-moment"
    IMATRIX = "imatrix"


class Rounding(str, Enum):
    """How weights become codes."""

    NEAREST = "nearest"
    FEEDBACK = "gptq"


class OddWidth(str, Enum):
    """What becomes of a layer whose width the group size does not divide."""

    REFUSE = "refuse"
    SHRINK_GROUP = "shrink-group"
    KEEP_FLOAT = "keep-float"


class Activations(str, Enum):
    """How activations are quantised (W8A8)."""

    FLOAT = "float"
    DYNAMIC = "dynamic-per-token"
    STATIC = "static"


@dataclass(frozen=True)
class Recipe:
    """One way to quantise a model; ``recipe_for`` makes the named ones."""

    method: str
    form: WeightFormat = field(default_factory=WeightFormat)
    scaling: Scaling = Scaling.NONE
    clipping: Clipping = Clipping.NONE
    rounding: Rounding = Rounding.NEAREST
    activations: Activations = Activations.FLOAT
    odd_width: OddWidth = OddWidth.REFUSE
    damping: float = 0.01
    activation_order: bool = True
    alpha: float = 0.5
    float_target: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.damping < 1.0:
            raise QuantizationError("damping out of range", expected="(0, 1)", got=self.damping)
        if not 0.0 <= self.alpha <= 1.0:
            raise QuantizationError("alpha out of range", expected="[0, 1]", got=self.alpha)
        if not 0.0 <= self.float_target <= 1.0:
            raise QuantizationError(
                "float_target out of range", expected="[0, 1]", got=self.float_target
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What tells two recipes of one method and format apart, for reports."""
        return {
            "clipping": self.clipping.value,
            "float_target": self.float_target,
            "alpha": self.alpha if self.scaling is Scaling.SMOOTHQUANT else None,
            "activations": self.activations.value,
            "odd_width": self.odd_width.value,
            "damping": self.damping,
            "activation_order": self.activation_order,
        }

    @property
    def needs_calibration(self) -> bool:
        """Whether the layers' inputs have to be seen."""
        return (
            self.scaling is not Scaling.NONE
            or self.clipping is not Clipping.NONE
            or self.rounding is Rounding.FEEDBACK
            or self.activations is Activations.STATIC
        )

    def form_for(self, columns: int) -> WeightFormat | None:
        """The weight format of a layer ``columns`` wide, or None to keep it in float.

        Raises ``QuantizationError`` where the group does not fit and the recipe says to refuse.
        """
        group_size = self.form.group_size_for(columns)
        if columns % group_size == 0:
            return self.form
        if self.odd_width is OddWidth.KEEP_FLOAT:
            return None
        fitting = [size for size in (128, 64, 32) if size < group_size and columns % size == 0]
        if self.odd_width is OddWidth.SHRINK_GROUP and fitting:
            return replace(self.form, group_size=fitting[0])
        raise QuantizationError(
            "the group size does not divide a layer's width",
            expected=f"a divisor of {columns}",
            got=group_size,
            mend="Choose a smaller group, or say --odd-width shrink-group or keep-float.",
        )


METHODS: dict[str, dict[str, Any]] = {
    "rtn": {},
    "awq": {"scaling": Scaling.AWQ, "clipping": Clipping.SECOND_MOMENT},
    "awq-plain": {"scaling": Scaling.AWQ_PLAIN, "clipping": Clipping.SECOND_MOMENT},
    "gptq": {"rounding": Rounding.FEEDBACK},
    "awq+gptq": {
        "scaling": Scaling.AWQ,
        "clipping": Clipping.IMATRIX,
        "rounding": Rounding.FEEDBACK,
    },
    "w8a8": {"activations": Activations.DYNAMIC},
    "w8a8-static": {"activations": Activations.STATIC},
    "smoothquant": {"scaling": Scaling.SMOOTHQUANT, "activations": Activations.DYNAMIC},
    "smoothquant-static": {"scaling": Scaling.SMOOTHQUANT, "activations": Activations.STATIC},
}
"""The named methods, as choices in the recipe."""


def recipe_for(method: str, form: WeightFormat | None = None, **choices: Any) -> Recipe:
    """The recipe of a named method; ``choices`` override its own.

    W8A8 methods hold weights in 8 bits, symmetric, per channel. Raises ``QuantizationError`` for
    an unknown name.
    """
    if method not in METHODS:
        raise QuantizationError("unknown method", expected=" or ".join(METHODS), got=method)
    settings = METHODS[method] | choices
    if settings.get("activations", Activations.FLOAT) is not Activations.FLOAT:
        form = WeightFormat(bits=8, group_size=PER_CHANNEL, symmetric=True)
    return Recipe(method=method, form=form or WeightFormat(), **settings)
