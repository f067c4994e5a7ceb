"""Triangle meshes from primitives: lathes, boxes, tubes, superellipsoids, prisms and leaves.

A mesh is a plain soup of triangles, three vertices each, with normals and a material slot a
vertex: nothing is shared or indexed, so joining is concatenation and a whole scene is one draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]

_CREASE_COS = float(np.cos(np.deg2rad(35.0)))


@dataclass(frozen=True)
class Mesh:
    """``positions`` and ``normals`` float32 (3T, 3), ``slots`` uint8 (3T,) index materials."""

    positions: Floats
    normals: Floats
    slots: NDArray[np.uint8]

    def moved(self, offset: ArrayLike) -> Mesh:
        """The mesh translated by ``offset`` (3,)."""
        return Mesh(
            (self.positions + np.asarray(offset, np.float32)).astype(np.float32),
            self.normals,
            self.slots,
        )

    def scaled(self, factors: ArrayLike) -> Mesh:
        """The mesh scaled about the origin by ``factors``, a scalar or (3,)."""
        scale = np.broadcast_to(np.asarray(factors, np.float32), (3,))
        normals = self.normals / scale
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
        return Mesh((self.positions * scale).astype(np.float32), normals, self.slots)

    def rotated(self, axis: int, angle: float) -> Mesh:
        """The mesh rotated about a coordinate axis (0, 1 or 2) by ``angle`` radians."""
        matrix = rotation(axis, angle)
        return Mesh(self.positions @ matrix.T, self.normals @ matrix.T, self.slots)

    def grounded(self) -> Mesh:
        """The mesh with its lowest point at z = 0 and its footprint's middle on the z axis."""
        low, high = self.positions.min(axis=0), self.positions.max(axis=0)
        return self.moved((-(low[0] + high[0]) / 2, -(low[1] + high[1]) / 2, -low[2]))

    @property
    def size(self) -> Floats:
        """Extent along x, y, z, float32 (3,)."""
        return np.asarray(self.positions.max(axis=0) - self.positions.min(axis=0), np.float32)


def rotation(axis: int, angle: float) -> Floats:
    """The float32 (3, 3) matrix of a rotation about a coordinate axis."""
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.eye(3, dtype=np.float32)
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def join(*meshes: Mesh) -> Mesh:
    """One mesh of all the triangles."""
    return Mesh(
        np.concatenate([mesh.positions for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.slots for mesh in meshes]),
    )


def faceted(triangles: ArrayLike, slot: int = 0) -> Mesh:
    """Flat-shaded triangles, float (T, 3, 3)."""
    corners = np.asarray(triangles, np.float32)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Mesh(
        corners.reshape(-1, 3),
        np.repeat(normals, 3, axis=0).astype(np.float32),
        np.full(len(corners) * 3, slot, np.uint8),
    )


def _grid(points: Floats, normals: Floats, slot: int) -> Mesh:
    """Quads between neighbours of a (rows, columns, 3) grid, as triangles."""

    def corners(values: Floats) -> Floats:
        a, b, c, d = values[:-1, :-1], values[1:, :-1], values[1:, 1:], values[:-1, 1:]
        return np.stack([a, b, c, a, c, d], axis=2).reshape(-1, 3)

    positions = corners(points).astype(np.float32)
    return Mesh(
        positions, corners(normals).astype(np.float32), np.full(len(positions), slot, np.uint8)
    )


