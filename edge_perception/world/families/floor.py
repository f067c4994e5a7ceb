"""Mesh families of things that stand on floors: cones, chairs, people and pallets.

Each function draws one mesh of its family from a generator; slots are 0 body, 1 accent, 2 trim,
3 dark. Metres, standing on z = 0.
"""

from __future__ import annotations

from itertools import pairwise

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


def _cone(rng: Generator, base: Mesh, foot: float, height: float, bands: int) -> Mesh:
    """A hollow-looking traffic cone on ``base`` with evenly spread reflective bands."""
    low, tip = float(base.size[2]), foot * rng.uniform(0.12, 0.22)
    body = lathe([(foot, low), (tip, height), (1e-4, height)])
    edges = np.linspace(0.25, 0.9, 2 * bands + 1)
    parts = [base, body]
    for start, end in zip(edges[:-1:2], edges[1::2]):
        radii = [(foot + (tip - foot) * at) * 1.02 for at in (start, end)]
        heights = [low + (height - low) * at for at in (start, end)]
        parts.append(lathe(list(zip(radii, heights)), 1))
    return join(*parts)


def cone_square(rng: Generator) -> Mesh:
    """A square dark base and two bands."""
    h, foot = rng.uniform(0.45, 0.75), rng.uniform(0.11, 0.15)
    return _cone(rng, box((foot * 2.7, foot * 2.7, 0.03), (0, 0, 0.015), 3), foot, h, 2)


def cone_round(rng: Generator) -> Mesh:
    """A round base and one band."""
    h, foot = rng.uniform(0.35, 0.6), rng.uniform(0.1, 0.14)
    return _cone(rng, cylinder(foot * 1.45, 0.025, 0), foot, h, 1)


def cone_heavy(rng: Generator) -> Mesh:
    """A heavy, sloping base."""
    h, foot = rng.uniform(0.6, 0.9), rng.uniform(0.13, 0.17)
    base = lathe([(1e-4, 0), (foot * 1.6, 0), (foot * 1.4, 0.05), (foot, 0.06)], 3, squareness=5.0)
    return _cone(rng, base, foot, h, int(rng.integers(1, 3)))


def cone_octagon(rng: Generator) -> Mesh:
    """An octagonal base and three bands."""
    h, foot = rng.uniform(0.5, 0.8), rng.uniform(0.12, 0.15)
    return _cone(rng, prism(polygon(8, foot * 1.6, 0.39), 0.035, 3), foot, h, 3)


def cone_stubby(rng: Generator) -> Mesh:
    """Short, on a hexagonal base."""
    h, foot = rng.uniform(0.32, 0.5), rng.uniform(0.12, 0.15)
    return _cone(rng, prism(polygon(6, foot * 1.5), 0.02, 0), foot, h, 2)


def _legs(
    x: float, y: float, height: float, thickness: float, splay: float, slot: int
) -> list[Mesh]:
    ends = [(sx, sy) for sx in (-1, 1) for sy in (-1, 1)]
    return [
        tube([(sx * x * splay, sy * y * splay, 0), (sx * x, sy * y, height)], thickness, slot)
        for sx, sy in ends
    ]


def chair_slatted(rng: Generator) -> Mesh:
    """Four legs and a slatted back."""
    w, seat, back = rng.uniform(0.4, 0.48), rng.uniform(0.43, 0.48), rng.uniform(0.38, 0.5)
    legs = _legs(w * 0.45, w * 0.45, seat, 0.018, 1.0, 0)
    posts = [box((0.035, 0.035, back), (-w * 0.46, s * w * 0.44, seat + back / 2)) for s in (-1, 1)]
    count = int(rng.integers(2, 5))
    slats = [
        box((0.02, w * 0.86, back / count * 0.5), (-w * 0.46, 0, seat + back * (i + 0.7) / count))
        for i in range(count)
    ]
    return join(box((w, w, 0.035), (0, 0, seat), 1), *legs, *posts, *slats)


