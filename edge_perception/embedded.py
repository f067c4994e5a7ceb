"""Where the files that the package carries lie: in the source tree, or under an install prefix."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from edge_perception.errors import ConfigError

DEMO_MANIFEST = "engines/demo_yolox_nano.yaml"
DEMO_VLM_MANIFEST = "engines/demo_vlm/manifest.yaml"


def carried_file(relative: str) -> Path:
    """Return the path of a file that the package carries, such as ``config/fastdds.xml``.

    Raises:
        ConfigError: it is in none of the places.
    """
    for root in _roots():
        if (root / relative).is_file():
            return root / relative
    raise ConfigError(
        f"the package's file {relative!r} is missing",
        expected=f"in one of {', '.join(str(root) for root in _roots())}",
        mend="Install the package again.",
    )


def demo_manifest() -> Path:
    """Return the manifest of the embedded demo detector."""
    return carried_file(DEMO_MANIFEST)


def demo_vlm_manifest() -> Path:
    """Return the manifest of the embedded demo vision-language model."""
    return carried_file(DEMO_VLM_MANIFEST)


def _roots() -> Iterator[Path]:
    yield Path(__file__).resolve().parents[1]
    for prefix in (*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix):
        if prefix:
            yield Path(prefix) / "share" / "edge_perception"
