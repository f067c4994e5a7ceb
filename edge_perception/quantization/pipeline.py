"""A whole tower quantised, one block on the device at a time.

Order: take a block to the device (from memory or from disk), quantise it with the activations
that the *quantised* blocks before it produce, run the samples through it, hand its codes to the
caller, let it go. Peak memory is one block, the second moments of its inputs and two samples; the
samples' hidden states wait on ``storage``. A resumed run skips what the caller already has: a
finished block is put back from its codes and only run.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from edge_perception.quantization.block import QuantizedWeight, quantize_block
from edge_perception.quantization.recipe import Recipe
from edge_perception.quantization.streaming import Sample, advance
from edge_perception.quantization.structure import Tower

BlockResult = Mapping[str, QuantizedWeight]


class BlockSource(Protocol):
    """Brings a block's weights to a device and lets them go again."""

    def load(self, path: str, block: nn.Module, device: torch.device) -> None:
        """Put the block's weights on ``device``."""

    def release(self, path: str, block: nn.Module) -> None:
        """Free the block's weights on the device; they may be lost."""


class InMemory:
    """Blocks that live in memory all the time and are returned there, dequantised."""

    def __init__(self, home: torch.device | str = "cpu") -> None:
        self._home = torch.device(home)

    def load(self, path: str, block: nn.Module, device: torch.device) -> None:
        """Move the block to ``device``."""
        block.to(device)

    def release(self, path: str, block: nn.Module) -> None:
        """Move the block back."""
        block.to(self._home)


class BlockSink(Protocol):
    """Takes finished blocks, and gives back what an earlier run finished."""

    def restore(self, path: str, block: nn.Module) -> bool:
        """Put an earlier run's result into ``block``; False where there is none."""

    def store(self, path: str, block: nn.Module, result: BlockResult) -> None:
        """Keep a finished block."""


class KeepInMemory:
    """A sink that holds every block's codes in a dict, by full layer name."""

    def __init__(self) -> None:
        self.layers: dict[str, QuantizedWeight] = {}

    def restore(self, path: str, block: nn.Module) -> bool:
        """Nothing was kept before."""
        return False

    def store(self, path: str, block: nn.Module, result: BlockResult) -> None:
        """Keep the codes."""
        self.layers |= {f"{path}.{name}": weight for name, weight in result.items()}


@dataclass(frozen=True)
class Progress:
    """Told after every block: how far, how long, and the device memory's peak so far."""

    path: str
    done: int
    total: int
    elapsed_s: float
    peak_bytes: int
    restored: bool

    @property
    def left_s(self) -> float:
        """Seconds left, if the other blocks take as long as those done."""
        return self.elapsed_s / self.done * (self.total - self.done)


def quantize_tower(
    tower: Tower,
    samples: Sequence[Sample],
    recipe: Recipe,
    *,
    device: torch.device,
    source: BlockSource,
    sink: BlockSink,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> None:
    """Quantise every block of ``tower`` by ``recipe``, streaming ``samples`` through.

    ``samples`` may be empty for a recipe that needs no calibration; their hidden states are
    consumed. Deterministic: the same inputs give the same codes on the same kind of device.
    """
    start = time.perf_counter()
    total = len(tower.blocks)
    references = [replace(sample) for sample in samples] if recipe.float_target else []
    for index, block in enumerate(tower.blocks):
        path = f"{tower.path}.{index}"
        source.load(path, block, device)
        float_block = copy.deepcopy(block) if references else None
        restored = sink.restore(path, block)
        if not restored:
            result = quantize_block(block, index, samples, recipe, device, references)
            sink.store(path, block, result)
        if float_block is not None:
            advance(float_block, index, references, device)
        if index + 1 < total:
            advance(block, index, samples, device)
        source.release(path, block)
        elapsed = time.perf_counter() - start
        on_progress(Progress(path, index + 1, total, elapsed, peak_bytes(device), restored))


def peak_bytes(device: torch.device) -> int:
    """Peak memory: of the CUDA device, or else the process's resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
