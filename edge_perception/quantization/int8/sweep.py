"""How much each layer costs when it alone computes in INT8: measured, and kept on disk.

A sweep of a large model takes long, so each layer's distance is written as soon as it is known. A
run that was stopped goes on where it stood; a file of another model, other frames or another recipe
is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from edge_perception.backends.engine_store import write_atomically


class SweepFile:
    """Distances by layer in a JSON file, valid for one ``key``."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        self.distances: dict[str, float] = {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["key"] == key:
                self.distances = {str(k): float(v) for k, v in content["distances"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # none yet, or not ours: measured again

    def record(self, layer: str, distance: float) -> None:
        """Write one more distance."""
        self.distances[layer] = distance
        content = {"key": self._key, "distances": self.distances}
        write_atomically(self._path, json.dumps(content, indent=1).encode())

    def remove(self) -> None:
        """Delete the file: its work is done."""
        self._path.unlink(missing_ok=True)


def sweep_layers(
    layers: Iterable[str],
    measure: Callable[[str], float],
    file: SweepFile,
    on_layer: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return each layer's distance, measuring those that the file does not know yet."""
    for layer in layers:
        if layer not in file.distances:
            file.record(layer, measure(layer))
        on_layer()
    return {layer: file.distances[layer] for layer in layers}
