"""Colours and surfaces, split so that held-out scenes show shades and patterns training never saw.

Every colour name owns an interval of hue (for greys, of brightness); the first 60% of it belong
to training, the last 30% to held-out scenes, with a gap between. Patterns are split by kind.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

from numpy.random import Generator

from edge_perception.world.spec import Colour, Material, Pattern, Split


@dataclass(frozen=True)
class Shade:
    """Intervals of hue (degrees), saturation and value of one colour name."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


COLOURS: dict[str, Shade] = {
    "red": Shade((-12, 10), (0.75, 0.95), (0.6, 0.9)),
    "orange": Shade((18, 34), (0.8, 1.0), (0.8, 1.0)),
    "yellow": Shade((46, 60), (0.7, 0.95), (0.8, 1.0)),
    "green": Shade((95, 150), (0.55, 0.9), (0.35, 0.7)),
    "blue": Shade((205, 238), (0.65, 0.95), (0.45, 0.85)),
    "purple": Shade((262, 292), (0.45, 0.8), (0.4, 0.7)),
    "pink": Shade((322, 344), (0.4, 0.65), (0.85, 1.0)),
    "brown": Shade((18, 34), (0.5, 0.7), (0.3, 0.5)),
    "white": Shade((0, 360), (0.0, 0.06), (0.86, 1.0)),
    "grey": Shade((0, 360), (0.0, 0.08), (0.4, 0.62)),
    "black": Shade((0, 360), (0.0, 0.1), (0.05, 0.16)),
}

_GREYS = ("white", "grey", "black")

OBJECT_PATTERNS: dict[Split, tuple[Pattern, ...]] = {
    Split.TRAIN: (Pattern.MOTTLED, Pattern.STRIPES, Pattern.CHECKS, Pattern.SPECKLE),
    Split.HELD_OUT: (Pattern.BRUSHED, Pattern.MARBLE, Pattern.DOTS, Pattern.CELLS),
}
GROUND_PATTERNS: dict[Split, tuple[Pattern, ...]] = {
    Split.TRAIN: (Pattern.WOOD, Pattern.MOTTLED, Pattern.CHECKS, Pattern.SPECKLE),
    Split.HELD_OUT: (Pattern.BRICKS, Pattern.MARBLE, Pattern.BRUSHED, Pattern.CELLS),
}
PRINT_PATTERN: dict[Split, Pattern] = {Split.TRAIN: Pattern.PRINT, Split.HELD_OUT: Pattern.ZIGZAG}
GRAIN_PATTERN: dict[Split, Pattern] = {Split.TRAIN: Pattern.WOOD, Split.HELD_OUT: Pattern.BRUSHED}

_SPLIT_PART: dict[Split, tuple[float, float]] = {
    Split.TRAIN: (0.0, 0.6),
    Split.HELD_OUT: (0.7, 1.0),
}


def colour(rng: Generator, split: Split, name: str) -> Colour:
    """A linear RGB colour of that name, from the split's part of the name's interval."""
    shade = COLOURS[name]
    part = rng.uniform(*_SPLIT_PART[split])
    free = rng.random()
    hue_at, value_at = (free, part) if name in _GREYS else (part, free)
    hue = shade.hue[0] + (shade.hue[1] - shade.hue[0]) * hue_at
    value = shade.value[0] + (shade.value[1] - shade.value[0]) * value_at
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1.0, rng.uniform(*shade.saturation), value)
    return (red**2.2, green**2.2, blue**2.2)


_SAFETY = ("orange", "red", "yellow")
_CLOTHES = ("red", "orange", "yellow", "green", "blue", "purple", "white", "grey", "black")
_FREE = tuple(name for name in COLOURS if name != "brown")

ROLES: dict[str, tuple[str, str, str, str]] = {
    "bottle": ("gloss", "print", "trim", "rubber"),
    "cup": ("gloss", "trim", "trim", "rubber"),
    "bowl": ("gloss", "trim", "trim", "rubber"),
    "can": ("metal", "print", "metal", "rubber"),
    "box": ("card", "print", "tape", "rubber"),
    "ball": ("paint", "trim", "trim", "rubber"),
    "cone": ("safety", "reflector", "trim", "rubber"),
    "chair": ("wood", "paint", "metal", "rubber"),
    "plant": ("leaf", "paint", "trim", "soil"),
    "person": ("cloth", "skin", "cloth2", "hair"),
    "pallet": ("wood", "wood", "wood", "rubber"),
    "robot": ("gloss", "glow", "metal", "rubber"),
    "clutter": ("paint", "trim", "trim", "rubber"),
}
"""What each of a class's four material slots is made of."""

