from dataclasses import replace

import numpy as np
import pytest

from edge_perception.errors import RenderError
from edge_perception.world.frames import render_frame, render_frames
from edge_perception.world.scenes import make_scene
from edge_perception.world.spec import CLASS_NAMES, Split

renderer_module = pytest.importorskip("edge_perception.world.renderer")


@pytest.fixture(scope="module")
def renderer():
    try:
        with renderer_module.Renderer() as opened:
            yield opened
    except RenderError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def staged():
    """A ball, and a box in front of it on the camera's axis; nothing else but the room."""
    scene = make_scene(5, Split.TRAIN, layout="aisle")
    ball = next(t for t in make_scene(2, Split.TRAIN).objects if t.class_name == "ball")
    ball = replace(ball, instance_id=1, position=(2.0, 0.0, 0.0), size=(0.4, 0.4, 0.4))
    hider = replace(ball, instance_id=2, class_name="box", family="slab")
    room = tuple(t for t in scene.objects if t.colour_name in ("floor", "wall"))
    still = ((0.0, 0.0, 0.2), *[(0.0, 0.0, 0.0)] * 4)
    gaze = ((2.0, 0.0, 0.2), *[(0.0, 0.0, 0.0)] * 4)
    path = replace(scene.path, eye=still, target=gaze)
    return replace(scene, path=path), room, ball, hider


def test_an_object_in_the_open_is_not_occluded(renderer, staged):
    scene, room, ball, _ = staged
    (frame,) = render_frames(renderer, replace(scene, objects=(*room, ball)), [0.0])
    assert frame.occlusion.tolist() == [0.0]
    x1, y1, x2, y2 = frame.boxes_xyxy[0]
    assert (x1 + x2) / 2 == pytest.approx(320, abs=1)
    assert (y1 + y2) / 2 == pytest.approx(240, abs=1)
    distance = 2.0 * np.sqrt(1 - 0.1**2)  # to the sphere's silhouette
    assert (x2 - x1) == pytest.approx(0.4 * scene.intrinsics.fx / distance, rel=0.02)
    assert frame.visible_pixels[0] == pytest.approx(np.pi / 4 * (x2 - x1) ** 2, rel=0.03)


def test_half_covered_is_half_occluded_and_its_box_shrinks(renderer, staged):
    scene, room, ball, hider = staged
    left = replace(hider, position=(1.0, 0.25, 0.0), size=(0.02, 0.5, 0.6), yaw=0.0)
    (frame,) = render_frames(renderer, replace(scene, objects=(*room, ball, left)), [0.0])
    assert frame.instance_ids.tolist() == [1, 2]
    assert frame.occlusion[0] == pytest.approx(0.5, abs=0.02)
    assert frame.occlusion[1] == 0.0
    assert frame.boxes_xyxy[0, 0] == pytest.approx(320, abs=1.5)
    assert frame.ignored.tolist() == [False, False]


def test_an_almost_hidden_object_is_ignored(renderer, staged):
    scene, room, ball, hider = staged
    left = replace(hider, position=(1.0, 0.18, 0.0), size=(0.02, 0.5, 0.6), yaw=0.0)
    (frame,) = render_frames(renderer, replace(scene, objects=(*room, ball, left)), [0.0])
    assert frame.occlusion[0] > 0.75
    assert frame.ignored.tolist() == [True, False]


def test_a_frame_is_the_same_again_and_its_boxes_lie_inside(renderer):
    scene = make_scene(11, Split.HELD_OUT)
    (first,) = render_frames(renderer, scene, [1.0])
    again = render_frame(renderer, scene, 1.0)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    assert first.rgb.shape == (480, 640, 3)
    assert first.rgb.std() > 10
    boxes = first.boxes_xyxy
    assert len(boxes)
    assert (boxes >= 0).all()
    assert (boxes <= (640, 480, 640, 480)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert set(first.class_ids) <= set(range(len(CLASS_NAMES)))
    assert ((first.occlusion >= 0) & (first.occlusion <= 1)).all()


def test_rendering_without_a_scene_is_refused():
    try:
        with renderer_module.Renderer() as empty, pytest.raises(RenderError, match="No scene"):
            empty.render(0.0)
    except RenderError as error:
        pytest.skip(str(error))
