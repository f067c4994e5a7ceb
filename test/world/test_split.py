"""Held-out scenes share no mesh, pattern, shade or light rig with training scenes."""

import colorsys

import numpy as np
import pytest

from edge_perception.world.families import FAMILIES, build_shape
from edge_perception.world.lighting import RIGS
from edge_perception.world.materials import (
    COLOURS,
    GRAIN_PATTERN,
    GROUND_PATTERNS,
    OBJECT_PATTERNS,
    PRINT_PATTERN,
    colour,
)
from edge_perception.world.scenes import another_view, make_scene
from edge_perception.world.spec import CLASS_NAMES, Pattern, Split

FAMILY_NAMES = [
    family.__name__
    for classes in FAMILIES.values()
    for families in classes.values()
    for family in families
]


@pytest.fixture(scope="module")
def scenes():
    return {split: [make_scene(seed, split) for seed in range(25)] for split in Split}


def drawn(scenes, split, what):
    return {value for scene in scenes[split] for value in what(scene)}


PROPERTIES = {
    "mesh families": lambda s: {o.family for o in s.objects if o.family != "slab"},
    "mesh seeds": lambda s: {(o.family, o.shape_seed) for o in s.objects if o.family != "slab"},
    "patterns": lambda s: {
        m.pattern for o in s.objects for m in o.materials if m.pattern is not Pattern.PLAIN
    },
    "colours": lambda s: {m.colour for o in s.objects for m in o.materials},
    "light rigs": lambda s: {another_view(s, k).lighting.rig for k in range(4)},
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_scenes_of_the_two_splits_have_nothing_in_common(scenes, name):
    train = drawn(scenes, Split.TRAIN, PROPERTIES[name])
    held_out = drawn(scenes, Split.HELD_OUT, PROPERTIES[name])
    assert train
    assert held_out
    assert not train & held_out


def test_tables_of_the_split_are_disjoint():
    for table in (OBJECT_PATTERNS, GROUND_PATTERNS, RIGS):
        assert not set(table[Split.TRAIN]) & set(table[Split.HELD_OUT])
    for table in (PRINT_PATTERN, GRAIN_PATTERN):
        assert table[Split.TRAIN] is not table[Split.HELD_OUT]
    assert len(set(FAMILY_NAMES)) == len(FAMILY_NAMES)


def test_every_class_has_families_in_both_splits():
    for classes in FAMILIES.values():
        assert set(CLASS_NAMES) < set(classes)
        assert all(len(families) >= 2 for families in classes.values())


@pytest.mark.parametrize("name", [n for n in COLOURS if n not in ("white", "grey", "black")])
def test_a_colour_name_has_other_hues_in_each_split(name):
    rng, middle = np.random.default_rng(3), np.mean(COLOURS[name].hue)

    def hues(split):
        for _ in range(200):
            rgb = [channel ** (1 / 2.2) for channel in colour(rng, split, name)]
            yield (colorsys.rgb_to_hsv(*rgb)[0] * 360 - middle + 180) % 360

    assert max(hues(Split.TRAIN)) < min(hues(Split.HELD_OUT))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_mesh_rests_on_the_ground_with_unit_normals(family):
    for seed in range(3):
        mesh = build_shape(family, seed)
        assert np.isfinite(mesh.positions).all()
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-3)
        assert mesh.positions[:, 2].min() == pytest.approx(0, abs=1e-5)
        assert len(mesh.positions) == len(mesh.normals) == len(mesh.slots)
        assert len(mesh.positions) % 3 == 0
        assert mesh.slots.max() < 4