MAIN_SLOT: dict[str, int] = {"can": 1, "chair": 1, "plant": 1}
"""The slot whose colour names the object, where it is not the first."""


def _named(rng: Generator, role: str) -> str:
    names = {
        "safety": _SAFETY,
        "reflector": ("white",),
        "leaf": ("green",),
        "wood": ("brown", "brown", "brown", "grey", "white"),
        "card": ("brown", "brown", "brown", "white", "grey", "blue", "yellow", "red", "green"),
        "tape": ("brown", "white", "grey", "red", "blue"),
        "cloth": _CLOTHES,
        "cloth2": ("blue", "black", "grey", "brown", "green"),
        "skin": ("brown",),
        "hair": ("black", "brown", "yellow", "white"),
        "rubber": ("black",),
        "soil": ("black",),
        "metal": ("grey", "white"),
        "glow": ("blue", "green", "orange", "red", "white"),
    }.get(role, _FREE)
    return str(names[int(rng.integers(len(names)))])


def role_material(rng: Generator, split: Split, role: str) -> tuple[str, Material]:
    """The colour name and the surface of one material slot."""
    name = _named(rng, role)
    base, other = colour(rng, split, name), colour(rng, split, _named(rng, "trim"))
    dim: Colour = (base[0] * 0.55, base[1] * 0.55, base[2] * 0.55)
    patterns = OBJECT_PATTERNS[split]
    offset = rng.uniform(0, 50)
    axis = int(rng.integers(3))
    scale = rng.uniform(12, 45)
    pattern, second, contrast = Pattern.PLAIN, dim, rng.uniform(0.0, 0.5)
    roughness, metallic, emission = rng.uniform(0.35, 0.9), 0.0, 0.0
    if role in ("gloss", "paint", "cloth", "trim"):
        if rng.random() < 0.45:
            pattern = patterns[int(rng.integers(len(patterns)))]
            second = other if rng.random() < 0.5 else dim
            contrast = rng.uniform(0.3, 1.0)
        if role == "gloss":
            roughness = rng.uniform(0.08, 0.5)
    elif role == "print":
        pattern, second, contrast = PRINT_PATTERN[split], other, 1.0
        roughness, scale, axis = rng.uniform(0.2, 0.7), rng.uniform(18, 45), 2
    elif role in ("wood", "card"):
        pattern, contrast, scale = GRAIN_PATTERN[split], rng.uniform(0.2, 0.7), rng.uniform(8, 25)
        if role == "card":
            contrast *= 0.4
            base = (base[0] * 1.3, base[1] * 1.3, base[2] * 1.3) if name == "brown" else base
    elif role == "metal":
        metallic, roughness = 1.0, rng.uniform(0.15, 0.45)
    elif role == "skin":
        tone = rng.uniform(0.12, 0.75)
        base, second = (tone, tone * 0.66, tone * 0.5), (tone * 0.9, tone * 0.55, tone * 0.4)
    elif role == "glow":
        emission = rng.uniform(1.5, 4.0)
    elif role == "leaf":
        pattern, contrast = patterns[0], rng.uniform(0.2, 0.8)
    return name, Material(
        pattern, base, second, scale, contrast, roughness, metallic, emission, axis, offset
    )


def ground_material(rng: Generator, split: Split, *, wall: bool = False) -> Material:
    """A floor, table top or wall: muted colours in a large pattern."""
    name = str(rng.choice(["grey", "white", "brown", "grey", "brown", "blue", "green", "yellow"]))
    strong = colour(rng, split, name)
    grey = sum(strong) / 3
    fade = rng.uniform(0.3, 0.9)
    base: Colour = tuple(grey + (channel - grey) * fade for channel in strong)  # type: ignore[assignment]
    mix = rng.uniform(0.35, 0.85)
    second: Colour = (base[0] * mix, base[1] * mix, base[2] * mix)
    patterns = GROUND_PATTERNS[split]
    pattern = patterns[int(rng.integers(len(patterns)))]
    if wall and rng.random() < 0.5:
        pattern = Pattern.PLAIN
    return Material(
        pattern,
        base,
        second,
        scale=rng.uniform(1.2, 5.0),
        contrast=rng.uniform(0.3, 1.0),
        roughness=rng.uniform(0.25, 0.95),
        axis=2,
        offset=rng.uniform(0, 50),
    )


def materials_for(rng: Generator, split: Split, kind: str) -> tuple[str, tuple[Material, ...]]:
    """The colour name and the four slot materials of an object of that class (or "clutter")."""
    drawn = [role_material(rng, split, role) for role in ROLES[kind]]
    return drawn[MAIN_SLOT.get(kind, 0)][0], tuple(material for _, material in drawn)
