"""A language model's decoder: prefill in chunks, decode in segments, over a static cache.

At batch 1 a decode step is bound by the bytes of the weights, and a small model by the launches
of its kernels. So nothing here moves or allocates from token to token: the cache has its full
size from the start, what a step depends on (the pending token, the sequence's length, its
position) lies in device tensors (``StepState``), and the step's last act is to choose the
next token and put it where the next step looks for it. A step is divided into k *segments* of
whole layers; ``run_segment(i)`` touches device tensors alone, so that each can be captured as one
CUDA graph and replayed (``graphs``). Between segments the caller may yield: a token takes 30 ms on
an Orin, and a detector cannot wait that long. On the CPU the same code simply runs.

A draft is verified by the same segments, with up to eight rows instead of one.

Left out: batches of several sequences (a robot asks one question at a time), paged caches (one
sequence needs no pages), tensor parallelism. The price of a static cache is its memory, taken
whether the context is used or not; the planner counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from edge_perception.errors import DecodingError
from edge_perception.vlm.assembly import load_model
from edge_perception.vlm.kv_cache import KvCache
from edge_perception.vlm.language_model import (
    Prompt,
    Yield,
    agreeing,
    check_room,
    go_on,
)
from edge_perception.vlm.operators import (
    SAME_ORDER_ROWS,
    HeadLayout,
    Operators,
    RotaryTable,
    Span,
)
from edge_perception.vlm.sampling import GREEDY, Sampling
from edge_perception.vlm.torch_operators import TorchOperators
from edge_perception.vlm.tower import take_tower
from edge_perception.vlm.weights import DecoderWeights, LayerWeights

PREFILL_CHUNK = 512
"""Rows of a prompt that run at once: bounds the activations' memory and the wait of others.

A packed weight is dequantised once a chunk, so a long prompt runs faster in longer ones.
"""

SegmentRunner = Callable[[int, int], None]
"""Runs segment i of a step of so many rows: ``Decoder.run_segment``, or a replay of it."""


class PromptSegments(Protocol):
    """Runs the segments over a whole short prompt; ``hidden`` [most, H] is what they leave."""

    hidden: Tensor

    def load(self, hidden: Tensor, positions: Tensor) -> int | None:
        """Take a prompt's rows [T, H] and positions; as how many they run, None if they do not."""

    def replay(self, index: int, rows: int) -> None:
        """Run segment ``index`` over the rows."""


@dataclass(frozen=True)
class StepState:
    """What a step reads and leaves for the next, at addresses that never change.

    ``tokens`` int64 [8]: the pending token, then a draft. ``chosen`` int64 [8]: the token after
    each of them. ``place`` int64 [2]: slot and position of row 0. ``hidden`` [8, H]: rows on their
    way from one segment to the next.
    """

    tokens: Tensor
    chosen: Tensor
    place: Tensor
    hidden: Tensor

    @classmethod
    def allocate(cls, hidden_size: int, dtype: torch.dtype, device: torch.device) -> StepState:
        """A state of zeros."""

        def zeros(*size: int, kind: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=kind, device=device)

        rows = SAME_ORDER_ROWS
        hidden = zeros(rows, hidden_size, kind=dtype)
        return cls(zeros(rows), zeros(rows), zeros(2), hidden)

    @property
    def first(self) -> Tensor:
        """The slot of row 0, int64 [1]: the sequence's length."""
        return self.place[:1]

    @property
    def position(self) -> Tensor:
        """The position of row 0, int64 [1]: the slot, but for images, which take few positions."""
        return self.place[1:]


