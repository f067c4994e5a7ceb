"""Mesh families of hand-sized things: bottles, cups, bowls, cans, boxes, balls.

Each function draws one mesh of its family from a generator; slots are 0 body, 1 print or accent,
2 trim, 3 dark. Metres, standing on z = 0.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edge_perception.world.mesh import Mesh, box, cylinder, ellipsoid, join, lathe, tube


def _smooth(rows: list[tuple[float, float]], steps: int = 5) -> list[tuple[float, float]]:
    """A profile with its segments eased by cosines, so that shoulders are round."""
    out = [rows[0]]
    for (r0, z0), (r1, z1) in pairwise(rows):
        for step in range(1, steps + 1):
            part = step / steps
            eased = (1 - np.cos(np.pi * part)) / 2
            out.append((r0 + (r1 - r0) * eased, z0 + (z1 - z0) * part))
    return out


def _bottle(
    rng: Generator, body: list[tuple[float, float]], neck: float, *, squareness: float = 2.0
) -> Mesh:
    """A bottle from the silhouette of its body, with shoulder, neck, cap and label band."""
    top_radius, top = body[-1]
    neck_length = rng.uniform(0.02, 0.05)
    glass = lathe([(1e-4, 0.0), *body], squareness=squareness)
    throat = lathe([(top_radius, top), (neck, top + 0.004), (neck, top + neck_length)])
    cap = cylinder(neck * rng.uniform(1.15, 1.4), rng.uniform(0.014, 0.028), 2)
    return join(glass, throat, cap.moved((0, 0, top + neck_length * 0.75)))


def _label(radius: float, low: float, high: float, squareness: float = 2.0) -> Mesh:
    return lathe([(radius * 1.012, low), (radius * 1.012, high)], 1, squareness=squareness)


def bottle_wine(rng: Generator) -> Mesh:
    """Long round shoulders under a slim neck."""
    r, h = rng.uniform(0.034, 0.042), rng.uniform(0.15, 0.19)
    neck = r * rng.uniform(0.32, 0.42)
    shoulder = _smooth([(r, h), (neck, h + rng.uniform(0.05, 0.08))])
    mesh = _bottle(rng, [(r * 0.93, 0), (r, 0.006), *shoulder], neck)
    return join(mesh, _label(r, h * 0.25, h * rng.uniform(0.65, 0.9)))


def bottle_soda(rng: Generator) -> Mesh:
    """A waist between two bulges."""
    r, h = rng.uniform(0.03, 0.038), rng.uniform(0.14, 0.2)
    waist, neck = rng.uniform(0.8, 0.93), r * rng.uniform(0.35, 0.45)
    rows = _smooth(
        [(r * 0.85, 0), (r, h * 0.2), (r * waist, h * 0.5), (r, h * 0.75), (neck, h * 1.1)]
    )
    mesh = _bottle(rng, rows, neck)
    return join(mesh, _label(r * 0.985, h * 0.62, h * 0.8))


def bottle_detergent(rng: Generator) -> Mesh:
    """A flat, rounded-square body."""
    r, h = rng.uniform(0.036, 0.05), rng.uniform(0.15, 0.2)
    neck, square = r * rng.uniform(0.35, 0.5), rng.uniform(2.6, 5.0)
    rows = [(r * 0.95, 0), (r, 0.01), *_smooth([(r, h * 0.8), (neck, h)])]
    mesh = join(_bottle(rng, rows, neck, squareness=square), _label(r, h * 0.2, h * 0.7, square))
    return mesh.scaled((1, rng.uniform(0.6, 0.9), 1))


def bottle_water(rng: Generator) -> Mesh:
    """Ribbed all the way up."""
    r, h = rng.uniform(0.031, 0.039), rng.uniform(0.15, 0.2)
    neck, ribs = r * rng.uniform(0.34, 0.42), int(rng.integers(4, 8))
    heights = np.linspace(0.01, h * 0.85, ribs * 6)
    ripple = 1 - 0.035 * (1 + np.cos(np.linspace(0, 2 * np.pi * ribs, len(heights))))
    rows = [(r * 0.9, 0.0), *zip(r * ripple, heights), *_smooth([(r, h * 0.88), (neck, h * 1.12)])]
    return join(_bottle(rng, rows, neck), _label(r, h * 0.4, h * 0.65))


def bottle_sauce(rng: Generator) -> Mesh:
    """A tapering body under a nozzle."""
    r, h = rng.uniform(0.032, 0.042), rng.uniform(0.14, 0.18)
    neck = r * rng.uniform(0.36, 0.46)
    rows = _smooth(
        [(r, 0.0), (r * 0.97, h * 0.5), (r * rng.uniform(0.7, 0.8), h * 0.8), (neck, h * 1.15)]
    )
    mesh = _bottle(rng, rows, neck)
    nozzle = cylinder(neck * 1.1, 0.03, 2, top=neck * 0.3)
    return join(mesh, nozzle.moved((0, 0, mesh.size[2] - 0.004)), _label(r, h * 0.12, h * 0.5))


def _vessel(profile: list[tuple[float, float]], wall: float, **options: float) -> Mesh:
    """An open pot: the outer profile up, the same one down again inside."""
    outer = [(1e-4, 0.0), *profile]
    inner = [(max(r - wall, 1e-4), max(z, wall)) for r, z in reversed(profile)]
    squareness = options.get("squareness", 2.0)
    return join(
        lathe([*outer, inner[0]], 0, squareness=squareness),
        lathe([*inner, (1e-4, wall)], 2, squareness=squareness),
    )


def _handle(
    r: float, low: float, high: float, reach: float, thickness: float, square: float
) -> Mesh:
    angles = np.linspace(-np.pi / 2, np.pi / 2, 12)
    bulge_x = np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** (2 / square)
    bulge_z = np.sign(np.sin(angles)) * np.abs(np.sin(angles)) ** (2 / square)
    middle, half = (low + high) / 2, (high - low) / 2
    path = np.stack([r * 0.96 + reach * bulge_x, 0 * angles, middle + half * bulge_z], axis=1)
    return tube(path, thickness, 0)


def cup_mug(rng: Generator) -> Mesh:
    """Straight walls."""
    r, h = rng.uniform(0.036, 0.045), rng.uniform(0.08, 0.105)
    body = _vessel([(r * 0.95, 0), (r, 0.006), (r, h)], 0.004)
    band = _label(r, h * 0.3, h * rng.uniform(0.4, 0.8))
    return join(body, band, _handle(r, h * 0.2, h * 0.82, rng.uniform(0.022, 0.032), 0.005, 2.0))


def cup_tapered(rng: Generator) -> Mesh:
    """Wider at the rim."""
    r, h, foot = rng.uniform(0.04, 0.05), rng.uniform(0.075, 0.1), rng.uniform(0.6, 0.8)
    body = _vessel([(r * foot, 0), (r, h)], 0.004)
    return join(body, _handle(r * 0.9, h * 0.25, h * 0.85, rng.uniform(0.022, 0.034), 0.0045, 2.6))


def cup_round(rng: Generator) -> Mesh:
    """A belly."""
    r, h = rng.uniform(0.042, 0.052), rng.uniform(0.075, 0.095)
    body = _vessel(_smooth([(r * 0.55, 0), (r, h * 0.45), (r * 0.88, h)]), 0.004)
    return join(body, _handle(r * 0.97, h * 0.25, h * 0.8, rng.uniform(0.02, 0.03), 0.005, 2.0))


def cup_espresso(rng: Generator) -> Mesh:
    """A small foot and a cone."""
    r, h = rng.uniform(0.038, 0.046), rng.uniform(0.07, 0.09)
    rows = [(r * 0.6, 0), (r * 0.62, 0.008), *_smooth([(r * 0.78, 0.012), (r, h)])]
    return join(
        _vessel(rows, 0.0035),
        _handle(r * 0.88, h * 0.3, h * 0.88, rng.uniform(0.024, 0.034), 0.0042, 1.7),
    )


def cup_tankard(rng: Generator) -> Mesh:
    """Tall, barrel-like, with an angular handle."""
    r, h = rng.uniform(0.038, 0.046), rng.uniform(0.09, 0.115)
    rows = [(r * 1.06, 0), (r * 1.06, 0.01), *_smooth([(r * 0.96, 0.014), (r * 0.92, h)])]
    return join(
        _vessel(rows, 0.005, squareness=2.5),
        _label(r * 0.97, h * 0.25, h * 0.5, 2.5),
        _handle(r * 0.94, h * 0.15, h * 0.8, rng.uniform(0.026, 0.036), 0.006, 4.0),
    )


def bowl_round(rng: Generator) -> Mesh:
    """A hemisphere with a rim."""
    r = rng.uniform(0.07, 0.1)
    depth = r * rng.uniform(0.5, 0.75)
    bend = np.linspace(0.35, np.pi / 2, 9)
    rows = [(r * float(np.sin(b)), depth * (0.06 + 1 - float(np.cos(b)))) for b in bend]
    return join(
        _vessel([(r * 0.4, 0), *rows], 0.004), _label(r * 0.985, depth * 0.93, depth * 1.02)
    )


def bowl_flared(rng: Generator) -> Mesh:
    """An S-shaped wall."""
    r, h = rng.uniform(0.075, 0.105), rng.uniform(0.045, 0.065)
    return _vessel([(r * 0.45, 0), (r * 0.47, 0.01), *_smooth([(r * 0.55, 0.012), (r, h)])], 0.004)


def bowl_flat(rng: Generator) -> Mesh:
    """A deep plate."""
    r, h = rng.uniform(0.085, 0.115), rng.uniform(0.035, 0.05)
    return _vessel([(r * 0.62, 0), (r * 0.86, h * 0.35), (r * 0.94, h), (r, h * 1.03)], 0.004)


def bowl_stepped(rng: Generator) -> Mesh:
    """Walls in steps."""
    r, h = rng.uniform(0.075, 0.105), rng.uniform(0.045, 0.065)
    foot = [(r * 0.5, 0), (r * 0.5, h * 0.15), (r * 0.72, h * 0.3)]
    return _vessel([*foot, (r * 0.9, h * 0.62), (r * 0.96, h * 0.66), (r, h)], 0.004)


def bowl_tulip(rng: Generator) -> Mesh:
    """A lip that turns outwards again."""
    r, h = rng.uniform(0.07, 0.095), rng.uniform(0.05, 0.07)
    rows = _smooth([(r * 0.42, 0), (r * 0.9, h * 0.5), (r * 0.86, h * 0.75), (r, h)])
    return _vessel(rows, 0.004, squareness=2.3)


def can_soda(rng: Generator) -> Mesh:
    """A drink's can with tapered ends."""
    r, h = rng.uniform(0.031, 0.035), rng.uniform(0.105, 0.125)
    rim = lathe([(1e-4, 0.002), (r * 0.78, 0), (r, 0.012)], 2)
    body = lathe([(r, 0.012), (r, h - 0.014)], 1)
    top = lathe(
        [
            (r, h - 0.014),
            (r * 0.84, h - 0.002),
            (r * 0.84, h),
            (r * 0.78, h - 0.004),
            (1e-4, h - 0.004),
        ],
        2,
    )
    return join(rim, body, top)


