"""Activations streamed through a model block by block.

A model's own forward decides what enters its first block (embeddings, image features merged in)
and which arguments each block gets (rotary tables, masks by layer type). One pass in which every
block is replaced by a recorder learns both; from then on a block is run over all the samples,
its outputs taking the place of its inputs, so that one block's weights and two samples'
activations are all that need be on the device. What a model adds *between* blocks (Qwen3-VL's
deep visual features) shows as the difference between a recorder's input and the previous
recorder's output, and is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edge_perception.quantization.structure import Tower

Batch = Mapping[str, Tensor]
"""Keyword arguments of one forward call (``input_ids``, ``pixel_values``, ...)."""


@dataclass
class Sample:
    """One forward call as the blocks see it: hidden states and each block's own arguments."""

    hidden: Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    added: dict[int, Tensor] = field(default_factory=dict)


class _Recorder(nn.Module):
    """Stands in for a block: keeps what it is called with and returns its input.

    The last one ends the forward pass: nothing after the blocks need be loaded, or computed.
    """

    def __init__(
        self, block: nn.Module, calls: list[tuple[Tensor, tuple[Any, ...], Any]], *, last: bool
    ) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)  # not a child: it must not be moved or listed
        self._calls = calls
        self._last = last

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("past_key_values", None)
        self._calls.append((hidden_states, args, kwargs | {"use_cache": False}))
        if self._last:
            raise _Recorded
        return hidden_states


class _Recorded(Exception):
    """Every block's call was seen."""


@torch.no_grad()
def record_samples(
    model: nn.Module, tower: Tower, batches: Sequence[Batch], storage: torch.device
) -> list[Sample]:
    """Run the model's own forward once a batch, with recorders in place of the blocks.

    Hidden states go to ``storage``. What the model runs before the tower must be loaded.
    """
    blocks = list(tower.blocks)
    samples = []
    calls: list[tuple[Tensor, tuple[Any, ...], Any]] = []
    try:
        for index, block in enumerate(blocks):
            tower.blocks[index] = _Recorder(block, calls, last=index + 1 == len(blocks))
        for batch in batches:
            calls.clear()
            with suppress(_Recorded):
                model(**batch)
            samples.append(_sample_of(calls, storage))
    finally:
        for index, block in enumerate(blocks):
            tower.blocks[index] = block
    return samples


def _sample_of(
    calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]], storage: torch.device
) -> Sample:
    sample = Sample(calls[0][0].to(storage))
    previous = calls[0][0]
    for index, (hidden, args, kwargs) in enumerate(calls):
        if hidden is not previous and not torch.equal(hidden, previous):
            sample.added[index] = (hidden - previous).to(storage)
        sample.arguments.append((args, kwargs))
        previous = hidden
    return sample


@torch.no_grad()
def run_block(block: nn.Module, index: int, sample: Sample, device: torch.device) -> Tensor:
    """The block's output for one sample, on ``device``."""
    args, kwargs = sample.arguments[index]
    hidden = sample.hidden.to(device)
    if index in sample.added:
        hidden = hidden + sample.added[index].to(device)
    output = block(hidden, *moved(args, device), **moved(kwargs, device))
    return output[0] if isinstance(output, tuple) else output


def advance(block: nn.Module, index: int, samples: Sequence[Sample], device: torch.device) -> None:
    """Replace every sample's hidden states by the block's output."""
    for sample in samples:
        sample.hidden = run_block(block, index, sample, device).to(sample.hidden.device)


def moved(value: Any, device: torch.device) -> Any:
    """Tensors inside nested tuples, lists and dicts, on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(moved(item, device) for item in value)
    return value


@contextmanager
def watching_inputs(
    block: nn.Module, observers: Mapping[str, Callable[[Tensor], None]]
) -> Iterator[None]:
    """Call each observer with the input of the block's layer it is named for."""

    def hook_for(observe: Callable[[Tensor], None]) -> Callable[..., None]:
        return lambda _module, args: observe(args[0])

    handles = [
        block.get_submodule(name).register_forward_pre_hook(hook_for(observe))
        for name, observe in observers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
