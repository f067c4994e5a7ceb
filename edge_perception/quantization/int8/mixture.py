"""Which layers stay float, and why: the edges at first, then what the sweep finds worst.

The edges' privilege ends where they do not suffice. Every layer is then measured alone in INT8, and
the worst go back to float, one by one, until the loss is within bounds or too little would be left
in INT8. Worst is the layer whose squared distance is largest for the arithmetic it would take out
of INT8: errors of layers add up in their squares, and arithmetic is what they compete for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from edge_perception.quantization.int8.candidate import Calibrated, edge_layers, matching_layers
from edge_perception.quantization.int8.judging import Judge
from edge_perception.quantization.int8.sweep import SweepFile, sweep_layers

Tick = Callable[[], None]


@dataclass(frozen=True)
class Mixture:
    """A calibrated model of which some layers stay float, and what that costs.

    ``why_float`` has a reason for each such layer, ``distances`` what the sweep measured, if there
    was one.
    """

    ready: Calibrated
    why_float: Mapping[str, str]
    model: onnx.ModelProto
    loss: float
    distances: Mapping[str, float] = field(default_factory=dict)


def mix(
    ready: Calibrated,
    judge: Judge,
    why_float: Mapping[str, str],
    distances: Mapping[str, float] | None = None,
) -> Mixture:
    """Build and judge the model in which the named layers stay float."""
    model = ready.build(why_float)
    return Mixture(ready, dict(why_float), model, judge.loss(model), distances or {})


def first_mixture(
    ready: Calibrated, judge: Judge, exclude: Sequence[str], *, edges: bool, least_share: float
) -> Mixture:
    """Leave the excluded layers float and, unless ``edges`` are wanted, the edges."""
    why = dict.fromkeys(matching_layers(ready.layers, exclude), "excluded")
    if not edges:
        _keep_float(ready, why, edge_layers(ready.graph, ready.layers), "edge", least_share)
    return mix(ready, judge, why)


def sweep(ready: Calibrated, judge: Judge, file: SweepFile, tick: Tick) -> dict[str, float]:
    """Return how far each layer, alone in INT8, moves the answers."""
    names = [layer.name for layer in ready.layers]
    return sweep_layers(
        names,
        lambda name: judge.distance(ready.build([other for other in names if other != name])),
        file,
        tick,
    )


def restored(
    start: Mixture,
    judge: Judge,
    distances: Mapping[str, float],
    bound: float,
    least_share: float,
    tick: Tick,
) -> Mixture:
    """Put layers back to float, worst first; all that may go back if none is within ``bound``."""
    ready = start.ready

    def harm(name: str) -> tuple[float, str]:
        return -(distances[name] ** 2) / max(ready.macs[name], 1), name

    why = {name: reason for name, reason in start.why_float.items() if reason == "excluded"}
    mixture = start
    for name in sorted(filter(distances.get, distances), key=harm):
        before = len(why)
        _keep_float(ready, why, [name], "restored", least_share)
        if len(why) == before:
            continue
        mixture = mix(ready, judge, why, distances)
        tick()
        if mixture.loss <= bound:
            break
    return mixture


def _keep_float(
    ready: Calibrated, why: dict[str, str], names: Sequence[str], reason: str, least_share: float
) -> None:
    """Leave layers float as far as enough stays in INT8."""
    for name in names:
        if name not in why and ready.share({*why, name}) >= least_share:
            why[name] = reason
