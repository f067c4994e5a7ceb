"""Mesh families of mobile robots; slots are 0 body, 1 lights, 2 metal, 3 rubber.

Each function draws one mesh of its family from a generator, in metres, standing on z = 0.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from edge_perception.world.mesh import (
    Mesh,
    box,
    capsule,
    cylinder,
    ellipsoid,
    join,
    lathe,
    polygon,
    prism,
    tube,
)


def _wheel(x: float, y: float, r: float) -> Mesh:
    tyre = cylinder(r, 0.05, 3).moved((0, 0, -0.025))
    hub = cylinder(r * 0.5, 0.056, 2).moved((0, 0, -0.028))
    return join(tyre, hub).rotated(0, np.pi / 2).moved((x, y, r))


def robot_disc(rng: Generator) -> Mesh:
    """A low disc with a lidar."""
    r, h = rng.uniform(0.2, 0.3), rng.uniform(0.16, 0.26)
    body = lathe(
        [(1e-4, 0.03), (r * 0.95, 0.03), (r, 0.05), (r, h), (r * 0.92, h + 0.02), (1e-4, h + 0.02)]
    )
    ring = lathe([(r * 1.01, h * 0.55), (r * 1.01, h * 0.7)], 1)
    lidar = cylinder(0.05, 0.07, 3).moved((0, 0, h + 0.02))
    return join(body, ring, lidar, *[_wheel(0, s * (r - 0.03), 0.05) for s in (-1, 1)])


def robot_amr(rng: Generator) -> Mesh:
    """A low rounded block on four wheels."""
    length, width, h = rng.uniform(0.6, 0.85), rng.uniform(0.42, 0.58), rng.uniform(0.24, 0.36)
    body = ellipsoid(
        (length / 2, width / 2, h / 2), (0, 0, 0.07 + h / 2), 0, squareness=7, segments=28
    )
    strip = ellipsoid(
        (length / 2 * 1.008, width / 2 * 1.01, 0.014),
        (0, 0, 0.07 + h * 0.55),
        1,
        squareness=7,
        segments=28,
    )
    lidar = cylinder(0.06, 0.08, 3).moved((length * 0.32, 0, h + 0.05))
    wheels = [_wheel(x * length * 0.32, s * width * 0.48, 0.085) for x in (-1, 1) for s in (-1, 1)]
    return join(body, strip, lidar, *wheels)


def robot_mast(rng: Generator) -> Mesh:
    """A head on a mast."""
    r, mast = rng.uniform(0.2, 0.27), rng.uniform(0.6, 0.95)
    base = lathe(
        [(1e-4, 0.04), (r, 0.04), (r, 0.22), (r * 0.7, 0.3), (1e-4, 0.3)], 0, squareness=3.0
    )
    strip = lathe([(r * 1.012, 0.1), (r * 1.012, 0.13)], 1, squareness=3.0)
    pole = cylinder(0.035, mast, 2).moved((0, 0, 0.28))
    head = ellipsoid((0.09, 0.14, 0.09), (0.02, 0, 0.32 + mast), 0, squareness=4)
    eyes = [
        ellipsoid((0.02, 0.03, 0.03), (0.1, s * 0.055, 0.33 + mast), 3, segments=10)
        for s in (-1, 1)
    ]
    return join(base, strip, pole, head, *eyes, *[_wheel(0, s * r * 0.9, 0.075) for s in (-1, 1)])


def robot_screen(rng: Generator) -> Mesh:
    """A hexagonal base under a tilted screen."""
    r, mast = rng.uniform(0.21, 0.28), rng.uniform(0.5, 0.8)
    base = prism(polygon(6, r), 0.2, 0).moved((0, 0, 0.05))
    strip = prism(polygon(6, r * 1.015), 0.03, 1).moved((0, 0, 0.13))
    column = box((0.07, 0.1, mast), (-0.04, 0, 0.25 + mast / 2), 2)
    panel = box((0.03, 0.34, 0.24), (0, 0, 0)).rotated(1, -0.3).moved((0, 0, 0.32 + mast))
    glass = box((0.034, 0.3, 0.2), (0.004, 0, 0), 3).rotated(1, -0.3).moved((0, 0, 0.32 + mast))
    return join(
        base, strip, column, panel, glass, *[_wheel(0, s * r * 0.85, 0.07) for s in (-1, 1)]
    )


def robot_tracked(rng: Generator) -> Mesh:
    """Tracks under a hull with an arm."""
    length, width, h = rng.uniform(0.6, 0.8), rng.uniform(0.4, 0.52), rng.uniform(0.2, 0.28)
    tracks = [
        ellipsoid((length / 2, 0.06, 0.1), (0, s * width / 2, 0.1), 3, squareness=5, segments=24)
        for s in (-1, 1)
    ]
    hull = box((length * 0.8, width * 0.8, h), (0, 0, 0.1 + h / 2))
    strip = box((length * 0.81, width * 0.81, 0.03), (0, 0, 0.1 + h * 0.7), 1)
    arm = tube([(-0.1, 0, 0.1 + h), (-0.05, 0, 0.35 + h), (0.15, 0, 0.5 + h)], 0.03, 2)
    head = box((0.1, 0.14, 0.08), (0.18, 0, 0.5 + h), 3)
    return join(*tracks, hull, strip, arm, head)


def robot_quadruped(rng: Generator) -> Mesh:
    """A trunk on four bent legs."""
    length, width = rng.uniform(0.45, 0.7), rng.uniform(0.2, 0.3)
    hip, bend = rng.uniform(0.3, 0.48), rng.uniform(0.05, 0.12)
    trunk = ellipsoid((length / 2, width / 2, 0.075), (0, 0, hip), 0, squareness=5)
    stripe = ellipsoid((length * 0.35, width * 0.51, 0.02), (0, 0, hip), 1, squareness=5)
    head = ellipsoid((0.07, width * 0.3, 0.05), (length / 2 + 0.03, 0, hip + 0.03), 3, squareness=4)
    parts = [trunk, stripe, head]
    for x in (-1, 1):
        for y in (-1, 1):
            top = (x * length * 0.4, y * width * 0.6, hip)
            knee = (x * length * 0.4 - bend, y * width * 0.65, hip * 0.5)
            foot = (x * length * 0.4 + rng.uniform(-0.04, 0.04), y * width * 0.65, 0.03)
            parts += [capsule(top, knee, 0.04, 0, taper=0.7), capsule(knee, foot, 0.025, 3)]
    return join(*parts)


def robot_manipulator(rng: Generator) -> Mesh:
    """A jointed arm with a gripper on a wheeled block."""
    length, width, h = rng.uniform(0.5, 0.8), rng.uniform(0.4, 0.55), rng.uniform(0.3, 0.55)
    body = box((length, width, h), (0, 0, 0.08 + h / 2))
    band = box((length * 1.01, width * 1.01, 0.04), (0, 0, 0.08 + h * rng.uniform(0.3, 0.85)), 1)
    lift, reach = rng.uniform(0.5, 1.3), rng.uniform(-0.6, 0.5)
    shoulder = np.array((length * rng.uniform(-0.2, 0.3), 0, 0.12 + h))
    elbow = shoulder + 0.33 * np.array((np.cos(lift), 0.05, np.sin(lift)))
    wrist = elbow + 0.28 * np.array((np.cos(reach), 0, np.sin(reach)))
    arm = [capsule(shoulder, elbow, 0.05, 2), capsule(elbow, wrist, 0.04, 0, taper=0.8)]
    fingers = [box((0.09, 0.015, 0.03), np.add(wrist, (0.08, s * 0.03, 0)), 3) for s in (-1, 1)]
    wheels = [_wheel(x * length * 0.33, y * width / 2, 0.09) for x in (-1, 1) for y in (-1, 1)]
    return join(
        body, band, cylinder(0.07, 0.06, 3).moved(shoulder - (0, 0, 0.06)), *arm, *fingers, *wheels
    )


def robot_waiter(rng: Generator) -> Mesh:
    """Trays between posts on a rounded base."""
    r, h, trays = rng.uniform(0.2, 0.28), rng.uniform(0.75, 1.15), int(rng.integers(2, 5))
    square = rng.uniform(2.0, 6.0)
    base = lathe([(1e-4, 0.04), (r, 0.04), (r, 0.2), (1e-4, 0.22)], 0, squareness=square)
    posts = [box((0.05, 0.03, h - 0.1), (-r * 0.6, s * r * 0.75, 0.1 + h / 2)) for s in (-1, 1)]
    shelf = lathe(
        [(1e-4, 0), (r * 0.95, 0), (r, 0.035), (r * 0.97, 0.02), (1e-4, 0.02)], 2, squareness=square
    )
    shelves = [shelf.moved((0, 0, z)) for z in np.linspace(0.3, h, trays)]
    brow = box((0.06, r * 1.5, 0.08), (-r * 0.6, 0, h + 0.08), 1)
    return join(base, *posts, *shelves, brow, *[_wheel(0, s * r * 0.8, 0.06) for s in (-1, 1)])


def robot_dome(rng: Generator) -> Mesh:
    """A barrel under a dome, on two side legs."""
    r, h = rng.uniform(0.17, 0.24), rng.uniform(0.4, 0.65)
    turn = np.linspace(0, np.pi / 2, 7)
    barrel = lathe([(1e-4, 0.1), (r * 0.9, 0.1), (r, 0.14), (r, h)])
    dome = lathe([(r * np.cos(t) + 1e-4, h + r * np.sin(t)) for t in turn], 2)
    bands = [lathe([(r * 1.01, z), (r * 1.01, z + 0.035)], 1) for z in (h * 0.5, h * 0.9)]
    eye = ellipsoid((0.04, 0.05, 0.05), (r * 0.8, 0, h + r * 0.45), 3)
    legs = [box((0.1, 0.06, h * 0.8), (0, s * (r + 0.04), h * 0.42), 0) for s in (-1, 1)]
    feet = [box((0.2, 0.08, 0.08), (0, s * (r + 0.04), 0.04), 3) for s in (-1, 1)]
    return join(barrel, dome, *bands, eye, *legs, *feet)


def robot_courier(rng: Generator) -> Mesh:
    """A lidded cooler box on six wheels."""
    length, width, h = rng.uniform(0.5, 0.75), rng.uniform(0.38, 0.52), rng.uniform(0.25, 0.4)
    tub = ellipsoid(
        (length / 2, width / 2, h / 2), (0, 0, 0.1 + h / 2), 0, squareness=5, segments=24
    )
    lid = ellipsoid(
        (length * 0.47, width * 0.47, 0.05), (0, 0, 0.1 + h), 2, squareness=4, segments=24
    )
    lamps = [
        box((0.02, 0.08, 0.03), (length / 2 - 0.01, s * width * 0.25, 0.1 + h / 2), 1)
        for s in (-1, 1)
    ]
    wheels = [_wheel(x * length * 0.36, s * width / 2, 0.095) for x in (-1, 0, 1) for s in (-1, 1)]
    flag = tube([(-length * 0.45, 0, h), (-length * 0.47, 0, h + rng.uniform(0.3, 0.7))], 0.008, 3)
    return join(tub, lid, *lamps, *wheels, *([flag] if rng.random() < 0.6 else []))


def robot_butler(rng: Generator) -> Mesh:
    """A bust with two arms on a flared skirt."""
    r, h = rng.uniform(0.2, 0.27), rng.uniform(0.85, 1.15)
    skirt = lathe([(1e-4, 0.03), (r, 0.03), (r * 0.9, 0.15), (r * 0.45, h * 0.6)])
    chest = ellipsoid((r * 0.6, r * 0.85, h * 0.2), (0, 0, h * 0.72), 0, squareness=3)
    badge = ellipsoid((0.03, r * 0.35, h * 0.07), (r * 0.57, 0, h * 0.75), 1, squareness=3)
    head = ellipsoid((0.11, 0.12, 0.12), (0, 0, h + 0.08), 2, squareness=rng.uniform(2, 4))
    visor = ellipsoid((0.03, 0.1, 0.04), (0.095, 0, h + 0.09), 3, squareness=3)
    parts = [skirt, chest, badge, head, visor]
    for side in (-1, 1):
        shoulder, swing = np.array((0, side * r * 0.95, h * 0.82)), rng.uniform(-0.2, 1.0)
        elbow = np.add(shoulder, (0.05, side * 0.05, -h * 0.22))
        hand = elbow + 0.22 * np.array((np.cos(swing - 0.8), 0, np.sin(swing - 0.8)))
        parts += [capsule(shoulder, elbow, 0.045, 2), capsule(elbow, hand, 0.038, 0)]
    return join(*parts)


def robot_tug(rng: Generator) -> Mesh:
    """A flat deck with an upright cabinet at one end."""
    length, width, h = rng.uniform(0.7, 1.0), rng.uniform(0.45, 0.65), rng.uniform(0.5, 0.9)
    deck = box((length, width, 0.13), (0, 0, 0.14))
    bumper = box((0.05, width * 1.04, 0.09), (length / 2, 0, 0.12), 3)
    cabinet = box((0.18, width * 0.9, h), (-length / 2 + 0.12, 0, 0.2 + h / 2), 0)
    light = box((0.19, width * 0.5, 0.05), (-length / 2 + 0.12, 0, 0.2 + h * 0.9), 1)
    lidar = cylinder(0.05, 0.08, 3).moved((length / 2 - 0.1, 0, 0.2))
    wheels = [_wheel(x * length * 0.33, s * width * 0.47, 0.08) for x in (-1, 1) for s in (-1, 1)]
    beacon = cylinder(0.03, 0.06, 1).moved((-length / 2 + 0.12, width * 0.3, 0.2 + h))
    return join(
        deck, bumper, cabinet, light, lidar, *wheels, *([beacon] if rng.random() < 0.5 else [])
    )