class Decoder:
    """One sequence on one device; a ``LanguageModel``. Not thread-safe.

    Args:
        weights: the model; its tensors are used where they lie, not copied.
        capacity: tokens that the cache holds, prompt and answer together.
        kv_format: "float" or "int8" (``kv_cache``).
        segments: parts of a decode step, 1 to the number of layers.
        prefill_chunk: rows of a prompt that run at once.
        operators: torch's by default; see ``docs/decoder.md`` for what a GPU's must keep.

    Raises:
        DecodingError: an option out of range.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        *,
        capacity: int,
        kv_format: str = "float",
        segments: int = 1,
        prefill_chunk: int = PREFILL_CHUNK,
        operators: Operators | None = None,
    ) -> None:
        shape = weights.shape
        if not 1 <= capacity <= shape.max_positions:
            raise DecodingError(
                "context of the decoder",
                expected=f"1 to {shape.max_positions} tokens, what the model was made for",
                got=capacity,
            )
        if prefill_chunk < 1:
            raise DecodingError("prefill chunk", expected="1 row or more", got=prefill_chunk)
        self.weights = weights
        self.capacity = capacity
        self.sampling = GREEDY
        self.segments = divide_layers(shape.layers, segments)
        self._operators = operators or TorchOperators()
        self._chunk = prefill_chunk
        self._device = weights.final_norm.device
        self.cache = KvCache(
            shape, capacity, dtype=weights.dtype, device=self._device, kv_format=kv_format
        )
        self._rotary = rotary_table(weights, capacity)
        self._layouts = [_head_layout(weights, index) for index in range(shape.layers)]
        self.state = StepState.allocate(shape.hidden_size, weights.dtype, self._device)
        self.runner: SegmentRunner | None = None  # None: itself, without a cycle of references
        self.prompts: PromptSegments | None = None
        self._length = 0
        self._offset = 0  # position less slot
        self._has_pending = False

    @property
    def length(self) -> int:
        return self._length

    def start(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.rewind(0)

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, between: Yield = go_on) -> int:
        self._check(prompt)
        hidden = self._run_prompt(prompt, between, keep=lambda chunk: chunk[-1:])
        slots = torch.tensor([self._length - 1], device=self._device)
        return self._choose(hidden[-1], slots)

    @torch.inference_mode()
    def logits(self, prompt: Prompt) -> Tensor:
        """Append a prompt and return the logits [T, V] after each of its tokens.

        For measurements: no token is chosen. Raises ``DecodingError`` where it does not fit.
        """
        self._check(prompt)
        chunks = self._run_prompt(prompt, go_on, keep=self._logits)
        return torch.cat(chunks)

    @torch.inference_mode()
    def step(self, between: Yield = go_on) -> int:
        self.expect_room(1)
        self._run_segments(1, between)
        self.count_step()
        return int(self.state.tokens[0])

    @torch.inference_mode()
    def verify(self, draft: Sequence[int], between: Yield = go_on) -> list[int]:
        if not 0 < len(draft) < SAME_ORDER_ROWS:
            raise DecodingError(
                "draft", expected=f"1 to {SAME_ORDER_ROWS - 1} tokens", got=len(draft)
            )
        rows = 1 + len(draft)
        self.expect_room(rows)
        self.state.tokens[1:rows] = torch.tensor(list(draft), device=self._device)
        self._run_segments(rows, between)
        chosen: list[int] = self.state.chosen[:rows].tolist()
        accepted = 1 + agreeing(draft, chosen)
        self.settle(self._length + accepted, chosen[accepted - 1])
        return chosen[:accepted]

    def _run_segments(self, rows: int, between: Yield) -> None:
        run = self.runner or self.run_segment
        for index in range(len(self.segments)):
            if index:
                between()
            run(index, rows)

    def run_segment(self, index: int, rows: int) -> None:
        """Run segment ``index`` of a step of ``rows`` rows (1 to 8), on device tensors alone.

        The first segment embeds ``state.tokens``; the last one chooses the tokens after them and,
        of a single row, makes that the pending one and counts the length on. This is what a CUDA
        graph captures; call ``step`` or ``verify`` to decode.
        """
        state, span = self.state, Span(self.state.first, rows, self.capacity)
        hidden = self._embed(state.tokens[:rows]) if index == 0 else state.hidden[:rows]
        hidden = self._run_layers(self.segments[index], hidden, self._positions(rows), span)
        if index < len(self.segments) - 1:
            state.hidden[:rows].copy_(hidden)
            return
        chosen = self._operators.sample(self._logits(hidden), self.sampling, span.slots)
        if rows > 1:  # whether they were guessed is the host's to find
            state.chosen[:rows].copy_(chosen)
            return
        state.tokens[:1].copy_(chosen)
        state.place.add_(1)

    def count_step(self) -> None:
        """Count on here what a step of one row has counted on in ``state``."""
        self._length += 1

    def settle(self, length: int, pending: int) -> None:
        """Let the sequence have ``length`` tokens in the cache, and ``pending`` be the next."""
        self._go_to(length)
        self.state.tokens[:1].fill_(pending)

    def expect_room(self, rows: int) -> None:
        """Raise ``DecodingError`` where no token is pending or ``rows`` more do not fit."""
        if not self._has_pending:
            raise DecodingError("no token to go on from", mend="Prefill a prompt first.")
        check_room(self._length, rows, self.capacity)

    def rewind(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise DecodingError(
                "rewinding", expected=f"a length from 0 to {self._length}", got=length
            )
        if length == 0:
            self._offset = 0
        self._go_to(length)
        self._has_pending = False

    def _check(self, prompt: Prompt) -> None:
        """Refuse what would read beyond a table: on a GPU that ends the process."""
        check_room(self._length, len(prompt), self.capacity)
        _expect_inside("token ids", prompt.token_ids, self.weights.shape.vocab_size)
        if prompt.positions is not None:
            _expect_inside("positions", prompt.positions, self.capacity)
        width = self.weights.shape.hidden_size
        if prompt.embeddings is not None and prompt.embeddings.shape[-1] != width:
            raise DecodingError(
                "prompt's embeddings",
                expected=f"{width} channels, the model's hidden size",
                got=prompt.embeddings.shape[-1],
            )

    def _run_prompt(
        self, prompt: Prompt, between: Yield, keep: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """Run a prompt chunk by chunk; what ``keep`` makes of each chunk's last hidden rows."""
        self._has_pending = False
        tokens = prompt.token_ids.to(self._device)
        kept = []
        for start in range(0, len(prompt), self._chunk):
            part = slice(start, min(start + self._chunk, len(prompt)))
            rows = part.stop - part.start
            span = Span(self.state.first, rows, self._length + rows, start=self._length)
            hidden = self._prompt_rows(prompt, tokens, part)
            positions = self._prompt_positions(prompt, part, span)
            if start:
                between()
            hidden = self._run_chunk(hidden, positions, span, between)
            self._count_on(rows)
            kept.append(keep(hidden))
        self._shift_after(prompt)
        return kept

    def _run_chunk(self, hidden: Tensor, positions: Tensor, span: Span, between: Yield) -> Tensor:
        """All layers over a part of a prompt, by graphs if it is the first and they take it."""
        if self.prompts is not None and span.start == 0:
            rows = self.prompts.load(hidden, positions)
            if rows is not None:
                return self._replay_prompt(self.prompts, rows, between)[: span.rows]
        for index, layer in enumerate(self.weights.layers):
            if index:
                between()
            hidden = self._run_layer(index, layer, hidden, positions, span)
        return hidden

    def _replay_prompt(self, graphs: PromptSegments, rows: int, between: Yield) -> Tensor:
        for index in range(len(self.segments)):
            if index:
                between()
            graphs.replay(index, rows)
        return graphs.hidden

    def run_prompt_segment(self, index: int, hidden: Tensor, positions: Tensor) -> Tensor:
        """Run segment ``index`` over the first rows of a sequence: what ``prompts`` captures."""
        span = Span(self.state.first, len(hidden), len(hidden), start=0)
        return self._run_layers(self.segments[index], hidden, positions, span)

    def _prompt_rows(self, prompt: Prompt, tokens: Tensor, part: slice) -> Tensor:
        if prompt.embeddings is None:
            return self._embed(tokens[part])
        return prompt.embeddings[part].to(self._device, self.weights.dtype)

    def _prompt_positions(self, prompt: Prompt, part: slice, span: Span) -> Tensor:
        if prompt.positions is None:
            return self._positions(span.rows)
        return prompt.positions[:, part].to(self._device)

    def _shift_after(self, prompt: Prompt) -> None:
        """Let positions go on after the largest of the prompt's own (an image takes few)."""
        if prompt.positions is not None:
            self._offset = int(prompt.positions.max()) + 1 - self._length
            self._go_to(self._length)

    def _positions(self, rows: int) -> Tensor:
        first = self.state.position
        return first if rows == 1 else first + torch.arange(rows, device=self._device)

    def _embed(self, token_ids: Tensor) -> Tensor:
        return self._operators.embed(token_ids, self.weights.embedding, self.weights.dtype)

    def _run_layers(self, layers: range, hidden: Tensor, positions: Tensor, span: Span) -> Tensor:
        for index in layers:
            hidden = self._run_layer(index, self.weights.layers[index], hidden, positions, span)
        return hidden

    def _run_layer(
        self, index: int, layer: LayerWeights, hidden: Tensor, positions: Tensor, span: Span
    ) -> Tensor:
        run, eps = self._operators, self.weights.shape.norm_eps
        layout, cache = self._layouts[index], self.cache.layers[index]
        others = self.weights.layers[index + 1 :]
        after = others[0].qkv if others else self.weights.head
        qkv = run.norm_linear(hidden, layer.attention_norm, eps, layer.qkv, then=layer.output)
        attended = run.attend(qkv, layout, self._rotary, positions, cache, span, then=layer.output)
        hidden = run.linear_add(attended, layer.output, hidden, then=layer.gate_up)
        gated = run.norm_gate_up(hidden, layer.mlp_norm, eps, layer.gate_up, then=layer.down)
        return run.linear_add(gated, layer.down, hidden, then=after)

    def _logits(self, hidden: Tensor) -> Tensor:
        weights = self.weights
        return self._operators.norm_linear(
            hidden, weights.final_norm, weights.shape.norm_eps, weights.head
        )

    def _choose(self, hidden: Tensor, slots: Tensor) -> int:
        chosen = self._operators.sample(self._logits(hidden), self.sampling, slots)
        self.state.tokens[:1].copy_(chosen)
        self._has_pending = True
        return int(chosen)

    def _count_on(self, rows: int) -> None:
        self._length += rows
        self.state.place.add_(rows)

    def _go_to(self, length: int) -> None:
        self._length = length
        self.state.first.fill_(length)
        self.state.position.fill_(length + self._offset)


