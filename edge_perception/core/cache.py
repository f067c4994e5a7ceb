"""Where this package keeps on a user's disk what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

from edge_perception.errors import EngineError


def cache_folder(name: str) -> Path:
    """Return ``$XDG_CACHE_HOME/edge_perception/<name>``, by default under ``~/.cache``.

    Raises:
        EngineError: the user has no home, as one that only a container's number names.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(given) if given else Path.home() / ".cache"
    except RuntimeError as error:
        raise EngineError(
            f"no folder for {name} ({error})", mend="Set XDG_CACHE_HOME to one that can be written."
        ) from error
    return home / "edge_perception" / name
