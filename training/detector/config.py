"""The shape of the detector: what a checkpoint stores beside its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class ModelConfig:
    """The knobs of the network.

    ``widths`` are the channels of the stem and of the stages at strides 4, 8, 16 and 32,
    ``depths`` the bottlenecks of these four stages, ``neck_depth`` those of each neck block.
    With ``vit_width`` a plain transformer of that width and ``vit_depth`` layers takes the place
    of backbone and neck (``vit.py``); of ``widths`` the last three, the head's, remain.
    """

    class_names: tuple[str, ...]
    height: int = 480
    width: int = 640
    widths: tuple[int, int, int, int, int] = (16, 32, 64, 128, 240)
    depths: tuple[int, int, int, int] = (1, 2, 2, 1)
    neck_depth: int = 1
    head_width: int = 48
    activation: str = "relu"
    vit_width: int = 0
    vit_depth: int = 12

    def __post_init__(self) -> None:
        if self.height % STRIDES[-1] or self.width % STRIDES[-1]:
            raise ValueError(f"input size must be a multiple of 32, got {self.width}x{self.height}")
        if not self.class_names:
            raise ValueError("a detector needs at least one class name")

    def to_json(self) -> str:
        """Serialise for a checkpoint's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read what :meth:`to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        lists = ("class_names", "widths", "depths")
        fields.update({key: tuple(fields[key]) for key in lists})
        return cls(**fields)