def lathe(
    profile: ArrayLike,
    slot: int = 0,
    *,
    segments: int = 28,
    squareness: float = 2.0,
    ripple: tuple[int, float] = (0, 0.0),
) -> Mesh:
    """A profile of (radius, z) rows, (K, 2), turned about z; sharp corners stay sharp.

    ``squareness`` is the exponent of the superellipse that replaces the circle (2 is round, 8
    almost square); ``ripple`` is (lobes, relative depth) around the circumference.
    """
    rows = np.asarray(profile, np.float64)
    angles = np.linspace(0.0, 2 * np.pi, segments + 1)
    cosine, sine = np.cos(angles), np.sin(angles)
    radius = (np.abs(cosine) ** squareness + np.abs(sine) ** squareness) ** (-1 / squareness)
    radius *= 1 + ripple[1] * np.cos(ripple[0] * angles)
    parts = []
    for run, tangents in _smooth_runs(rows):
        around = np.stack([cosine * radius, sine * radius], axis=-1)
        points = np.empty((len(run), segments + 1, 3))
        points[..., :2] = run[:, None, :1] * around[None]
        points[..., 2] = run[:, 1:]
        ring = np.roll(around[:-1], -1, axis=0) - np.roll(around[:-1], 1, axis=0)
        ring = np.concatenate([ring, ring[:1]])
        outward = np.stack([ring[:, 1], -ring[:, 0]], axis=-1)
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        normals = np.empty_like(points)
        normals[..., :2] = tangents[:, None, 1:] * outward[None]
        normals[..., 2] = -tangents[:, :1]
        parts.append(_grid(points.astype(np.float32), normals.astype(np.float32), slot))
    return join(*parts)