def chair_office(rng: Generator) -> Mesh:
    """Five castors under a column."""
    seat, back = rng.uniform(0.44, 0.52), rng.uniform(0.42, 0.6)
    spokes = [
        tube([(0, 0, 0.09), (0.28 * np.cos(a), 0.28 * np.sin(a), 0.05)], 0.02, 3)
        for a in np.linspace(0, 2 * np.pi, 5, endpoint=False)
    ]
    wheels = [
        ellipsoid((0.03, 0.03, 0.03), (0.28 * np.cos(a), 0.28 * np.sin(a), 0.03), 3, segments=10)
        for a in np.linspace(0, 2 * np.pi, 5, endpoint=False)
    ]
    cushion = ellipsoid((0.25, 0.25, 0.05), (0, 0, seat), 1, squareness=3.5)
    rest = ellipsoid((0.04, 0.22, back / 2), (-0.24, 0, seat + 0.1 + back / 2), 1, squareness=3.5)
    column = cylinder(0.03, seat - 0.08, 2).moved((0, 0, 0.08))
    spine = tube([(-0.1, 0, seat - 0.03), (-0.26, 0, seat), (-0.28, 0, seat + 0.3)], 0.02, 3)
    arms = [
        tube(
            [(-0.1, s * 0.26, seat), (0.0, s * 0.28, seat + 0.2), (0.15, s * 0.28, seat + 0.21)],
            0.02,
            3,
        )
        for s in (-1, 1)
    ]
    return join(
        *spokes, *wheels, cushion, rest, column, spine, *(arms if rng.random() < 0.6 else [])
    )


def chair_shell(rng: Generator) -> Mesh:
    """A shell on splayed legs."""
    w, seat, back = rng.uniform(0.4, 0.5), rng.uniform(0.42, 0.47), rng.uniform(0.36, 0.46)
    shell = ellipsoid((w / 2, w / 2, 0.025), (0, 0, seat), 1, squareness=4)
    rest = ellipsoid((0.02, w * 0.48, back / 2), (0, 0, back / 2), 1, squareness=4)
    rest = rest.rotated(1, -rng.uniform(0.08, 0.25)).moved((-w * 0.46, 0, seat - 0.01))
    return join(shell, rest, *_legs(w * 0.3, w * 0.3, seat, 0.014, rng.uniform(1.2, 1.6), 2))


def chair_folding(rng: Generator) -> Mesh:
    """Crossed legs under a slung seat and back."""
    w, seat, back = rng.uniform(0.4, 0.48), rng.uniform(0.42, 0.47), rng.uniform(0.36, 0.46)
    frames = []
    for y in (-w / 2, w / 2):
        frames.append(tube([(0.2, y, 0), (-0.17, y, seat), (-0.27, y, seat + back)], 0.013, 2))
        frames.append(tube([(-0.24, y, 0), (0.2, y, seat)], 0.013, 2))
    pad = box((0.38, w * 0.95, 0.025), (0, 0, seat), 1)
    rest = box((0.02, w, back * rng.uniform(0.35, 0.75)), (0, 0, 0), 1).rotated(1, -0.2)
    return join(*frames, pad, rest.moved((-0.23, 0, seat + back * 0.65)))


def chair_armchair(rng: Generator) -> Mesh:
    """Thick upholstery between two arms."""
    w, seat, back = rng.uniform(0.6, 0.75), rng.uniform(0.36, 0.44), rng.uniform(0.35, 0.5)
    square = rng.uniform(4, 8)
    pad = ellipsoid((0.3, w * 0.36, 0.1), (0, 0, seat - 0.06), 1, squareness=square)
    rest = ellipsoid(
        (0.09, w * 0.42, back * 0.7), (-0.27, 0, seat + back * 0.3), 1, squareness=square
    )
    arms = [
        ellipsoid((0.3, 0.075, 0.16), (0, s * w * 0.42, seat), 1, squareness=square)
        for s in (-1, 1)
    ]
    return join(pad, rest, *arms, *_legs(0.22, w * 0.36, seat - 0.12, 0.022, 1.05, 0))


