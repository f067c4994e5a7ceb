"""Mesh families of potted plants; slots are 0 leaf, 1 pot, 2 trim, 3 soil and stem.

Each function draws one mesh of its family from a generator, in metres, standing on z = 0.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from edge_perception.world.mesh import (
    Mesh,
    capsule,
    cylinder,
    ellipsoid,
    join,
    lathe,
    leaf,
    tube,
)


def _pot(rng: Generator, radius: float, height: float) -> Mesh:
    foot = rng.uniform(0.65, 0.9)
    return lathe(
        [
            (1e-4, 0),
            (radius * foot, 0),
            (radius, height),
            (radius * 1.08, height),
            (radius * 1.08, height * 0.86),
        ],
        1,
    )


def _soil(radius: float, height: float) -> Mesh:
    return cylinder(radius * 0.96, 0.004, 3).moved((0, 0, height * 0.94))


def _rosette(
    rng: Generator, count: int, length: float, width: float, droop: tuple[float, float], at: float
) -> Mesh:
    blades = []
    for index in range(count):
        blade = leaf(
            length * rng.uniform(0.7, 1.1), width * rng.uniform(0.8, 1.2), rng.uniform(*droop)
        )
        lift = rng.uniform(0.3, 1.35)
        blades.append(blade.rotated(1, -lift).rotated(2, 2.4 * index + rng.uniform(-0.3, 0.3)))
    return join(*blades).moved((0, 0, at))


def plant_broadleaf(rng: Generator) -> Mesh:
    """Broad leaves that droop."""
    r, h = rng.uniform(0.06, 0.09), rng.uniform(0.08, 0.13)
    blades = _rosette(rng, int(rng.integers(12, 20)), rng.uniform(0.16, 0.24), 0.085, (0.6, 1.4), h)
    return join(_pot(rng, r, h), _soil(r, h), blades)


def plant_spiky(rng: Generator) -> Mesh:
    """Stiff narrow blades."""
    r, h = rng.uniform(0.06, 0.09), rng.uniform(0.07, 0.12)
    blades = _rosette(rng, int(rng.integers(16, 30)), rng.uniform(0.18, 0.28), 0.03, (0.0, 0.5), h)
    return join(_pot(rng, r, h), _soil(r, h), blades)


def plant_bush(rng: Generator) -> Mesh:
    """A ball of small leaves."""
    r, h = rng.uniform(0.06, 0.09), rng.uniform(0.08, 0.12)
    blobs = []
    for _ in range(int(rng.integers(90, 140))):
        way = rng.normal(size=3)
        way *= 0.12 * rng.uniform(0.55, 1.0) / np.linalg.norm(way)
        blade = leaf(0.06, 0.045, rng.uniform(0, 1)).rotated(1, rng.uniform(-1.5, 1.0))
        blobs.append(blade.rotated(2, rng.uniform(0, 6.28)).moved(np.add(way, (0, 0, h + 0.13))))
    return join(
        _pot(rng, r, h), _soil(r, h), cylinder(0.01, 0.12, 3).moved((0, 0, h * 0.9)), *blobs
    )


def plant_palm(rng: Generator) -> Mesh:
    """Fronds on a stem."""
    r, h, trunk = rng.uniform(0.06, 0.085), rng.uniform(0.08, 0.12), rng.uniform(0.1, 0.2)
    fronds = _rosette(
        rng, int(rng.integers(9, 15)), rng.uniform(0.2, 0.28), 0.05, (1.2, 2.2), h + trunk
    )
    stem = cylinder(0.014, trunk + 0.02, 3).moved((0, 0, h * 0.9))
    return join(_pot(rng, r, h), _soil(r, h), stem, fronds)


def plant_fern(rng: Generator) -> Mesh:
    """Arching stems with leaflets."""
    r, h = rng.uniform(0.06, 0.085), rng.uniform(0.08, 0.12)
    parts = [_pot(rng, r, h), _soil(r, h)]
    for index in range(int(rng.integers(8, 13))):
        lift, turn, length = rng.uniform(0.7, 1.4), 2.4 * index, rng.uniform(0.16, 0.26)
        along = np.linspace(0, 1, 8)[:, None]
        reach = length * along * (np.cos(lift) + 0.5 * along)
        rise = h + length * along * (np.sin(lift) - 0.35 * along)
        path = np.concatenate([reach * np.cos(turn), reach * np.sin(turn), rise], axis=1)
        parts.append(tube(path, 0.003, 0, sides=5))
        for point in path[2:]:
            for side in (-1, 1):
                blade = leaf(0.05, 0.022, 0.5, steps=3).rotated(2, turn + side * 1.1)
                parts.append(blade.moved(point))
    return join(*parts)


def _square_pot(rng: Generator, radius: float, height: float) -> Mesh:
    foot = rng.uniform(0.75, 1.0)
    outline = [(1e-4, 0), (radius * foot, 0), (radius, height), (radius * 0.88, height)]
    return lathe(outline, 1, squareness=7.0)


def _any_pot(rng: Generator, radius: float, height: float) -> Mesh:
    """A round or a square pot with its soil."""
    pot = _pot if rng.random() < 0.5 else _square_pot
    return join(pot(rng, radius, height), _soil(radius, height))


def _crown(rng: Generator, count: int, radius: float, size: float, at: float) -> Mesh:
    """Leaves turned every way in an egg-shaped cloud about (0, 0, ``at``)."""
    blades, stretch = [], rng.uniform(0.7, 1.3)
    for _ in range(count):
        way = rng.normal(size=3)
        way *= radius * rng.uniform(0.35, 1.0) ** 0.5 / np.linalg.norm(way)
        blade = leaf(size * rng.uniform(0.7, 1.3), size * 0.6, rng.uniform(0, 1.2), steps=3)
        blade = blade.rotated(1, rng.uniform(-1.5, 1.2)).rotated(2, rng.uniform(0, 6.28))
        blades.append(blade.moved(way * (1, 1, stretch)))
    return join(*blades).moved((0, 0, at))


def plant_tree(rng: Generator) -> Mesh:
    """A leafy crown on a bare trunk."""
    r, h, trunk = rng.uniform(0.07, 0.11), rng.uniform(0.09, 0.15), rng.uniform(0.1, 0.3)
    crown = rng.uniform(0.1, 0.17)
    leaves = _crown(rng, int(rng.integers(70, 120)), crown, 0.07, h + trunk + crown * 0.8)
    stem = tube([(0, 0, h * 0.9), (0.01, 0.01, h + trunk * 0.5), (0, 0, h + trunk * 1.3)], 0.01, 3)
    return join(_any_pot(rng, r, h), stem, leaves)


def plant_cactus(rng: Generator) -> Mesh:
    """A ribbed column, at times with arms."""
    r, h, tall = rng.uniform(0.06, 0.09), rng.uniform(0.07, 0.12), rng.uniform(0.1, 0.32)
    girth = rng.uniform(0.03, 0.06)
    turn = np.linspace(0, np.pi / 2, 6)
    profile = [(girth * 0.8, 0), (girth, tall * 0.5)]
    profile += [(girth * np.cos(t) + 1e-4, tall + girth * np.sin(t)) for t in turn]
    column = lathe(profile, 0, segments=48, ripple=(int(rng.integers(7, 12)), 0.12))
    parts = [_any_pot(rng, r, h), column.moved((0, 0, h * 0.93))]
    for side in rng.permutation((-1, 1))[: int(rng.integers(0, 3))]:
        out, low = side * (girth + 0.045), h + tall * rng.uniform(0.3, 0.6)
        elbow, tip = (0, out, low + 0.01), (0, out, low + rng.uniform(0.05, 0.12))
        parts += [capsule((0, 0, low), elbow, 0.02), capsule(elbow, tip, 0.022)]
    return join(*parts)


def plant_sword(rng: Generator) -> Mesh:
    """A few tall, upright, sword-like leaves."""
    r, h = rng.uniform(0.05, 0.09), rng.uniform(0.08, 0.16)
    blades = []
    for index in range(int(rng.integers(5, 12))):
        blade = leaf(rng.uniform(0.2, 0.42), rng.uniform(0.035, 0.06), rng.uniform(-0.2, 0.25))
        lift, turn = rng.uniform(1.2, 1.55), 2.4 * index
        place = r * 0.5 * rng.random() * np.array((np.cos(turn), np.sin(turn), 0.0))
        blades.append(blade.rotated(1, -lift).rotated(2, turn).moved(place))
    return join(_any_pot(rng, r, h), join(*blades).moved((0, 0, h * 0.92)))


def plant_grass(rng: Generator) -> Mesh:
    """A tuft of thin, arching stalks."""
    r, h = rng.uniform(0.05, 0.1), rng.uniform(0.06, 0.14)
    along = np.linspace(0, 1, 6)[:, None]
    stalks = []
    for _ in range(int(rng.integers(30, 60))):
        turn, length, lean = rng.uniform(0, 6.28), rng.uniform(0.14, 0.36), rng.uniform(0.1, 1.0)
        reach = length * along * (0.15 + lean * along)
        rise = length * along * (1 - 0.45 * lean * along)
        path = np.concatenate([reach * np.cos(turn), reach * np.sin(turn), rise], axis=1)
        stalks.append(tube(path, 0.0035, 0, sides=4))
    return join(_any_pot(rng, r, h), join(*stalks).moved((0, 0, h * 0.92)))


def plant_succulent(rng: Generator) -> Mesh:
    """A low rosette of thick leaves."""
    r, h = rng.uniform(0.06, 0.11), rng.uniform(0.05, 0.1)
    leaves, count = [], int(rng.integers(14, 26))
    for index in range(count):
        inner = index / count
        length = rng.uniform(0.05, 0.08) * (1.3 - 0.7 * inner)
        blade = ellipsoid((length, length * 0.42, length * 0.2), (length, 0, 0), 0, segments=8)
        leaves.append(blade.rotated(1, -0.25 - 1.1 * inner).rotated(2, 2.4 * index))
    return join(_any_pot(rng, r, h), join(*leaves).moved((0, 0, h)))


def plant_stalked(rng: Generator) -> Mesh:
    """One large leaf at the end of each long stalk."""
    r, h = rng.uniform(0.06, 0.1), rng.uniform(0.08, 0.15)
    parts = [_any_pot(rng, r, h)]
    for index in range(int(rng.integers(6, 14))):
        turn, length, lean = 2.4 * index, rng.uniform(0.12, 0.3), rng.uniform(0.15, 0.9)
        tip = length * np.array((lean * np.cos(turn), lean * np.sin(turn), 1.0 - 0.3 * lean))
        path = np.stack(((0, 0, -0.1 * h), tip * 0.5, tip)) + np.array((0, 0, h))
        parts.append(tube(path, 0.004, 0))
        blade = leaf(rng.uniform(0.08, 0.15), rng.uniform(0.07, 0.12), rng.uniform(0.4, 1.3))
        parts.append(blade.rotated(1, -0.3).rotated(2, turn).moved(np.add(tip, (0, 0, h))))
    return join(*parts)


def plant_trailing(rng: Generator) -> Mesh:
    """Small leaves in a heap that hangs over the rim."""
    r, h = rng.uniform(0.06, 0.09), rng.uniform(0.13, 0.22)
    parts = [_any_pot(rng, r, h)]
    for index in range(int(rng.integers(12, 22))):
        turn, fall = 2.4 * index, rng.uniform(0.2, 0.8) * h
        rim = np.array((np.cos(turn), np.sin(turn), 0.0)) * r * rng.uniform(0.9, 1.25)
        for at in np.linspace(0, 1, 6):
            blade = leaf(0.055, 0.045, rng.uniform(0.2, 1.0), steps=3)
            turned = blade.rotated(1, rng.uniform(-0.3, 1.0)).rotated(2, turn + rng.normal() * 0.6)
            lift = 0.04 + 0.03 * np.sin(np.pi * at) if at < 0.4 else 0.05 - fall * (at - 0.4) / 0.6
            parts.append(turned.moved(rim * min(1.0, at / 0.4) + (0, 0, h + lift)))
    return join(*parts)
