"""Light rigs; training and held-out scenes share none."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from edge_perception.world.spec import Colour, Light, Lighting, Split, Vector

RIGS: dict[Split, tuple[str, ...]] = {
    Split.TRAIN: ("ceiling", "window", "panels"),
    Split.HELD_OUT: ("desk_lamp", "twin_spots"),
}


def _tint(rng: Generator, warmth: tuple[float, float], strength: float) -> Colour:
    """White light shifted towards warm (positive) or cool (negative)."""
    shift = rng.uniform(*warmth)
    return (strength * (1 + 0.35 * shift), strength, strength * (1 - 0.45 * shift))


def _around(rng: Generator, focus: Vector, reach: float, elevation: tuple[float, float]) -> Vector:
    turn, lift = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(*elevation))
    return (
        focus[0] + reach * float(np.cos(turn) * np.cos(lift)),
        focus[1] + reach * float(np.sin(turn) * np.cos(lift)),
        focus[2] + reach * float(np.sin(lift)),
    )


def make_lighting(rng: Generator, split: Split, focus: Vector) -> Lighting:
    """A rig of the split around ``focus``, with random positions, tints and strengths."""
    rig = str(rng.choice(RIGS[split]))
    lights: tuple[Light, ...]
    ambient = rng.uniform(0.15, 0.5)
    if rig == "ceiling":
        key = Light(
            _around(rng, focus, 2.4, (60, 88)), _tint(rng, (-0.1, 0.5), rng.uniform(1.3, 2.6)), True
        )
        fill = Light(
            _around(rng, focus, 3.0, (25, 50)),
            _tint(rng, (-0.5, 0.5), rng.uniform(0.1, 0.7)),
            False,
        )
        lights = (key, fill)
    elif rig == "window":
        key = Light(
            _around(rng, focus, 5.0, (25, 45)), _tint(rng, (-0.8, 0.1), rng.uniform(1.2, 3.0)), True
        )
        fill = Light(
            _around(rng, focus, 3.0, (50, 80)), _tint(rng, (0.0, 0.6), rng.uniform(0.1, 0.6)), True
        )
        lights = (key, fill)
    elif rig == "panels":
        lights = tuple(
            Light(
                _around(rng, focus, 3.0, (45, 75)),
                _tint(rng, (-0.3, 0.3), rng.uniform(0.6, 1.5)),
                at < 2,
            )
            for at in range(3)
        )
    elif rig == "desk_lamp":
        key = Light(
            _around(rng, focus, 1.9, (40, 60)), _tint(rng, (0.55, 1.0), rng.uniform(1.2, 2.6)), True
        )
        fill = Light(
            _around(rng, focus, 4.0, (20, 60)),
            _tint(rng, (-0.6, 0.0), rng.uniform(0.2, 0.6)),
            False,
        )
        lights = (key, fill)
    else:
        first = _around(rng, focus, 3.5, (35, 60))
        second: Vector = (2 * focus[0] - first[0], 2 * focus[1] - first[1], first[2])
        tints = [
            _tint(rng, (0.2, 0.9), rng.uniform(0.7, 1.6)),
            _tint(rng, (-0.9, -0.2), rng.uniform(0.7, 1.6)),
        ]
        lights = (Light(first, tints[0], True), Light(second, tints[1], True))
    return Lighting(
        rig, lights, _tint(rng, (-0.5, 0.3), ambient), _tint(rng, (0.0, 0.6), ambient * 0.5)
    )
