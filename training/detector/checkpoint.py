"""Weights on disk: safetensors with the model's configuration in the metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import save_file

from training.detector.config import ModelConfig
from training.detector.model import NanoDetector

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def save_checkpoint(path: Path, state: dict[str, Tensor], config: ModelConfig) -> None:
    """Write a state dict so that a reader sees the old file or the new one, never a part."""
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, partial, metadata={"config": config.to_json()})
    partial.replace(path)


def load_checkpoint(path: Path) -> NanoDetector:
    """Build the detector of a checkpoint on the CPU, in eval mode.

    Raises RuntimeError where weights and configuration disagree, KeyError without a
    configuration.
    """
    with safe_open(path, framework="pt") as file:
        config = ModelConfig.from_json(file.metadata()["config"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = NanoDetector(config)
    model.load_state_dict(state)
    model.eval()
    return model
