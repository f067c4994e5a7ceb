"""A transformers model's language tower, run by our decoder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edge_perception.core.sampling import Sampling
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.language_model import LanguageModel, Prompt
from edge_perception.vlm.language_tower import AskedPrompt, choose_among
from edge_perception.vlm.model_choice import ModelChoice
from edge_perception.vlm.turns import Yield, go_on
from edge_perception.vlm.weights import DecoderWeights


class Scorer(LanguageModel, Protocol):
    """A ``LanguageModel`` that also tells the logits, for choosing among a mask's tokens."""

    def logits(self, prompt: Prompt) -> Tensor:
        """Append a prompt and return the logits [T, V] after each of its tokens."""


class DecoderTower:
    """Our decoder; the cache of a prompt's beginning is kept for the next about its picture."""

    needs_output = False

    def __init__(
        self,
        decoder: Scorer,
        stream: Any = None,
        make_current: Callable[[], None] = go_on,
        close: Callable[[], None] = go_on,
    ) -> None:
        self.name = "our decoder" if stream is None else "our decoder, CUDA graphs"
        self.capacity = decoder.capacity
        self._decoder = decoder
        self._stream = stream
        self._make_current = make_current  # a driver's context is a thread's own
        self._close = close
        self._sampling = Sampling()
        self._asked: AskedPrompt | None = None
        self._prompt: Prompt | None = None
        self._kept: tuple[AskedPrompt, Sampling] | None = None
        self._token = 0
        self._is_pending = False

    @classmethod
    def open(cls, weights: DecoderWeights, choice: ModelChoice) -> DecoderTower:
        """On a GPU with captured steps on a stream of low priority, on the CPU as it is."""
        capacity = min(choice.context, weights.shape.max_positions)
        segments = min(choice.segments, weights.shape.layers)
        if not choice.device.startswith("cuda"):
            return cls(Decoder(weights, capacity=capacity))
        from edge_perception.gpu.cuda import Stream, get_device
        from edge_perception.vlm.graphs import capture_decoder

        device = get_device(torch.device(choice.device).index or 0)
        stream = Stream(device)
        try:
            decoder = capture_decoder(
                weights, stream.handle, capacity=capacity, segments=segments, most_rows=1
            )
        except BaseException:
            stream.close()
            raise

        def close() -> None:
            decoder.close()
            stream.close()

        external = torch.cuda.ExternalStream(stream.handle, device=choice.device)
        return cls(decoder, external, device.make_current, close)

    @property
    def length(self) -> int:
        return self._decoder.length

    def start(self, model: nn.Module, prompt: AskedPrompt, sampling: Sampling) -> None:
        embeddings = model.get_input_embeddings()(prompt.token_ids)  # type: ignore[operator]
        embeddings = embeddings.clone()
        embeddings[prompt.is_image] = prompt.picture.embeddings.to(embeddings.dtype)
        positions = _rotary_positions(model, prompt)
        self._prompt = Prompt(prompt.token_ids, embeddings, positions)
        self._asked, self._sampling = prompt, sampling

    def first(self, mask: Tensor | None, between: Yield) -> int:
        assert self._asked is not None
        assert self._prompt is not None
        shared = self._shared()
        if shared:
            self._decoder.rewind(shared)
        else:
            self._decoder.start(self._sampling)
        self._kept = None  # until the prompt has been run
        token = self._append(_part(self._prompt, shared, len(self._prompt)), mask, between)
        self._kept = self._asked, self._sampling
        return token

    def next(self, mask: Tensor | None, between: Yield) -> int:
        if mask is None and self._is_pending:
            self._token = self._decoder.step(between)
            return self._token
        return self._append(Prompt.of([self._token]), mask, between)

    def work(self) -> AbstractContextManager[Any]:
        self._make_current()
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        if self._stream is not None:
            done = torch.cuda.Event(blocking=True)
            done.record(self._stream)
            done.synchronize()

    def close(self) -> None:
        self._prompt = self._asked = self._kept = None
        close, self._close = self._close, go_on
        close()

    def _append(self, prompt: Prompt, mask: Tensor | None, between: Yield) -> int:
        self._is_pending = mask is None
        if mask is None:
            self._token = self._decoder.prefill(prompt, between)
            return self._token
        last = len(prompt) - 1
        if last:  # the head's output for a whole prompt would be large, and for nothing
            self._decoder.prefill(_part(prompt, 0, last), between)
        logits = self._decoder.logits(_part(prompt, last, last + 1))
        self._token = choose_among(logits, mask, self._sampling, self.length - 1)
        return self._token

    def _shared(self) -> int:
        """How many tokens of the prompt are in the cache already; its last is always run."""
        if self._kept is None or self._asked is None or self._kept[1] != self._sampling:
            return 0
        kept, asked = self._kept[0], self._asked
        if kept.picture is not asked.picture:
            return 0
        pairs = zip(kept.token_ids.tolist(), asked.token_ids.tolist())
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return min(same, len(asked.token_ids) - 1)


def _part(prompt: Prompt, start: int, stop: int) -> Prompt:
    """Some rows of a prompt."""
    if start == 0 and stop == len(prompt):
        return prompt
    rows = slice(start, stop)
    return Prompt(
        prompt.token_ids[rows],
        None if prompt.embeddings is None else prompt.embeddings[rows],
        None if prompt.positions is None else prompt.positions[:, rows],
    )


def _rotary_positions(model: nn.Module, prompt: AskedPrompt) -> Tensor | None:
    """Positions int64 [3, T] for models that place pictures in time, height and width."""
    if prompt.picture.grid is None:
        return None
    places, _ = model.get_submodule("model").get_rope_index(  # type: ignore[operator]
        prompt.token_ids[None],
        mm_token_type_ids=prompt.is_image.to(torch.int64)[None],
        image_grid_thw=prompt.picture.grid,
    )
    return places[:, 0]
