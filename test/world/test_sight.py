from dataclasses import replace

import numpy as np
import pytest

from edge_perception.world.camera import look_at
from edge_perception.world.frames import Frame
from edge_perception.world.scenes import make_scene
from edge_perception.world.sight import Sight, nameable_colour, object_facts, way_is_free
from edge_perception.world.spec import Pattern, Split


def frame_of(scene, eye, target, ids=(), ignored=()):
    """A frame without a picture: what the camera at ``eye`` would annotate."""
    count = len(ids)
    return Frame(
        0.0, np.zeros((480, 640, 3), np.uint8), np.zeros((count, 4), np.float32),
        np.zeros(count, np.int64), np.array(ids, np.int64), np.zeros(count, np.float32),
        np.full(count, 900), np.array(ignored or [False] * count, bool), look_at(eye, target),
        np.zeros((480, 640), np.uint8),
    )  # fmt: skip


@pytest.fixture(scope="module")
def ball():
    things = make_scene(2, Split.TRAIN).objects
    found = next(thing for thing in things if thing.family == "ball_plain")
    return replace(found, instance_id=1, size=(0.3, 0.3, 0.3), yaw=0.0)


def aisle(*objects):
    return replace(make_scene(5, Split.TRAIN, layout="aisle"), objects=objects)


@pytest.mark.parametrize(
    ("position", "free", "reason"),
    [
        ((1.2, 0.0, 0.0), False, "in the middle of the way"),
        ((1.2, 0.3, 0.0), False, "its edge reaches into the middle"),
        ((1.2, 0.45, 0.0), None, "neither inside nor outside"),
        ((1.2, 0.9, 0.0), True, "beside the way"),
        ((1.8, 0.0, 0.0), None, "neither near nor far"),
        ((2.5, 0.0, 0.0), True, "far enough"),
        ((-1.0, 0.0, 0.0), True, "behind the camera"),
    ],
)
def test_way_is_free_where_nothing_stands_in_it(ball, position, free, reason):
    scene = aisle(replace(ball, position=position))
    frame = frame_of(scene, (0, 0, 0.5), (3, 0, 0.4), ids=[1])
    assert way_is_free(frame, scene) is free, reason


def test_way_follows_the_camera(ball):
    scene = aisle(replace(ball, position=(0.0, 1.2, 0.0)))
    assert way_is_free(frame_of(scene, (0, 0, 0.5), (0, 3, 0.4), ids=[1]), scene) is False
    assert way_is_free(frame_of(scene, (0, 0, 0.5), (3, 0, 0.4)), scene) is True


def test_way_is_unknown_for_what_is_not_in_the_picture_and_at_a_table(ball):
    scene = aisle(replace(ball, position=(1.2, 0.0, 0.0)))
    assert way_is_free(frame_of(scene, (0, 0, 0.5), (3, 0, 0.4)), scene) is None
    hidden = frame_of(scene, (0, 0, 0.5), (3, 0, 0.4), ids=[1], ignored=[True])
    assert way_is_free(hidden, scene) is None
    assert way_is_free(hidden, replace(scene, layout="table")) is None


def test_clutter_without_a_label_blocks_the_way_where_the_camera_sees_it(ball):
    clutter = replace(ball, instance_id=0, class_name=None, position=(1.2, 0.0, 0.0))
    scene = aisle(clutter)
    assert way_is_free(frame_of(scene, (0, 0, 0.5), (3, 0, 0.4)), scene) is False
    assert way_is_free(frame_of(scene, (0, 0, 0.5), (3, 0, 2.9)), scene) is None, (
        "below the picture"
    )


def with_surface(thing, **changes):
    first, *others = thing.materials
    return replace(thing, materials=(replace(first, **changes), *others))


@pytest.mark.parametrize(
    ("changes", "colour"),
    [
        ({"pattern": Pattern.PLAIN}, "red"),
        ({"pattern": Pattern.CHECKS, "contrast": 0.2}, "red"),
        ({"pattern": Pattern.CHECKS, "contrast": 0.9}, "red"),
        ({"pattern": Pattern.CHECKS, "contrast": 0.9, "second_colour": (0.0, 0.0, 1.0)}, None),
    ],
)
def test_colour_is_named_where_one_covers_the_object(ball, changes, colour):
    red = (0.8, 0.1, 0.1)
    shade = tuple(channel * 0.55 for channel in red)
    thing = replace(ball, colour_name="red")
    thing = with_surface(thing, **{"colour": red, "second_colour": shade, **changes})
    assert nameable_colour(thing) == colour


@pytest.mark.parametrize("class_name", ["person", "plant"])
def test_people_and_plants_have_no_one_colour(ball, class_name):
    assert nameable_colour(replace(ball, class_name=class_name)) is None


def test_sight_comes_back_from_the_records_of_a_data_set(ball):
    scene = aisle(replace(ball, position=(2.0, 0.0, 0.0), colour_name="blue"))
    (facts,) = object_facts(frame_of(scene, (0, 0, 0.15), (3, 0, 0.15), ids=[1]), scene)
    assert facts["position_m"] == pytest.approx([0.0, 0.0, 2.0], abs=1e-3)
    record = {
        "category_id": 6,
        "bbox": [300, 200, 40, 50],
        "occlusion": 0.25,
        "area": 1500,
        **facts,
    }
    sight = Sight.from_coco({"layout": "aisle", "way_free": False}, [record])
    (thing,) = sight.objects
    assert thing.class_name == "ball"
    assert thing.box_xyxy == (300, 200, 340, 250)
    assert (thing.visible_share, thing.distance_m) == (0.75, pytest.approx(2.0, abs=1e-3))
    assert thing.is_clear
