"""Annotated frames: a picture with the exact box, class, track id and occlusion of every object.

The box is that of an object's visible pixels, in pixel edges (x1, y1, x2, y2), so its far corner
lies one past the last pixel. Occlusion is the share of the pixels it would fill in this picture,
if alone, that something else hides; what the picture's border cuts off does not count.
An object is ``ignored`` (COCO's iscrowd) where it is too small or too hidden to be asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_perception.world.spec import CLASS_NAMES, SceneSpec

if TYPE_CHECKING:
    from edge_perception.world.renderer import Renderer

MIN_VISIBLE_PIXELS = 120
"""An object with fewer visible pixels is ignored."""

MIN_BOX_SIDE_PX = 8
"""An object whose visible box is thinner than this is ignored."""

MIN_VISIBLE_SHARE = 0.25
"""An object of which less than this share is visible is ignored."""


@dataclass(frozen=True)
class Frame:
    """One picture and its truth; N objects in view, ordered by instance id.

    ``rgb`` uint8 (480, 640, 3); ``boxes_xyxy`` float32 (N, 4) px; ``class_ids`` int64 (N,);
    ``instance_ids`` int64 (N,), the same object's in every frame of its scene; ``occlusion``
    float32 (N,) in 0..1; ``visible_pixels`` int64 (N,); ``ignored`` bool (N,); ``pose`` float64
    (4, 4), world to optical frame; ``mask`` uint8 (480, 640), the instance id at each pixel, 0
    where there is none.
    """

    time_s: float
    rgb: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    instance_ids: NDArray[np.int64]
    occlusion: NDArray[np.float32]
    visible_pixels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    pose: NDArray[np.float64]
    mask: NDArray[np.uint8]


def render_frames(
    renderer: Renderer, scene: SceneSpec, times_s: Iterable[float]
) -> Iterator[Frame]:
    """Load ``scene`` and yield its frames at ``times_s`` seconds along the camera's path."""
    renderer.load(scene)
    for time_s in times_s:
        yield render_frame(renderer, scene, time_s)


def render_frame(renderer: Renderer, scene: SceneSpec, time_s: float) -> Frame:
    """One annotated frame of the scene that is loaded in ``renderer``."""
    rgb, mask, pose = renderer.render(time_s)
    ids, boxes, visible = _visible_boxes(mask)
    whole = np.array(renderer.unoccluded_pixels(pose, ids.tolist()), np.int64).reshape(-1)
    share = np.minimum(visible / np.maximum(whole, 1), 1.0)
    sides = boxes[:, 2:] - boxes[:, :2]
    ignored = (
        (visible < MIN_VISIBLE_PIXELS)
        | (share < MIN_VISIBLE_SHARE)
        | (sides.min(axis=1, initial=np.inf) < MIN_BOX_SIDE_PX)
    )
    class_of = {
        thing.instance_id: CLASS_NAMES.index(str(thing.class_name)) for thing in scene.labelled
    }
    class_ids = np.array([class_of[int(i)] for i in ids], np.int64)
    occlusion = (1 - share).astype(np.float32)
    return Frame(time_s, rgb, boxes, class_ids, ids, occlusion, visible, ignored, pose, mask)


def _visible_boxes(
    mask: NDArray[np.uint8],
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Instance ids (N,), boxes (N, 4) and pixel counts (N,) of a mask; 0 is nobody."""
    rows, columns = np.nonzero(mask)
    values = mask[rows, columns]
    counts = np.bincount(values, minlength=256)
    low, high = np.zeros((2, 256, 2), np.int64)
    for axis, places in enumerate((columns, rows)):
        seen = np.zeros((256, mask.shape[1 - axis]), np.bool_)
        seen[values, places] = True
        low[:, axis] = seen.argmax(axis=1)
        high[:, axis] = seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)
    ids = np.nonzero(counts)[0]
    boxes = np.concatenate([low[ids], high[ids] + 1], axis=1).astype(np.float32)
    return ids.astype(np.int64), boxes.reshape(-1, 4), counts[ids].astype(np.int64)
