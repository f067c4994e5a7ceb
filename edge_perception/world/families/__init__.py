"""Every mesh family by class and split: the one table of what may stand in which half of the world.

A family appears once, in one split. Nothing but the class's idea is shared between the halves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.random import Generator

from edge_perception.world.families import clutter, floor, plants, robots, tabletop
from edge_perception.world.mesh import Mesh, box
from edge_perception.world.spec import Split

Family = Callable[[Generator], Mesh]

_T, _F, _P, _R, _C = tabletop, floor, plants, robots, clutter

FAMILIES: dict[Split, dict[str, tuple[Family, ...]]] = {
    Split.TRAIN: {
        "bottle": (_T.bottle_wine, _T.bottle_soda, _T.bottle_detergent),
        "cup": (_T.cup_mug, _T.cup_tapered, _T.cup_round),
        "bowl": (_T.bowl_round, _T.bowl_flared, _T.bowl_flat),
        "can": (_T.can_soda, _T.can_tin, _T.can_ribbed),
        "box": (_T.box_taped, _T.box_flaps, _T.box_printed),
        "ball": (_T.ball_plain, _T.ball_slices, _T.ball_banded),
        "cone": (_F.cone_square, _F.cone_round, _F.cone_heavy),
        "chair": (
            _F.chair_slatted,
            _F.chair_office,
            _F.chair_shell,
            _F.chair_folding,
            _F.chair_armchair,
            _F.chair_pedestal,
        ),
        "plant": (
            _P.plant_broadleaf,
            _P.plant_spiky,
            _P.plant_bush,
            _P.plant_tree,
            _P.plant_cactus,
            _P.plant_sword,
            _P.plant_grass,
            _P.plant_succulent,
            _P.plant_stalked,
            _P.plant_trailing,
        ),
        "person": (
            _F.person_standing,
            _F.person_walking,
            _F.person_carrying,
            _F.person_reaching,
        ),
        "pallet": (
            _F.pallet_euro,
            _F.pallet_stringer,
            _F.pallet_half,
            _F.pallet_plastic,
            _F.pallet_crossed,
        ),
        "robot": (
            _R.robot_disc,
            _R.robot_amr,
            _R.robot_mast,
            _R.robot_quadruped,
            _R.robot_manipulator,
            _R.robot_waiter,
            _R.robot_dome,
            _R.robot_courier,
            _R.robot_butler,
            _R.robot_tug,
        ),
        "clutter": (_C.torus, _C.star, _C.bracket, _C.wedge),
    },
    Split.HELD_OUT: {
        "bottle": (_T.bottle_water, _T.bottle_sauce),
        "cup": (_T.cup_espresso, _T.cup_tankard),
        "bowl": (_T.bowl_stepped, _T.bowl_tulip),
        "can": (_T.can_slim, _T.can_coffee),
        "box": (_T.box_lidded, _T.box_strapped),
        "ball": (_T.ball_seamed, _T.ball_patched),
        "cone": (_F.cone_octagon, _F.cone_stubby),
        "chair": (_F.chair_cantilever, _F.chair_bentwood),
        "plant": (_P.plant_palm, _P.plant_fern),
        "person": (_F.person_waving, _F.person_coated),
        "pallet": (_F.pallet_closed, _F.pallet_footed),
        "robot": (_R.robot_screen, _R.robot_tracked),
        "clutter": (_C.coil, _C.knot, _C.arch, _C.spindle),
    },
}


def slab(_rng: Generator) -> Mesh:
    """Furniture of both splits: a unit cube, scaled to a table top, a wall, a board."""
    return box((1.0, 1.0, 1.0))


_BY_NAME: dict[str, Family] = {"slab": slab} | {
    family.__name__: family
    for classes in FAMILIES.values()
    for families in classes.values()
    for family in families
}


@lru_cache(maxsize=256)
def build_shape(family: str, shape_seed: int) -> Mesh:
    """The grounded mesh of a family for a seed, before it is scaled to its object's size."""
    return _BY_NAME[family](np.random.default_rng(shape_seed)).grounded()