def can_tin(rng: Generator) -> Mesh:
    """A food tin with rims."""
    r, h = rng.uniform(0.035, 0.045), rng.uniform(0.08, 0.11)
    rim = [(r * 1.04, 0.0), (r * 1.04, 0.004), (r, 0.005)]
    low = lathe([(1e-4, 0), *rim], 2)
    top = lathe(
        [
            (r, h - 0.005),
            (r * 1.04, h - 0.004),
            (r * 1.04, h),
            (r * 0.97, h - 0.003),
            (1e-4, h - 0.003),
        ],
        2,
    )
    return join(low, lathe([(r, 0.005), (r, h - 0.005)], 1), top)


def can_ribbed(rng: Generator) -> Mesh:
    """A food tin with ribs."""
    r, h, ribs = rng.uniform(0.035, 0.048), rng.uniform(0.085, 0.12), int(rng.integers(4, 9))
    heights = np.linspace(0.006, h - 0.006, ribs * 6)
    radii = r * (1 - 0.015 * (1 + np.cos(np.linspace(0, 2 * np.pi * ribs, len(heights)))))
    rows = [
        (1e-4, 0),
        (r * 1.02, 0),
        *zip(radii, heights),
        (r * 1.02, h),
        (r * 0.95, h - 0.003),
        (1e-4, h - 0.003),
    ]
    return join(lathe(rows, 2), _label(r, h * 0.3, h * 0.7))


