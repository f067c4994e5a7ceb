"""The model to plan for: by name, or a checkpoint folder, of which no weight is read.

A folder's ``config.json`` gives the language tower's shape, and the headers of its safetensors
files the exact bytes of all else (vision tower, projector), which stays in the type it is stored
in.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_perception.core.language_model import LanguageModelShape, read_shape
from edge_perception.embedded import carried_file
from edge_perception.errors import CheckpointError, ConfigError

_OUTSIDE_THE_TOWER = ("vision", "visual", "image", "projector", "connector", "mm_", "mlp1.")
_LARGEST_HEADER = 100 * 2**20
"""The safetensors library's own limit."""


@dataclass(frozen=True)
class PlannedModel:
    """A language tower's shape; ``vision_bytes`` are of all other weights, 0 where unknown."""

    name: str
    shape: LanguageModelShape
    vision_bytes: int = 0


def model_names() -> list[str]:
    """All models whose shape the package knows."""
    folder = carried_file("config/models/llama-3-8b.json").parent
    return sorted(path.stem for path in folder.glob("*.json"))


def load_planned_model(model: str) -> PlannedModel:
    """A model by name or by its folder; raises ``ConfigError`` or ``CheckpointError``."""
    folder = Path(model)
    if folder.is_dir():
        shape = read_shape(_read_json(folder / "config.json"))
        return PlannedModel(folder.resolve().name, shape, vision_bytes(folder))
    if model not in model_names():
        raise ConfigError(
            "neither a folder nor a model known by name",
            expected=f"a checkpoint folder, or {', '.join(model_names())}",
            got=model,
        )
    return PlannedModel(model, read_shape(_read_json(carried_file(f"config/models/{model}.json"))))


def vision_bytes(folder: Path) -> int:
    """Bytes of all stored tensors that are not the language tower's."""
    return sum(
        size
        for path in sorted(folder.glob("*.safetensors"))
        for name, size in stored_tensors(path)
        if any(word in name for word in _OUTSIDE_THE_TOWER)
    )


def stored_tensors(path: Path) -> Iterator[tuple[str, int]]:
    """Names and bytes of a safetensors file's tensors, from its header alone."""
    for name, entry in _read_header(path).items():
        if name == "__metadata__":
            continue
        try:
            start, stop = entry["data_offsets"]
            yield name, int(stop) - int(start)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path.name} is no sound safetensors file") from error


def _read_header(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (0,)
            text = file.read(length) if 0 < length <= _LARGEST_HEADER else b""
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror})") from error
    if not text:
        raise CheckpointError(f"{path.name} is no sound safetensors file")
    return _parse_json(text, path.name)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        return _parse_json(path.read_bytes(), path.name)
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({error.strerror})", expected="a checkpoint folder"
        ) from error


def _parse_json(text: bytes, name: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} holds no valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} is malformed", expected="a JSON object")
    return value
