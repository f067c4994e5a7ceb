"""The exponential moving average of a model's weights and normalisation statistics."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class WeightAverage(Generic[Model]):
    """Holds an eval-mode copy of ``model`` that follows it.

    The decay ramps up as 1 - exp(-step / ``ramp``), so that early weights are soon forgotten.
    """

    def __init__(self, model: Model, decay: float = 0.9995, ramp: float = 1000.0) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._ramp = ramp
        self._steps = 0
        self._followed = _float_state(model)
        self._average = _float_state(self.model)

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the followed weights; does not synchronise."""
        self._steps += 1
        decay = self._decay * (1 - math.exp(-self._steps / self._ramp))
        torch._foreach_lerp_(self._average, self._followed, 1 - decay)


def _float_state(model: nn.Module) -> list[Tensor]:
    return [t.detach() for t in model.state_dict().values() if t.is_floating_point()]