def can_slim(rng: Generator) -> Mesh:
    """A slim drink's can with a tab."""
    r, h = rng.uniform(0.028, 0.032), rng.uniform(0.115, 0.135)
    low = lathe([(1e-4, 0), (r * 0.7, 0), (r * 0.75, 0.004), (r, 0.016)], 2)
    body = lathe([(r, 0.016), (r, h - 0.018)], 1)
    neck = [
        (r, h - 0.018),
        (r * 0.86, h - 0.006),
        (r * 0.86, h),
        (r * 0.8, h - 0.003),
        (1e-4, h - 0.003),
    ]
    return join(low, body, lathe(neck, 2), box((0.016, 0.009, 0.002), (0.006, 0, h - 0.001), 2))


def can_coffee(rng: Generator) -> Mesh:
    """A wide tin with a domed lid."""
    r, h = rng.uniform(0.04, 0.05), rng.uniform(0.095, 0.125)
    body = lathe([(1e-4, 0), (r * 1.03, 0), (r * 1.03, 0.006), (r, 0.007)], 2)
    lid = lathe(
        [
            (r, h * 0.88),
            (r * 1.05, h * 0.885),
            (r * 1.05, h),
            (r * 0.8, h * 1.02),
            (1e-4, h * 1.02),
        ],
        2,
    )
    return join(body, lathe([(r, 0.007), (r, h * 0.88)], 1), lid)


