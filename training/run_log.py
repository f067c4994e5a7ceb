"""What a training run tells about itself: JSON lines in a file, and on the screen."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class RunLog:
    """Appends JSON lines to a file and prints them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: str, **values: object) -> None:
        """Append one event with the wall-clock time."""
        line = json.dumps({"event": event, "time": round(time.time(), 1), **values})
        with self._path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
