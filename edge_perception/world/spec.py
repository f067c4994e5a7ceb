"""Plain descriptions of a scene: what stands where, what it is made of, how it is lit and seen.

A ``SceneSpec`` is complete: rendering it needs no other randomness than the seeds it holds, and
captions or questions can be generated from it without a picture. Lengths are metres, angles
radians, z points up; colours are linear RGB in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

WORLD_VERSION = 2
"""Raised whenever the same seed would give another picture or another annotation."""

CLASS_NAMES: tuple[str, ...] = (
    "bottle",
    "cup",
    "bowl",
    "can",
    "box",
    "ball",
    "cone",
    "chair",
    "plant",
    "person",
    "pallet",
    "robot",
)
"""The classes a detector is asked for; the index is the class id."""

IMAGE_WIDTH_PX = 640
IMAGE_HEIGHT_PX = 480

Colour = tuple[float, float, float]
Vector = tuple[float, float, float]


class Split(str, Enum):
    """Which half of the world a scene is drawn from; the halves share no mesh, texture or rig."""

    TRAIN = "train"
    HELD_OUT = "held-out"


class Pattern(int, Enum):
    """Procedural textures; the number is what the fragment shader switches on."""

    PLAIN = 0
    MOTTLED = 1
    STRIPES = 2
    CHECKS = 3
    WOOD = 4
    SPECKLE = 5
    PRINT = 6
    BRUSHED = 7
    MARBLE = 8
    DOTS = 9
    CELLS = 10
    BRICKS = 11
    ZIGZAG = 12


@dataclass(frozen=True)
class Material:
    """A surface: two colours mixed by a procedural pattern, and how it reflects.

    ``scale`` is the pattern's frequency in 1/m; ``emission`` multiplies the colour as light.
    """

    pattern: Pattern
    colour: Colour
    second_colour: Colour
    scale: float = 10.0
    contrast: float = 1.0
    roughness: float = 0.6
    metallic: float = 0.0
    emission: float = 0.0
    axis: int = 2
    offset: float = 0.0


@dataclass(frozen=True)
class ObjectSpec:
    """One thing in a scene.

    ``class_name`` is None for distractors and furniture, which carry no label.
    ``position`` is the centre of the footprint on its support; ``size`` the extent along the
    object's own x, y, z. ``colour_name`` names the dominating colour, for questions and captions.
    """

    instance_id: int
    class_name: str | None
    family: str
    shape_seed: int
    colour_name: str
    position: Vector
    yaw: float
    size: Vector
    materials: tuple[Material, ...]


@dataclass(frozen=True)
class Light:
    """A point light with its colour (linear, any intensity) and whether it casts shadows.

    ``position`` is in metres; intensity is what arrives at ``SceneSpec.focus``.
    """

    position: Vector
    colour: Colour
    casts_shadow: bool


@dataclass(frozen=True)
class Lighting:
    """The rig by name, its lights, and the ambient light from above and from below."""

    rig: str
    lights: tuple[Light, ...]
    sky: Colour
    ground: Colour


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera without distortion, in pixels."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int = IMAGE_WIDTH_PX
    height: int = IMAGE_HEIGHT_PX


@dataclass(frozen=True)
class CameraPath:
    """A smooth flight: eye and target are sums of a line and slow sines, t in seconds.

    Each of ``eye`` and ``target`` is (start, velocity, sway amplitude, sway frequency in Hz,
    phase), per axis.
    """

    eye: tuple[Vector, Vector, Vector, Vector, Vector]
    target: tuple[Vector, Vector, Vector, Vector, Vector]
    duration_s: float

    def at(self, time_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eye and target, float64 (3,) metres, at ``time_s`` seconds."""
        return _sway(self.eye, time_s), _sway(self.target, time_s)


def _sway(motion: tuple[Vector, ...], time_s: float) -> NDArray[np.float64]:
    start, velocity, amplitude, frequency_hz, phase = (np.array(part) for part in motion)
    swing = np.sin(2 * np.pi * frequency_hz * time_s + phase)
    return np.asarray(start + velocity * time_s + amplitude * swing, dtype=np.float64)


@dataclass(frozen=True)
class Sensor:
    """What the camera does to the light: exposure time, gain, white balance, noise, JPEG."""

    exposure: float
    exposure_time_s: float
    white_balance: Colour
    read_noise: float
    shot_noise: float
    vignette: float
    jpeg_quality: int


@dataclass(frozen=True)
class SceneSpec:
    """A whole scene, drawn from ``seed`` within ``split``."""

    seed: int
    split: Split
    layout: str
    focus: Vector
    radius: float
    objects: tuple[ObjectSpec, ...]
    lighting: Lighting
    intrinsics: Intrinsics
    path: CameraPath
    sensor: Sensor

    @property
    def labelled(self) -> tuple[ObjectSpec, ...]:
        """The objects that carry a class."""
        return tuple(thing for thing in self.objects if thing.class_name is not None)
