"""What one picture shows, as plain facts: the truth that questions and captions are made from.

A ``Sight`` is taken from a rendered frame and its scene, travels in the data set's COCO records,
and can be mirrored, so that a flipped picture has its own true questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_perception.world.families import build_shape
from edge_perception.world.frames import MIN_BOX_SIDE_PX, MIN_VISIBLE_PIXELS, Frame
from edge_perception.world.materials import MAIN_SLOT
from edge_perception.world.spec import (
    CLASS_NAMES,
    IMAGE_HEIGHT_PX,
    IMAGE_WIDTH_PX,
    ObjectSpec,
    Pattern,
    SceneSpec,
    Vector,
)

_CLEAR_SHARE = 0.5
_CLEAR_PIXELS = 4 * MIN_VISIBLE_PIXELS
_CLEAR_SIDE_PX = 2 * MIN_BOX_SIDE_PX

_MAIN_COLOUR_SHARE = 0.6
"""A colour is an object's where it covers this share of its surface or more."""
_FAINT = 0.35
_SHADE = 0.55
_COLOURLESS = ("person", "plant")
"""Classes whose colour nobody would agree on."""


@dataclass(frozen=True)
class SeenObject:
    """A labelled object in view, however little of it.

    ``position_m`` is its middle in the camera's optical frame (right, down, forward);
    ``visible_share`` is 1 where nothing hides it; ``colour`` None where it has no one colour.
    """

    class_name: str
    colour: str | None
    box_xyxy: tuple[float, float, float, float]
    visible_share: float
    visible_pixels: int
    position_m: Vector

    @property
    def is_clear(self) -> bool:
        """Whether anybody would see and name it."""
        x1, y1, x2, y2 = self.box_xyxy
        return (
            self.visible_share >= _CLEAR_SHARE
            and self.visible_pixels >= _CLEAR_PIXELS
            and min(x2 - x1, y2 - y1) >= _CLEAR_SIDE_PX
        )

    @property
    def centre_px(self) -> float:
        """The column of the box's middle."""
        return (self.box_xyxy[0] + self.box_xyxy[2]) / 2

    @property
    def distance_m(self) -> float:
        """From the camera to the object's middle."""
        return float(np.linalg.norm(self.position_m))

    def mirrored(self) -> SeenObject:
        """The same in the picture flipped left to right."""
        x1, y1, x2, y2 = self.box_xyxy
        box = (IMAGE_WIDTH_PX - x2, y1, IMAGE_WIDTH_PX - x1, y2)
        right, down, forward = self.position_m
        return replace(self, box_xyxy=box, position_m=(-right, down, forward))


@dataclass(frozen=True)
class Sight:
    """A picture's facts; ``way_free`` is None where it cannot be said (see ``way_is_free``)."""

    layout: str
    way_free: bool | None
    objects: tuple[SeenObject, ...]

    def of_class(self, class_name: str) -> list[SeenObject]:
        """Every object of a class in view, clear or not."""
        return [thing for thing in self.objects if thing.class_name == class_name]

    @property
    def clear(self) -> list[SeenObject]:
        """The objects that anybody would see and name."""
        return [thing for thing in self.objects if thing.is_clear]

    def mirrored(self) -> Sight:
        """The facts of the picture flipped left to right."""
        return replace(self, objects=tuple(thing.mirrored() for thing in self.objects))

    @classmethod
    def from_coco(cls, image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]) -> Sight:
        """The facts that ``dataset`` wrote with an image and its annotations."""
        return cls(
            str(image["layout"]),
            image["way_free"],
            tuple(_seen(annotation) for annotation in annotations),
        )


def _seen(annotation: Mapping[str, Any]) -> SeenObject:
    x, y, width, height = annotation["bbox"]
    right, down, forward = annotation["position_m"]
    return SeenObject(
        class_name=CLASS_NAMES[annotation["category_id"] - 1],
        colour=annotation["colour"],
        box_xyxy=(x, y, x + width, y + height),
        visible_share=1 - annotation["occlusion"],
        visible_pixels=annotation["area"],
        position_m=(right, down, forward),
    )


def object_facts(frame: Frame, scene: SceneSpec) -> list[dict[str, Any]]:
    """What questions need of each object in view beside COCO's own: colour and position."""
    by_id = {thing.instance_id: thing for thing in scene.labelled}
    things = [by_id[int(instance)] for instance in frame.instance_ids]
    return [
        {"colour": nameable_colour(thing), "position_m": _in_camera(thing, frame.pose)}
        for thing in things
    ]


