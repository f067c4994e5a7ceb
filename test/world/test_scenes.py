import numpy as np
import pytest

from edge_perception.world.scenes import another_view, make_scene
from edge_perception.world.spec import Split


def test_a_seed_gives_the_same_scene_again():
    assert make_scene(7, Split.TRAIN) == make_scene(7, Split.TRAIN)
    assert make_scene(7, Split.TRAIN) != make_scene(8, Split.TRAIN)
    assert make_scene(7, Split.TRAIN) != make_scene(7, Split.HELD_OUT)


def test_another_view_keeps_the_objects_and_changes_light_and_camera():
    scene = make_scene(7, Split.TRAIN)
    view = another_view(scene, 0)
    assert view.objects is scene.objects
    assert view.path != scene.path
    assert view.lighting != scene.lighting


@pytest.mark.parametrize("layout", ["table", "aisle"])
def test_objects_on_one_support_do_not_overlap(layout):
    for seed in range(8):
        scene = make_scene(seed, Split.HELD_OUT, layout=layout)
        things = [t for t in scene.objects if t.family != "slab"]
        for index, first in enumerate(things):
            for second in things[index + 1 :]:
                if first.position[2] == second.position[2]:
                    gap = np.hypot(*np.subtract(first.position, second.position)[:2])
                    radii = np.hypot(*first.size[:2]) + np.hypot(*second.size[:2])
                    assert gap >= radii / 2 - 1e-6


def test_instance_ids_count_the_labelled_objects():
    scene = make_scene(3, Split.TRAIN)
    assert [t.instance_id for t in scene.labelled] == list(range(1, len(scene.labelled) + 1))
    assert all(t.instance_id == 0 for t in scene.objects if t.class_name is None)


def test_a_camera_path_is_smooth():
    path = make_scene(3, Split.TRAIN, duration_s=10.0).path
    eyes = np.array([path.at(t)[0] for t in np.arange(0, 10, 1 / 30)])
    assert np.abs(np.diff(eyes, axis=0)).max() < 0.03