def load_decoder(
    path: Path,
    *,
    capacity: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kv_format: str = "float",
    segments: int = 1,
) -> Decoder:
    """A decoder from a checkpoint directory or a ``.gguf``; a VLM's language tower alone.

    Raises ``CheckpointError`` for a checkpoint that is damaged or of an unknown family.
    """
    weights = take_tower(load_model(path, device=device, dtype=dtype))
    return Decoder(weights, capacity=capacity, kv_format=kv_format, segments=segments)


def _expect_inside(name: str, values: Tensor, limit: int) -> None:
    least, most = int(values.min()), int(values.max())
    if least < 0 or most >= limit:
        raise DecodingError(
            f"prompt's {name}", expected=f"values from 0 to {limit - 1}", got=(least, most)
        )


def divide_layers(layers: int, segments: int) -> tuple[range, ...]:
    """``segments`` runs of whole layers, as even as they can be; the first ones are the longer."""
    if not 1 <= segments <= layers:
        raise DecodingError("segments", expected=f"1 to {layers}, the layers", got=segments)
    short, longer = divmod(layers, segments)
    edges = [index * short + min(index, longer) for index in range(segments + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(edges))


def rotary_table(weights: DecoderWeights, positions: int) -> RotaryTable:
    """Cosines and sines for the first ``positions`` positions."""
    frequencies = weights.inverse_frequencies
    steps = torch.arange(positions, dtype=torch.float32, device=frequencies.device)
    angles = steps.unsqueeze(1) * frequencies.unsqueeze(0)
    axes = weights.rotary_axes
    return RotaryTable(
        angles.cos() * weights.rotary_scale,
        angles.sin() * weights.rotary_scale,
        None if axes is None else axes.to(frequencies.device),
    )


def _head_layout(weights: DecoderWeights, index: int) -> HeadLayout:
    shape, layer = weights.shape, weights.layers[index]
    return HeadLayout(
        shape.query_heads,
        shape.kv_heads,
        shape.head_dim,
        shape.windows[index],
        shape.norm_eps,
        layer.query_norm,
        layer.key_norm,
    )