def chair_pedestal(rng: Generator) -> Mesh:
    """A bucket seat on a column and a round foot."""
    r, seat, back = rng.uniform(0.2, 0.25), rng.uniform(0.42, 0.6), rng.uniform(0.2, 0.42)
    foot = lathe([(1e-4, 0.02), (r * 0.95, 0), (r * 0.95, 0.02), (0.03, 0.05), (0.028, seat)], 2)
    bowl = ellipsoid((r, r, 0.06), (0, 0, seat), 1, squareness=2.6)
    rest = ellipsoid((0.035, r * 0.95, back / 2), (-r * 0.9, 0, seat + back / 2), 1, squareness=2.8)
    return join(foot, bowl, rest)


def chair_cantilever(rng: Generator) -> Mesh:
    """A bent steel frame without back legs."""
    w, seat, back = rng.uniform(0.42, 0.5), rng.uniform(0.43, 0.48), rng.uniform(0.36, 0.48)
    frames = []
    for s in (-1, 1):
        y = s * w * 0.46
        corners = [
            (-0.2, y, 0.015),
            (0.2, y, 0.015),
            (0.22, y, seat),
            (-0.2, y, seat),
            (-0.25, y, seat + back),
        ]
        frames += [tube([a, b], 0.014, 2) for a, b in pairwise(corners)]
    bar = tube([(-0.2, -w * 0.46, 0.015), (-0.2, w * 0.46, 0.015)], 0.014, 2)
    pad = box((0.42, w * 0.9, 0.04), (0, 0, seat), 1)
    rest = box((0.035, w * 0.9, back * 0.6), (-0.235, 0, seat + back * 0.7), 1)
    return join(*frames, bar, pad, rest)


def chair_bentwood(rng: Generator) -> Mesh:
    """A round seat under a hoop."""
    r, seat, back = rng.uniform(0.2, 0.24), rng.uniform(0.43, 0.48), rng.uniform(0.4, 0.5)
    angles = np.linspace(0, np.pi, 14)
    hoop = np.stack(
        [0 * angles - r * 0.85, r * 0.85 * np.cos(angles), seat + back * np.sin(angles)], 1
    )
    inner = hoop * (1, 0.6, 1) - (0, 0, 0.3 * (hoop[:, 2] - seat).max() / back * back)
    inner[:, 2] = seat + (hoop[:, 2] - seat) * 0.7
    seat_disc = cylinder(r, 0.035, 1).moved((0, 0, seat - 0.02))
    return join(
        seat_disc,
        tube(hoop, 0.016, 0),
        tube(inner, 0.012, 0),
        *_legs(r * 0.65, r * 0.65, seat, 0.016, 1.25, 0),
    )