def _smooth_runs(
    rows: NDArray[np.float64],
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Split a profile at its creases into (points, unit tangents) runs."""
    steps = np.diff(rows, axis=0)
    keep = np.linalg.norm(steps, axis=1) > 1e-9
    rows = np.concatenate([rows[:1], rows[1:][keep]])
    steps = steps[keep] / np.linalg.norm(steps[keep], axis=1, keepdims=True)
    runs, start = [], 0
    for corner in range(1, len(steps) + 1):
        ends = corner == len(steps)
        if ends or float(steps[corner - 1] @ steps[corner]) < _CREASE_COS:
            inner = steps[start:corner]
            tangents = np.concatenate([inner[:1], inner[:-1] + inner[1:], inner[-1:]])
            tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
            runs.append((rows[start : corner + 1], tangents))
            start = corner
    return runs


def cylinder(radius: float, height: float, slot: int = 0, *, top: float | None = None) -> Mesh:
    """A closed cylinder, or a frustum of radius ``top`` above, standing on z = 0."""
    upper = radius if top is None else top
    return lathe([(1e-4, 0), (radius, 0), (upper, height), (1e-4, height)], slot, segments=20)


def box(size: ArrayLike, centre: ArrayLike = (0, 0, 0), slot: int = 0) -> Mesh:
    """An axis-aligned box of ``size`` (3,) about ``centre`` (3,)."""
    signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
    corner = signs * np.asarray(size, np.float32) / 2 + np.asarray(centre, np.float32)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [[corner[a], corner[b], corner[c]] for a, b, c, _ in quads]
    faces += [[corner[a], corner[c], corner[d]] for a, _, c, d in quads]
    return faceted(np.array(faces), slot)


def ellipsoid(
    radii: ArrayLike,
    centre: ArrayLike = (0, 0, 0),
    slot: int = 0,
    *,
    squareness: float = 2.0,
    segments: int = 20,
) -> Mesh:
    """A superellipsoid: 2 is an ellipsoid, larger exponents come near a rounded box."""
    latitude = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)[:, None]
    longitude = np.linspace(-np.pi, np.pi, segments + 1)[None, :]
    unit = np.stack(
        np.broadcast_arrays(
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ),
        axis=-1,
    )
    stretch = (np.abs(unit) ** squareness).sum(axis=-1, keepdims=True) ** (-1 / squareness)
    points = unit * stretch
    normals = np.sign(points) * np.abs(points) ** (squareness - 1) / np.asarray(radii)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    placed = points * np.asarray(radii) + np.asarray(centre)
    return _grid(placed.astype(np.float32), normals.astype(np.float32), slot)


def tube(
    path: ArrayLike, radius: float | Sequence[float], slot: int = 0, *, sides: int = 10
) -> Mesh:
    """A round tube along ``path`` (K, 3), of one radius or one a point, without caps."""
    points = np.asarray(path, np.float64)
    tangents = np.gradient(points, axis=0)
    tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-9)
    helper = np.eye(3)[int(np.argmin(np.abs(tangents).max(axis=0)))]
    across = np.cross(tangents, helper)
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    upward = np.cross(tangents, across)
    angles = np.linspace(0, 2 * np.pi, sides + 1)
    normals = (
        across[:, None] * np.cos(angles)[None, :, None]
        + upward[:, None] * np.sin(angles)[None, :, None]
    )
    radii = np.broadcast_to(np.asarray(radius, np.float64), (len(points),))
    rings = points[:, None] + normals * radii[:, None, None]
    return _grid(rings.astype(np.float32), normals.astype(np.float32), slot)


def capsule(
    start: ArrayLike, end: ArrayLike, radius: float, slot: int = 0, *, taper: float = 1.0
) -> Mesh:
    """A limb from ``start`` to ``end`` with round ends; ``taper`` scales the radius at the end."""
    first, last = np.asarray(start, float), np.asarray(end, float)
    direction = (last - first) / max(float(np.linalg.norm(last - first)), 1e-9)
    bend = np.linspace(0, np.pi / 2, 4)
    path = [first - direction * radius * np.cos(b) for b in bend]
    path += [last + direction * radius * taper * np.sin(b) for b in bend]
    radii = [radius * max(np.sin(b), 0.02) for b in bend]
    radii += [radius * taper * max(np.cos(b), 0.02) for b in bend]
    return tube(np.array(path), radii, slot)


def prism(outline: ArrayLike, height: float, slot: int = 0) -> Mesh:
    """A star-shaped outline (K, 2) about the origin, extruded from z = 0 to ``height``."""
    ring = np.asarray(outline, np.float32)
    following = np.roll(ring, -1, axis=0)
    low = np.concatenate([ring, np.zeros((len(ring), 1), np.float32)], axis=1)
    low_next = np.concatenate([following, np.zeros((len(ring), 1), np.float32)], axis=1)
    up = np.array([0, 0, height], np.float32)
    middle = np.zeros_like(low)
    faces = [
        np.stack([low, low_next, low_next + up], axis=1),
        np.stack([low, low_next + up, low + up], axis=1),
        np.stack([middle + up, low + up, low_next + up], axis=1),
        np.stack([middle, low_next, low], axis=1),
    ]
    return faceted(np.concatenate(faces), slot)


def polygon(corners: int, radius: float, phase: float = 0.0) -> Floats:
    """A regular outline, float32 (corners, 2)."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + phase
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * radius


def leaf(length: float, width: float, droop: float, slot: int = 0, *, steps: int = 6) -> Mesh:
    """A pointed, folded blade from the origin along x, bending down by ``droop`` radians."""
    along = np.linspace(0, 1, steps + 1)
    bend = -droop * along
    spine = np.stack([np.cumsum(np.cos(bend)), 0 * along, np.cumsum(np.sin(bend))], axis=1)
    spine = (spine - spine[0]) * length / steps
    half = width / 2 * np.sin(np.pi * np.clip(along, 0.06, 0.99)) ** 0.7
    edge = np.stack([0 * along, half, half * 0.35], axis=1)
    rows = np.stack([spine - edge * (1, 1, -1), spine, spine + edge], axis=0)
    rows = rows.astype(np.float32)
    a, b, c, d = rows[:-1, :-1], rows[1:, :-1], rows[1:, 1:], rows[:-1, 1:]
    triangles = np.concatenate(
        [
            np.stack([a, b, c], axis=2).reshape(-1, 3, 3),
            np.stack([a, c, d], axis=2).reshape(-1, 3, 3),
        ]
    )
    return faceted(triangles, slot)
