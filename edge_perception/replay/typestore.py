"""The message types that replay reads and writes without a ROS installation.

``rosbags`` brings the common interfaces of each distribution but not ``vision_msgs``, whose
definitions are read as text from where they lie: the source tree's ``interfaces/``, or the share
folder of an installed ``vision_msgs``. The types used here have the same fields in Humble, Jazzy
and later, so one store reads the bags of all of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from edge_perception.errors import BagError

_SOURCE_TREE = Path(__file__).resolve().parents[2]
_SENTINEL = "Detection2DArray.msg"


def _definition_folders() -> Iterator[Path]:
    yield _SOURCE_TREE / "interfaces" / "vision_msgs" / "msg"
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    for prefix in (*filter(None, prefixes), sys.prefix):
        yield Path(prefix) / "share" / "vision_msgs" / "msg"


def find_vision_msgs() -> Path:
    """Return the folder that holds the text definitions of ``vision_msgs``.

    Raises:
        BagError: neither the source tree nor any ament prefix holds them.

    """
    folders = list(_definition_folders())
    for folder in folders:
        if (folder / _SENTINEL).is_file():
            return folder
    raise BagError(
        "the definitions of vision_msgs were not found",
        expected=f"{_SENTINEL} in one of {[str(folder) for folder in folders]}",
        mend="Run `make setup`, or source a ROS 2 installation that has vision_msgs.",
    )


@lru_cache(maxsize=1)
def load_typestore() -> Typestore:
    """Return the shared store: the common interfaces of Jazzy and ``vision_msgs``.

    Raises:
        BagError: the definitions of ``vision_msgs`` were not found.

    """
    store = get_typestore(Stores.ROS2_JAZZY)
    types = {}
    for path in sorted(find_vision_msgs().glob("*.msg")):
        types.update(get_types_from_msg(path.read_text(), f"vision_msgs/msg/{path.stem}"))
    store.register(types)
    return store