def _person(
    rng: Generator,
    *,
    stride: float,
    arms: tuple[tuple[float, float, float], tuple[float, float, float]],
    coat: float = 0.0,
    hat: bool = False,
) -> Mesh:
    """A figure of capsules; ``arms`` are (raise, sideways, elbow bend) angles, left and right."""
    hip, shoulder, half = 0.9, 1.42, rng.uniform(0.17, 0.21)
    bulk = rng.uniform(0.9, 1.15)
    parts = []
    for side in (-1, 1):
        foot_x = side * stride
        knee = (foot_x * 0.45 + 0.05 * stride, side * 0.1, 0.5)
        parts += [
            capsule((0, side * 0.09, hip), knee, 0.085 * bulk, 2, taper=0.75),
            capsule(knee, (foot_x, side * 0.1, 0.1), 0.062 * bulk, 2, taper=0.8),
            ellipsoid((0.13, 0.05, 0.05), (foot_x + 0.05, side * 0.1, 0.05), 3, segments=12),
        ]
        lift, out, bend = arms[(side + 1) // 2]
        start = np.array((0.0, side * half, shoulder))
        way = np.array((np.sin(lift), side * np.sin(out), -np.cos(lift) * np.cos(out)))
        elbow = start + 0.3 * way / np.linalg.norm(way)
        fore = np.array((np.sin(lift + bend), side * np.sin(out) * 0.5, -np.cos(lift + bend)))
        hand = elbow + 0.27 * fore / np.linalg.norm(fore)
        parts += [
            capsule(start, elbow, 0.055 * bulk, 0, taper=0.85),
            capsule(elbow, hand, 0.046 * bulk, 0, taper=0.8),
            ellipsoid((0.045, 0.04, 0.06), hand, 1, segments=10),
        ]
    torso = lathe(
        [
            (1e-4, hip - 0.1),
            (0.15 * bulk, hip - 0.08),
            (0.145 * bulk, 1.1),
            (half * 1.02, 1.35),
            (half * 0.8, 1.46),
            (0.06, 1.5),
        ],
        0,
    ).scaled((0.72, 1, 1))
    parts += [torso, cylinder(0.05, 0.12, 1).moved((0, 0, 1.46))]
    parts.append(ellipsoid((0.1, 0.08, 0.125), (0.01, 0, 1.65), 1, segments=16))
    if hat:
        helmet = ellipsoid((0.13, 0.115, 0.11), (0, 0, 1.7), 3, segments=16)
        parts += [helmet, cylinder(0.15, 0.012, 3).scaled((1.1, 0.9, 1)).moved((0.03, 0, 1.695))]
    else:
        parts.append(ellipsoid((0.105, 0.09, 0.1), (-0.02, 0, 1.695), 3, segments=14))
    if coat:
        parts.append(
            lathe([(0.2 * bulk, hip - coat), (0.155 * bulk, hip + 0.1)], 0).scaled((0.8, 1, 1))
        )
    return join(*parts)


def person_standing(rng: Generator) -> Mesh:
    """At rest, arms down."""
    arms = (rng.uniform(-0.15, 0.2), rng.uniform(0.05, 0.2), rng.uniform(0, 0.4))
    return _person(rng, stride=rng.uniform(0, 0.06), arms=(arms, arms), hat=rng.random() < 0.4)


def person_walking(rng: Generator) -> Mesh:
    """In stride, arms swinging."""
    swing = rng.uniform(0.3, 0.6)
    arms = ((swing, 0.1, rng.uniform(0.2, 0.6)), (-swing, 0.1, rng.uniform(0.1, 0.4)))
    return _person(rng, stride=rng.uniform(0.18, 0.32), arms=arms, hat=rng.random() < 0.4)


def person_carrying(rng: Generator) -> Mesh:
    """Both forearms forward."""
    arms = (rng.uniform(0.2, 0.5), 0.15, rng.uniform(0.9, 1.3))
    return _person(rng, stride=rng.uniform(0, 0.2), arms=(arms, arms), coat=rng.uniform(0, 0.2))


def person_reaching(rng: Generator) -> Mesh:
    """One arm out to the front, the other hanging."""
    out = (rng.uniform(1.0, 1.6), rng.uniform(0, 0.2), rng.uniform(-0.1, 0.3))
    low = (rng.uniform(-0.3, 0.2), 0.1, rng.uniform(0.1, 0.5))
    arms = (out, low) if rng.random() < 0.5 else (low, out)
    coat = rng.uniform(0, 0.25)
    return _person(rng, stride=rng.uniform(0, 0.25), arms=arms, coat=coat, hat=rng.random() < 0.4)


def person_waving(rng: Generator) -> Mesh:
    """One arm up."""
    low = (rng.uniform(-0.1, 0.2), 0.12, 0.2)
    high = (rng.uniform(1.8, 2.6), 0.5, rng.uniform(0.3, 0.7))
    return _person(rng, stride=rng.uniform(0, 0.1), arms=(low, high), hat=rng.random() < 0.5)


def person_coated(rng: Generator) -> Mesh:
    """A long coat, elbows out."""
    arms = (rng.uniform(-0.3, 0.1), rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.9))
    return _person(
        rng, stride=rng.uniform(0.05, 0.2), arms=(arms, arms), coat=rng.uniform(0.3, 0.45)
    )


def _deck(
    rng: Generator, boards: int, length: float, width: float, height: float, gap: float
) -> list[Mesh]:
    board = width / boards * (1 - gap)
    return [
        box(
            (length, board, 0.022),
            (rng.uniform(-0.01, 0.01), (i + 0.5) * width / boards - width / 2, height),
        )
        for i in range(boards)
    ]


