"""How a detector is to be quantised: all that a user may choose."""

from __future__ import annotations

from dataclasses import dataclass

from edge_perception.errors import ConfigError
from edge_perception.quantization.int8.calibrators import CALIBRATORS

EQUALISE = ("if_needed", "always", "never")


@dataclass(frozen=True)
class Recipe:
    """How to quantise.

    ``frames`` calibrate, where there are fewer their variants, too; up to ``judging`` more judge.
    ``max_drop`` is in points of the judge's unit, None for its default. ``least_share`` (0..1) of
    the multiply-accumulates stays in INT8 whatever the loss. ``exclude`` are shell patterns of
    layers to leave float; ``edges`` quantises the first and the predicting layers too.
    ``smooth_alpha`` 0 folds no layer norm. ``equalise`` evens out what convolutions read,
    "if_needed" where too much is lost without.
    """

    calibrator: str = "mse"
    frames: int = 128
    judging: int = 32
    seed: int = 0
    max_drop: float | None = None
    least_share: float = 0.9
    exclude: tuple[str, ...] = ()
    edges: bool = False
    smooth_alpha: float = 0.5
    equalise: str = "if_needed"
    correct_biases: bool = True
    sweep: bool = False
    compact: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("calibrator", tuple(CALIBRATORS)), ("equalise", EQUALISE)):
            if getattr(self, name) not in choices:
                expected = f"one of {', '.join(choices)}"
                raise ConfigError(name, expected=expected, got=getattr(self, name))
        if self.frames < 1 or self.judging < 0:
            raise ConfigError("frames", expected="at least one", got=(self.frames, self.judging))
        if not (0 <= self.least_share <= 1 and 0 <= self.smooth_alpha <= 1):
            raise ConfigError(
                "least_share and smooth_alpha",
                expected="0 to 1",
                got=(self.least_share, self.smooth_alpha),
            )