def _in_camera(thing: ObjectSpec, pose: NDArray[np.float64]) -> list[float]:
    x, y, z = thing.position
    middle = pose @ np.array([x, y, z + thing.size[2] / 2, 1.0])
    return [round(float(part), 3) for part in middle[:3]]


@lru_cache(maxsize=512)
def nameable_colour(thing: ObjectSpec) -> str | None:
    """The colour that covers the object, or None where patterns and parts leave no one name.

    A pattern counts as one colour where it is faint, or only a darker shade of the same: but
    white with dark is grey to some.
    """
    slot = MAIN_SLOT.get(str(thing.class_name), 0)
    if thing.class_name in _COLOURLESS or _slot_share(thing, slot) < _MAIN_COLOUR_SHARE:
        return None
    material = thing.materials[slot]
    shade = tuple(channel * _SHADE for channel in material.colour)
    of_one_hue = thing.colour_name != "white" and np.allclose(material.second_colour, shade)
    if material.pattern is Pattern.PLAIN or material.contrast < _FAINT or of_one_hue:
        return thing.colour_name
    return None


def _slot_share(thing: ObjectSpec, slot: int) -> float:
    """The share of the object's surface that is of one material slot."""
    mesh = build_shape(thing.family, thing.shape_seed)
    corners = mesh.positions.reshape(-1, 3, 3)
    sides = corners[:, 1:] - corners[:, :1]
    areas = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    return float(areas[mesh.slots[::3] == slot].sum() / max(areas.sum(), 1e-9))


# The way of a small robot: this far ahead of the camera along the floor, this wide to each side.
# What lies between "surely inside" and "surely outside" is not asked about.
_REACH_M = (1.5, 1.9)
_HALF_WIDTH_M = (0.25, 0.35)
_NEAR_M = 0.2
_NO_OBSTACLES = ("floor", "wall", "picture")


def way_is_free(frame: Frame, scene: SceneSpec) -> bool | None:
    """Whether nothing stands in the camera's way along the floor, for 1.9 m, 0.35 m to each side.

    False where something in view stands in the middle of it, within 1.5 m and 0.25 m. None in
    between, for what stands below or beside the picture, and at a table.
    """
    if scene.layout != "aisle":
        return None
    free = True
    for thing in scene.objects:
        if thing.colour_name in _NO_OBSTACLES and thing.family == "slab":
            continue
        ahead, aside = _on_the_floor(thing, frame.pose)
        inside = [
            bool(((ahead > _NEAR_M) & (ahead < reach) & (np.abs(aside) < width)).any())
            for reach, width in zip(_REACH_M, _HALF_WIDTH_M)
        ]
        if inside[0] and _in_picture(thing, frame, scene):
            return False
        free &= not inside[1]
    return True if free else None


def _on_the_floor(
    thing: ObjectSpec, pose: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of the object's footprint, as metres ahead of and aside from the camera."""
    right, forward = pose[0, :2], pose[2, :2]
    eye = -pose[:3, :3].T @ pose[:3, 3]
    steps = np.linspace(-0.5, 0.5, 5)
    local = np.stack(np.meshgrid(steps * thing.size[0], steps * thing.size[1]), -1).reshape(-1, 2)
    turn = np.array(
        [[np.cos(thing.yaw), -np.sin(thing.yaw)], [np.sin(thing.yaw), np.cos(thing.yaw)]]
    )
    points = local @ turn.T + np.asarray(thing.position[:2]) - eye[:2]
    return points @ forward / np.linalg.norm(forward), points @ right / np.linalg.norm(right)


def _in_picture(thing: ObjectSpec, frame: Frame, scene: SceneSpec) -> bool:
    """Whether the object's middle is projected into the picture and not mostly hidden."""
    if thing.instance_id:
        seen = np.nonzero(frame.instance_ids == thing.instance_id)[0]
        return len(seen) == 1 and not frame.ignored[seen[0]]
    right, down, forward = _in_camera(thing, frame.pose)
    camera = scene.intrinsics
    x, y = camera.fx * right / forward + camera.cx, camera.fy * down / forward + camera.cy
    return 0 <= x < IMAGE_WIDTH_PX and 0 <= y < IMAGE_HEIGHT_PX
