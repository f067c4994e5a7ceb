"""Mesh families of things that carry no label: distractors no class resembles."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from edge_perception.world.mesh import Mesh, box, join, lathe, polygon, prism, tube


def torus(rng: Generator) -> Mesh:
    """A ring."""
    angles = np.linspace(0, 2 * np.pi, 25)
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1) * 0.05
    return tube(ring, rng.uniform(0.012, 0.02)).grounded()


def star(rng: Generator) -> Mesh:
    """A star with a flat top."""
    points = int(rng.integers(4, 8))
    outline = polygon(2 * points, 0.06)
    outline[1::2] *= rng.uniform(0.4, 0.6)
    return prism(outline, rng.uniform(0.02, 0.06))


def bracket(rng: Generator) -> Mesh:
    """An L of two plates."""
    arm = rng.uniform(0.08, 0.14)
    return join(
        box((arm, 0.05, 0.02), (arm / 2, 0, 0.01)), box((0.02, 0.05, arm), (0.01, 0, arm / 2))
    ).grounded()


def wedge(rng: Generator) -> Mesh:
    """A triangular block."""
    return (
        prism(polygon(3, rng.uniform(0.05, 0.08)), rng.uniform(0.05, 0.12))
        .rotated(0, np.pi / 2)
        .grounded()
    )


def coil(rng: Generator) -> Mesh:
    """A spring."""
    angles = np.linspace(0, 2 * np.pi * rng.uniform(3, 5), 70)
    path = np.stack([0.045 * np.cos(angles), 0.045 * np.sin(angles), angles * 0.005], axis=1)
    return tube(path, 0.007, sides=7).grounded()


def knot(rng: Generator) -> Mesh:
    """A torus knot."""
    t = np.linspace(0, 2 * np.pi, 70)
    p, q = (2, 3) if rng.random() < 0.5 else (3, 4)
    r = np.cos(q * t) + 2
    path = np.stack([r * np.cos(p * t), r * np.sin(p * t), -np.sin(q * t)], axis=1) * 0.02
    return tube(path, 0.01, sides=7).grounded()


def arch(rng: Generator) -> Mesh:
    """Half a hoop, standing."""
    angles = np.linspace(0, np.pi, 12)
    path = np.stack([0.06 * np.cos(angles), 0 * angles, 0.08 * np.sin(angles)], axis=1)
    return tube(path, rng.uniform(0.012, 0.02)).grounded()


def spindle(rng: Generator) -> Mesh:
    """A fluted spindle, lying."""
    rows = [(1e-4, 0), (0.04, 0.01), (0.012, 0.05), (0.035, 0.075), (0.012, 0.1), (1e-4, 0.11)]
    return lathe(rows, ripple=(int(rng.integers(3, 7)), 0.25)).rotated(0, np.pi / 2).grounded()