def _sides(rng: Generator, low: float = 0.09, high: float = 0.2) -> NDArray[np.float64]:
    return rng.uniform((low, low * 0.8, low * 0.6), (high, high * 0.75, high * 0.8))


def box_taped(rng: Generator) -> Mesh:
    """Closed and taped, with a sticker."""
    x, y, z = _sides(rng)
    tape = rng.uniform(0.12, 0.25) * y
    strip = box((x * 1.004, tape, z * 1.004), (0, 0, z / 2), 2)
    sticker = box((x * 0.35, y * 1.006, z * 0.4), (x * rng.uniform(-0.2, 0.2), 0, z * 0.55), 1)
    return join(box((x, y, z), (0, 0, z / 2)), strip, sticker)


def box_flaps(rng: Generator) -> Mesh:
    """Open, its flaps out."""
    x, y, z = _sides(rng)
    wall = 0.004
    sides = [box((x, wall, z), (0, s * y / 2, z / 2)) for s in (-1, 1)]
    sides += [box((wall, y, z), (s * x / 2, 0, z / 2)) for s in (-1, 1)]
    flaps = []
    for sign in (-1, 1):
        flap = box((x * 0.98, y * 0.45, wall), (0, sign * y * 0.225, 0))
        tilt = sign * rng.uniform(-0.9, 0.4)
        flaps.append(flap.rotated(0, tilt).moved((0, sign * y / 2, z)))
    return join(box((x, y, wall), (0, 0, wall / 2), 2), *sides, *flaps)


def box_printed(rng: Generator) -> Mesh:
    """An upright package, printed."""
    x, y, z = _sides(rng) * (1.0, rng.uniform(0.35, 0.7), rng.uniform(1.0, 1.5))
    front = box((x * 0.9, y * 1.004, z * 0.5), (0, 0, z * 0.55), 1)
    side = box((x * 1.004, y * 0.8, z * 0.3), (0, 0, z * 0.35), 2)
    return join(box((x, y, z), (0, 0, z / 2)), front, side)


