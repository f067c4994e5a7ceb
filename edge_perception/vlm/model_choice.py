"""What a caller says to have a vision-language model opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how to run it; see the VLM node's parameters of the same names."""

    path: Path
    device: str = "cpu"
    threads: int = 0
    context: int = 2048
    segments: int = 1
    vision_int8: bool = False
