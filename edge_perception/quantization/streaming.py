"""Activations streamed through a model block by block.

A model's own forward decides what enters its first block (embeddings, image features merged in)
and which arguments each block gets (rotary tables, masks by layer type). One pass in which every
block's forward only records how it is called learns both; from then on a block is run over all the
samples, its outputs taking the place of its inputs, so that one block's weights and two samples'
activations are all that need be on the device. What a model adds *between* blocks (Qwen3-VL's deep
visual features) shows as the difference between a block's input and the previous block's output,
and is kept.
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


_Call = tuple[Tensor, tuple[Any, ...], dict[str, Any]]
"""A block's hidden states, further arguments and keyword arguments."""


@dataclass
class Sample:
    """One forward call as the blocks see it: hidden states and each block's own arguments."""

    hidden: Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    added: dict[int, Tensor] = field(default_factory=dict)


class _Recorded(Exception):
    """Every block's call was seen."""


@torch.no_grad()
def record_samples(
    model: nn.Module, tower: Tower, batches: Sequence[Batch], storage: torch.device
) -> list[Sample]:
    """Run the model's own forward once a batch, the blocks recording instead of computing.

    Hidden states go to ``storage``. What the model runs before the tower must be loaded.
    """
    samples = []
    calls: list[_Call] = []
    with _recording(list(tower.blocks), calls):
        for batch in batches:
            calls.clear()
            with suppress(_Recorded):
                model(**batch)
            samples.append(_sample_of(calls, storage))
    return samples


@contextmanager
def _recording(blocks: Sequence[nn.Module], calls: list[_Call]) -> Iterator[None]:
    """Blocks note how they are called and return their input; the last ends the forward pass.

    So nothing after the blocks need be loaded, or computed. The modules stay where they are:
    transformers hangs hooks on them when they first run.
    """

    def recorder(is_last: bool) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kwargs.pop("past_key_values", None)
            calls.append((hidden_states, args, kwargs | {"use_cache": False}))
            if is_last:
                raise _Recorded
            return hidden_states

        return forward

    try:
        for block in blocks:
            block.forward = recorder(block is blocks[-1])  # type: ignore[method-assign]
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own again


def _sample_of(calls: Sequence[_Call], storage: torch.device) -> Sample:
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
