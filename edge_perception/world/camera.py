"""Where a camera stands and what it projects: look-at poses and OpenGL matrices.

The camera looks along its own +z, x is right and y down (REP-103's optical frame), so row 0 of a
rendered picture is its top without any flipping.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_perception.world.spec import Intrinsics

Matrix = NDArray[np.float64]

NEAR_M, FAR_M = 0.05, 40.0


def look_at(eye: ArrayLike, target: ArrayLike) -> Matrix:
    """World to optical frame, float64 (4, 4), for a level camera at ``eye`` facing ``target``."""
    origin = np.asarray(eye, np.float64)
    forward = np.asarray(target, np.float64) - origin
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    rows = np.stack([right, np.cross(forward, right), forward])
    view = np.eye(4)
    view[:3, :3], view[:3, 3] = rows, -rows @ origin
    return view


def projection(camera: Intrinsics) -> Matrix:
    """Optical frame to OpenGL clip space, float64 (4, 4); clip y grows downwards in the picture."""
    depth = FAR_M - NEAR_M
    return np.array(
        [
            [2 * camera.fx / camera.width, 0, 2 * camera.cx / camera.width - 1, 0],
            [0, 2 * camera.fy / camera.height, 2 * camera.cy / camera.height - 1, 0],
            [0, 0, (FAR_M + NEAR_M) / depth, -2 * FAR_M * NEAR_M / depth],
            [0, 0, 1, 0],
        ]
    )


def shadow_projection(light: ArrayLike, focus: ArrayLike, radius: float) -> Matrix:
    """World to the clip space of a light's shadow map covering ``radius`` m around ``focus``."""
    towards = np.add(focus, (1e-3, 2e-3, 0.0))
    reach = float(np.linalg.norm(towards - np.asarray(light)))
    spread = min(radius / reach, 2.2)
    near, far = 0.2, reach + 2.5 * radius
    lens = np.array(
        [
            [1 / spread, 0, 0, 0],
            [0, 1 / spread, 0, 0],
            [0, 0, (far + near) / (far - near), -2 * far * near / (far - near)],
            [0, 0, 1, 0],
        ]
    )
    return lens @ look_at(light, towards)