def pallet_euro(rng: Generator) -> Mesh:
    """Nine blocks under spaced boards."""
    length, width = rng.uniform(1.0, 1.25), rng.uniform(0.75, 0.95)
    blocks = [
        box((0.14, 0.1, 0.08), (x * (length / 2 - 0.07), y * (width / 2 - 0.05), 0.06))
        for x in (-1, 0, 1)
        for y in (-1, 0, 1)
    ]
    skids = [box((length, 0.1, 0.02), (0, y * (width / 2 - 0.05), 0.01)) for y in (-1, 0, 1)]
    cross = [box((0.14, width, 0.02), (x * (length / 2 - 0.07), 0, 0.11)) for x in (-1, 0, 1)]
    return join(
        *blocks,
        *skids,
        *cross,
        *_deck(rng, int(rng.integers(5, 8)), length, width, 0.132, rng.uniform(0.15, 0.35)),
    )


def pallet_stringer(rng: Generator) -> Mesh:
    """Three beams under spaced boards."""
    length, width = rng.uniform(0.95, 1.2), rng.uniform(0.8, 1.05)
    beams = [box((0.04, width, 0.09), (x * (length / 2 - 0.03), 0, 0.065)) for x in (-1, 0, 1)]
    under = [box((length, 0.09, 0.02), (0, y * (width / 2 - 0.06), 0.01)) for y in (-1, 0, 1)]
    return join(
        *beams,
        *under,
        *_deck(rng, int(rng.integers(6, 10)), length, width, 0.12, rng.uniform(0.2, 0.45)),
    )


def pallet_half(rng: Generator) -> Mesh:
    """A pallet of about half the size."""
    return pallet_euro(rng).scaled((rng.uniform(0.55, 0.7), rng.uniform(0.7, 0.9), 1.0))


def pallet_plastic(rng: Generator) -> Mesh:
    """A moulded grid on solid runners."""
    length, width = rng.uniform(0.95, 1.25), rng.uniform(0.75, 1.0)
    runners = [box((length, 0.11, 0.1), (0, y * (width / 2 - 0.055), 0.05)) for y in (-1, 0, 1)]
    count = int(rng.integers(8, 14))
    along = [
        box((0.045, width, 0.03), (x, 0, 0.125)) for x in np.linspace(-0.48, 0.48, count) * length
    ]
    rims = [box((length, 0.05, 0.03), (0, y * (width / 2 - 0.025), 0.125), 1) for y in (-1, 1)]
    return join(*runners, *along, *rims)


def pallet_crossed(rng: Generator) -> Mesh:
    """Thick planks lying across two squared logs."""
    length, width = rng.uniform(0.8, 1.15), rng.uniform(0.7, 1.0)
    logs = [
        box((0.12, width, 0.12), (x * length * rng.uniform(0.3, 0.44), 0, 0.06)) for x in (-1, 1)
    ]
    deck = _deck(rng, int(rng.integers(4, 7)), length, width, 0.14, rng.uniform(0.08, 0.3))
    return join(*logs, *[board.scaled((1, 1, 1.15)) for board in deck])


def pallet_closed(rng: Generator) -> Mesh:
    """A nearly closed deck."""
    length, width = rng.uniform(0.95, 1.2), rng.uniform(0.75, 1.0)
    beams = [box((length, 0.07, 0.1), (0, y * (width / 2 - 0.035), 0.05)) for y in (-1, 0, 1)]
    return join(*beams, *_deck(rng, int(rng.integers(9, 13)), length, width, 0.112, 0.06))


def pallet_footed(rng: Generator) -> Mesh:
    """Round feet under a railed deck."""
    length, width = rng.uniform(0.95, 1.2), rng.uniform(0.75, 0.95)
    feet = [
        cylinder(0.06, 0.11, 0, top=0.08).moved(
            (x * (length / 2 - 0.09), y * (width / 2 - 0.09), 0)
        )
        for x in (-1, 0, 1)
        for y in (-1, 0, 1)
    ]
    rails = [box((length, 0.03, 0.05), (0, y * (width / 2 - 0.015), 0.125)) for y in (-1, 1)]
    return join(*feet, *rails, *_deck(rng, int(rng.integers(6, 9)), length, width, 0.13, 0.3))
