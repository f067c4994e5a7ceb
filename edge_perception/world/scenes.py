"""Scenes from seeds: a cluttered table in a room, or an aisle between racks.

Everything is placed at rest and free of collisions by rejection on footprint circles; occlusion
comes from crowding and from the low view of a robot's camera, never from interpenetration.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.random import Generator

from edge_perception.world.families import FAMILIES, build_shape
from edge_perception.world.lighting import make_lighting
from edge_perception.world.materials import ground_material, materials_for
from edge_perception.world.spec import (
    IMAGE_HEIGHT_PX,
    IMAGE_WIDTH_PX,
    CameraPath,
    Intrinsics,
    Material,
    ObjectSpec,
    SceneSpec,
    Sensor,
    Split,
    Vector,
)

_SPLIT_STREAM = {Split.TRAIN: 0, Split.HELD_OUT: 1}

_TABLETOP = ("bottle", "cup", "bowl", "can", "box", "ball", "plant")
_FLOOR = ("cone", "chair", "plant", "person", "pallet", "robot", "cone", "pallet", "box", "ball")
_CLUSTERED = 0.85
"""How often an object is put close beside another: crowding is what makes occlusion."""
_FLOOR_SCALE = {"box": (1.8, 3.0), "ball": (1.3, 2.4), "plant": (1.8, 3.0)}


@dataclass
class _Builder:
    """Collects objects of one scene; ``circles`` are the taken footprints (x, y, radius)."""

    rng: Generator
    split: Split
    objects: list[ObjectSpec] = field(default_factory=list)
    circles: list[tuple[float, float, float]] = field(default_factory=list)
    labelled: int = 0

    def slab(self, centre: Vector, size: Vector, material: Material, name: str) -> None:
        """Furniture: a box by its centre, without a label."""
        low: Vector = (centre[0], centre[1], centre[2] - size[2] / 2)
        self.objects.append(ObjectSpec(0, None, "slab", 0, name, low, 0.0, size, (material,) * 4))

    def shape(self, kind: str, scale: float) -> tuple[str, int, Vector]:
        """Family, shape seed and scaled size of a new object of a class or of "clutter"."""
        families = FAMILIES[self.split][kind]
        family = families[int(self.rng.integers(len(families)))].__name__
        seed = int(self.rng.integers(2**31))
        x, y, z = (float(side) * scale for side in build_shape(family, seed).size)
        return family, seed, (x, y, z)

    def put(self, kind: str, drawn: tuple[str, int, Vector], position: Vector, yaw: float) -> None:
        """Add an object at rest at ``position``."""
        family, seed, size = drawn
        name, materials = materials_for(self.rng, self.split, kind)
        labelled = kind != "clutter"
        self.labelled += labelled
        self.objects.append(
            ObjectSpec(
                self.labelled if labelled else 0,
                kind if labelled else None,
                family,
                seed,
                name,
                position,
                yaw,
                size,
                materials,
            )
        )

    def _spot(
        self, region: tuple[float, float, float, float], radius: float
    ) -> tuple[float, float]:
        """A place to try: anywhere in the region or, more often, close beside what stands there."""
        rng = self.rng
        if self.circles and rng.random() < _CLUSTERED:
            x, y, taken = self.circles[int(rng.integers(len(self.circles)))]
            reach, turn = (taken + radius) * rng.uniform(1.01, 1.2), rng.uniform(0, 2 * np.pi)
            x, y = x + reach * float(np.cos(turn)), y + reach * float(np.sin(turn))
            if region[0] <= x <= region[1] and region[2] <= y <= region[3]:
                return x, y
        return float(rng.uniform(*region[:2])), float(rng.uniform(*region[2:]))

    def scatter(
        self,
        kind: str,
        region: tuple[float, float, float, float],
        height: float,
        scale: float,
        *,
        attempts: int = 25,
    ) -> bool:
        """Try to place one object in the (x0, x1, y0, y1) region at ``height``."""
        drawn = self.shape(kind, scale)
        radius = float(np.hypot(drawn[2][0], drawn[2][1])) / 2
        for _ in range(attempts):
            x, y = self._spot(region, radius)
            if all(np.hypot(x - cx, y - cy) > radius + r for cx, cy, r in self.circles):
                self.circles.append((x, y, radius))
                self.put(kind, drawn, (x, y, height), self.rng.uniform(0, 2 * np.pi))
                return True
        return False


def _shuffled(rng: Generator, kinds: tuple[str, ...], count: int) -> list[str]:
    """``count`` classes, each about equally often."""
    repeated = list(kinds) * (count // len(kinds) + 1)
    return [str(kind) for kind in rng.permutation(repeated)[:count]]


def _room(builder: _Builder, x: tuple[float, float], y: tuple[float, float], height: float) -> None:
    """Floor, two side walls, an end wall and pictures on it."""
    rng, split = builder.rng, builder.split
    depth, width = x[1] - x[0], y[1] - y[0]
    middle_x, middle_y = sum(x) / 2, sum(y) / 2
    builder.slab(
        (middle_x, middle_y, -0.05), (depth, width, 0.1), ground_material(rng, split), "floor"
    )
    wall = ground_material(rng, split, wall=True)
    for edge in y:
        builder.slab((middle_x, edge, height / 2), (depth, 0.1, height), wall, "wall")
    for edge in x:
        builder.slab((edge, middle_y, height / 2), (0.1, width, height), wall, "wall")
    ceiling = ground_material(rng, split, wall=True)
    builder.slab((middle_x, middle_y, height), (depth, width, 0.1), ceiling, "wall")
    for _ in range(int(rng.integers(0, 4))):
        across, up = rng.uniform(*y) * 0.8, rng.uniform(0.9, height * 0.85)
        size = (0.04, rng.uniform(0.3, 1.0), rng.uniform(0.25, 0.7))
        builder.slab((x[1] - 0.06, across, up), size, ground_material(rng, split), "picture")


def _table(builder: _Builder) -> tuple[Vector, float]:
    """A crowded table with things on the floor behind; gives focus and radius."""
    rng, split = builder.rng, builder.split
    depth, width, top = rng.uniform(0.7, 1.1), rng.uniform(1.1, 1.7), rng.uniform(0.68, 0.8)
    back = rng.uniform(2.2, 4.2)
    _room(builder, (-4.0, back), (-rng.uniform(2.2, 3.5), rng.uniform(2.2, 3.5)), 2.8)
    board = ground_material(rng, split)
    builder.slab((0, 0, top - 0.02), (depth, width, 0.04), board, "table")
    for sx in (-1, 1):
        for sy in (-1, 1):
            leg = (sx * depth * 0.45, sy * width * 0.45, top / 2 - 0.02)
            builder.slab(leg, (0.05, 0.05, top - 0.04), board, "table leg")
    crowd = rng.uniform(0.55, 0.8)
    region = (
        -depth * 0.42 * crowd,
        depth * 0.42 * crowd,
        -width * 0.42 * crowd,
        width * 0.42 * crowd,
    )
    for kind in _shuffled(rng, _TABLETOP, int(rng.integers(12, 23))):
        builder.scatter(kind, region, top, rng.uniform(0.85, 1.2))
    for _ in range(int(rng.integers(1, 5))):
        builder.scatter("clutter", region, top, rng.uniform(0.7, 1.6))
    builder.circles.clear()
    behind = (depth / 2 + 0.6, back - 0.4, -1.9, 1.9)
    for kind in _shuffled(
        rng, ("chair", "person", "robot", "cone", "plant"), int(rng.integers(2, 6))
    ):
        builder.scatter(kind, behind, 0.0, _floor_scale(rng, kind))
    return (0.0, 0.0, top), 1.3


def _floor_scale(rng: Generator, kind: str) -> float:
    return float(rng.uniform(*_FLOOR_SCALE.get(kind, (0.9, 1.12))))


def _rack(builder: _Builder, x: float, y: float, length: float) -> None:
    """A shelf rack along a wall, its boards holding small things."""
    rng, split = builder.rng, builder.split
    steel = materials_for(rng, split, "clutter")[1][1]
    board = ground_material(rng, split)
    depth, levels = rng.uniform(0.35, 0.5), np.cumsum(rng.uniform(0.4, 0.55, size=3)) - 0.2
    for end in (0.0, length):
        for front in (-0.5, 0.5):
            builder.slab((x + end, y + front * depth, 0.85), (0.05, 0.05, 1.7), steel, "rack post")
    for level in levels:
        builder.slab((x + length / 2, y, level - 0.015), (length, depth, 0.03), board, "rack board")
        builder.circles.clear()
        region = (x + 0.12, x + length - 0.12, y - depth * 0.3, y + depth * 0.3)
        for kind in _shuffled(
            rng, ("bottle", "cup", "bowl", "can", "box", "ball"), int(rng.integers(1, 6))
        ):
            builder.scatter(kind, region, float(level), rng.uniform(0.95, 1.35), attempts=8)
        if rng.random() < 0.5:
            builder.scatter("clutter", region, float(level), rng.uniform(1.0, 1.8), attempts=8)


def _aisle(builder: _Builder) -> tuple[Vector, float]:
    """A corridor along x with racks at its sides and things in the way; gives focus and radius."""
    rng = builder.rng
    half, length = rng.uniform(1.3, 2.1), rng.uniform(4.8, 7.0)
    _room(builder, (-3.0, length), (-half - 0.3, half + 0.3), 3.0)
    for side in (-1, 1):
        if rng.random() < 0.65:
            _rack(builder, rng.uniform(0.8, 2.2), side * half, rng.uniform(1.2, 2.2))
    builder.circles.clear()
    inner = half - 0.45
    for kind in _shuffled(rng, _FLOOR, int(rng.integers(11, 19))):
        near = 1.3 if kind not in ("person", "pallet") else 2.0
        builder.scatter(kind, (near, length - 0.6, -inner, inner), 0.0, _floor_scale(rng, kind))
    for kind in _shuffled(rng, ("can", "bottle", "bowl", "cup"), int(rng.integers(0, 4))):
        builder.scatter(kind, (0.9, 2.4, -inner, inner), 0.0, rng.uniform(1.1, 1.4))
    for _ in range(int(rng.integers(1, 4))):
        builder.scatter("clutter", (1.0, 4.0, -inner, inner), 0.0, rng.uniform(1.5, 3.0))
    return (2.5, 0.0, 0.4), 4.0


def _table_path(rng: Generator, focus: Vector, duration_s: float) -> CameraPath:
    reach, lift = rng.uniform(0.85, 1.4), np.deg2rad(rng.uniform(7, 27))
    turn = np.pi + rng.uniform(-0.55, 0.55)
    eye: Vector = (
        float(reach * np.cos(turn) * np.cos(lift)),
        float(reach * np.sin(turn) * np.cos(lift)),
        float(focus[2] + reach * np.sin(lift) + 0.05),
    )
    way = rng.uniform((-0.12, -0.45, -0.05), (0.15, 0.45, 0.15)) / duration_s
    drift: Vector = (float(way[0]), float(way[1]), float(way[2]))
    gaze: Vector = (
        rng.uniform(-0.05, 0.3),
        rng.uniform(-0.15, 0.15),
        focus[2] + rng.uniform(-0.02, 0.12),
    )
    return _swaying(rng, eye, drift, gaze, (0.0, 0.0, 0.0), (0.05, 0.09, 0.02), duration_s)


def _aisle_path(rng: Generator, duration_s: float) -> CameraPath:
    eye: Vector = (rng.uniform(-1.6, 0.0), rng.uniform(-0.4, 0.4), rng.uniform(0.3, 1.1))
    speed = rng.uniform(0.1, 1.0) / max(duration_s, 1.0)
    gaze: Vector = (eye[0] + 3.5, rng.uniform(-0.6, 0.6), eye[2] * rng.uniform(0.4, 0.9))
    drift: Vector = (speed, 0.0, 0.0)
    return _swaying(rng, eye, drift, gaze, drift, (0.03, 0.08, 0.012), duration_s)


def _swaying(
    rng: Generator,
    eye: Vector,
    eye_velocity: Vector,
    gaze: Vector,
    gaze_velocity: Vector,
    sway: Vector,
    duration_s: float,
) -> CameraPath:
    def motion(start: Vector, velocity: Vector, amplitude: float) -> tuple[Vector, ...]:
        swing = tuple(float(part * amplitude) for part in sway)
        frequency = tuple(float(f) for f in rng.uniform(0.08, 0.35, size=3))
        phase = tuple(float(p) for p in rng.uniform(0, 2 * np.pi, size=3))
        return (start, velocity, swing, frequency, phase)  # type: ignore[return-value]

    return CameraPath(
        motion(eye, eye_velocity, 1.0),  # type: ignore[arg-type]
        motion(gaze, gaze_velocity, 1.5),  # type: ignore[arg-type]
        duration_s,
    )


def _sensor(rng: Generator) -> Sensor:
    red, blue = rng.uniform(0.88, 1.12, size=2)
    return Sensor(
        exposure=float(rng.uniform(0.75, 1.5)),
        exposure_time_s=float(rng.choice([0.002, 0.01, 0.02, 0.033])),
        white_balance=(float(red), 1.0, float(blue)),
        read_noise=float(rng.uniform(0.002, 0.015)),
        shot_noise=float(rng.uniform(0.002, 0.03)),
        vignette=float(rng.uniform(0.0, 0.35)),
        jpeg_quality=int(rng.integers(70, 96)),
    )


def _path(rng: Generator, layout: str, focus: Vector, duration_s: float) -> CameraPath:
    return (
        _table_path(rng, focus, duration_s) if layout == "table" else _aisle_path(rng, duration_s)
    )


def _intrinsics(rng: Generator) -> Intrinsics:
    focal = IMAGE_WIDTH_PX / 2 / float(np.tan(np.deg2rad(rng.uniform(50, 68)) / 2))
    return Intrinsics(focal, focal, IMAGE_WIDTH_PX / 2, IMAGE_HEIGHT_PX / 2)


def another_view(scene: SceneSpec, index: int) -> SceneSpec:
    """The same objects under new light, seen by another camera on another path."""
    rng = np.random.default_rng([scene.seed, _SPLIT_STREAM[scene.split], index])
    return replace(
        scene,
        path=_path(rng, scene.layout, scene.focus, scene.path.duration_s),
        intrinsics=_intrinsics(rng),
        lighting=make_lighting(rng, scene.split, scene.focus),
        sensor=_sensor(rng),
    )


def make_scene(
    seed: int, split: Split, *, layout: str | None = None, duration_s: float = 8.0
) -> SceneSpec:
    """The scene of ``seed`` in ``split``; ``layout`` ("table" or "aisle") is drawn when None."""
    rng = np.random.default_rng([seed, _SPLIT_STREAM[split]])
    drawn = "table" if rng.random() < 0.5 else "aisle"
    layout = layout or drawn
    builder = _Builder(rng, split)
    focus, radius = _table(builder) if layout == "table" else _aisle(builder)
    return SceneSpec(
        seed=seed,
        split=split,
        layout=layout,
        focus=focus,
        radius=radius,
        objects=tuple(builder.objects),
        lighting=make_lighting(rng, split, focus),
        intrinsics=_intrinsics(rng),
        path=_path(rng, layout, focus, duration_s),
        sensor=_sensor(rng),
    )