def box_lidded(rng: Generator) -> Mesh:
    """A lid that overhangs."""
    x, y, z = _sides(rng) * (1.15, 0.95, 0.7)
    lid = box((x * 1.03, y * 1.03, z * rng.uniform(0.22, 0.35)), (0, 0, z * 0.88), 2)
    mark = box((x * 0.3, y * 1.01, z * 0.25), (0, 0, z * 0.38), 1)
    return join(box((x, y, z), (0, 0, z / 2)), lid, mark)


def box_strapped(rng: Generator) -> Mesh:
    """Two straps around it."""
    x, y, z = _sides(rng)
    shift = x * rng.uniform(0.15, 0.3)
    straps = [box((x * 0.06, y * 1.008, z * 1.008), (s * shift, 0, z / 2), 2) for s in (-1, 1)]
    return join(
        box((x, y, z), (0, 0, z / 2)),
        *straps,
        box((x * 1.006, y * 0.5, z * 0.35), (0, 0, z * 0.6), 1),
    )


def ball_plain(rng: Generator) -> Mesh:
    """One surface."""
    r = rng.uniform(0.03, 0.07)
    return ellipsoid((r, r, r), (0, 0, r), 0, segments=28)


def ball_slices(rng: Generator) -> Mesh:
    """Slices of two colours."""
    r, slices = rng.uniform(0.035, 0.08), int(rng.integers(4, 9))
    half = ellipsoid((r, r, r), (0, 0, 0), 0, segments=slices * 4)
    angle = np.arctan2(half.positions[:, 1], half.positions[:, 0]).reshape(-1, 3)
    mean = np.arctan2(np.sin(angle).sum(axis=1), np.cos(angle).sum(axis=1))
    which = np.floor((mean / (2 * np.pi) + 0.5) * slices).astype(int) % 2
    sliced = Mesh(half.positions, half.normals, np.repeat(which, 3).astype(np.uint8))
    return sliced.rotated(0, rng.uniform(0, np.pi)).grounded()


def ball_banded(rng: Generator) -> Mesh:
    """A band around it."""
    r = rng.uniform(0.03, 0.065)
    ball = ellipsoid((r, r, r), (0, 0, 0), 0, segments=28)
    height = np.abs(ball.positions[:, 2].reshape(-1, 3).mean(axis=1)) / r
    banded = (height < rng.uniform(0.15, 0.4)).astype(np.uint8)
    return (
        Mesh(ball.positions, ball.normals, np.repeat(banded, 3))
        .rotated(1, rng.uniform(0, np.pi))
        .grounded()
    )


def ball_seamed(rng: Generator) -> Mesh:
    """Dark seams, like a basketball."""
    r = rng.uniform(0.035, 0.075)
    angles = np.linspace(0, 2 * np.pi, 33)
    circle = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1) * r * 0.992
    seams = [tube(circle, r * 0.03, 3).rotated(0, turn) for turn in (0.0, np.pi / 2)]
    seams += [
        tube(circle * (0.8, 0.8, 1) + (0, 0, s * r * 0.59), r * 0.03, 3).rotated(1, np.pi / 2)
        for s in (-1, 1)
    ]
    ball = join(ellipsoid((r, r, r), (0, 0, 0), 0, segments=28), *seams)
    return ball.rotated(0, rng.uniform(0, np.pi)).rotated(1, rng.uniform(0, np.pi)).grounded()


def ball_patched(rng: Generator) -> Mesh:
    """Twelve patches, like a football."""
    r = rng.uniform(0.04, 0.075)
    ball = ellipsoid((r, r, r), (0, 0, 0), 0, segments=36)
    middles = ball.positions.reshape(-1, 3, 3).mean(axis=1) / r
    golden = (1 + 5**0.5) / 2
    seeds = [(0, s, t * golden) for s in (-1, 1) for t in (-1, 1)]
    seeds = np.array([np.roll(seed, k) for seed in seeds for k in range(3)]) / np.hypot(1, golden)
    patch = ((middles @ seeds.T).max(axis=1) > rng.uniform(0.92, 0.955)).astype(np.uint8)
    return (
        Mesh(ball.positions, ball.normals, np.repeat(patch, 3))
        .rotated(0, rng.uniform(0, 3))
        .grounded()
    )
