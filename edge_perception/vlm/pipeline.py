"""Decoding on a GPU without waiting for it: one segment runs ahead of the token being read.

A step's token is known to the host only when the GPU has chosen it. If the host then first reads
it, turns it into text, publishes that and only afterwards queues the next step, the GPU stands
still meanwhile: a tenth of a millisecond, of a token's one or two. But the next step does not need
the host, since the token it goes on from lies in device memory. So before a token is read, the
first segment of the step after it is queued already. The GPU goes from one to the other without a
gap, and the host has a whole segment's time for its work.

The price: at the end of an answer a segment has run for nothing, and where the sequence takes
another turn (a draft, another prompt) what it left is put right by two small writes behind it. It
wrote the cache beyond the sequence's length, where nobody looks. With drafts the host decides after
every token what comes next: from the first one on, nothing runs ahead in that sequence.

Never more than two segments are queued, so that a detector that takes the GPU between segments
waits for no more than these: its turn (``between``) comes before each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from edge_perception.errors import DecodingError
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.language_model import Prompt, Yield, go_on
from edge_perception.vlm.sampling import Sampling


class SegmentQueue(Protocol):
    """Runs a decoder's segments in the order in which they are queued; see ``graphs``."""

    def queue(self, index: int, rows: int) -> int:
        """Queue segment ``index`` of a step of ``rows`` rows; returns a number for it.

        Waits first until at most one segment is left in the queue.
        """

    def token(self, number: int) -> int:
        """The pending token as segment ``number``, the last of a step of one row, has left it.

        Waits for that segment alone. Can be asked until two more have been queued.
        """

    def hold(self) -> None:
        """Wait until nothing is left of what was queued before the last call of this."""

    def work(self) -> AbstractContextManager[None]:
        """Within it, all of torch's work goes where the segments go."""

    def close(self) -> None:
        """Free what the queue holds; idempotent."""


class PipelinedDecoder:
    """A ``Decoder`` whose segments are queued, one ahead; a ``LanguageModel``. Not thread-safe.

    ``between`` is called with the model's stream current for torch. What it raises ends the
    sequence: ``start`` anew. A prompt's tensors on the GPU must be ready for the model's stream.
    """

    def __init__(self, decoder: Decoder, queue: SegmentQueue) -> None:
        self.capacity = decoder.capacity
        self._decoder = decoder
        self._queue: SegmentQueue | None = queue
        self._last = len(decoder.segments) - 1
        self._may_run_ahead = True
        self._ahead = 0  # segments of the next step that are queued already: 0 or 1
        self._newest = 0  # the number of the segment that was queued last
        self._token = 0
        decoder.runner = self._run

    def __enter__(self) -> PipelinedDecoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the queue; using the decoder afterwards raises ``DecodingError``. Idempotent."""
        if self._queue is not None:
            self._queue.close()
            self._queue = None
            self._decoder.runner = None  # a cycle would keep the cache until it is collected

    @property
    def length(self) -> int:
        return self._decoder.length

    def start(self, sampling: Sampling) -> None:
        with self._opened().work():
            self._take_back()
            self._decoder.start(sampling)
        self._may_run_ahead = True

    def prefill(self, prompt: Prompt, between: Yield = go_on) -> int:
        with self._opened().work():
            self._take_back()
            self._token = self._decoder.prefill(prompt, self._turn(between))
        return self._token

    def logits(self, prompt: Prompt) -> Tensor:
        """As ``Decoder.logits``."""
        with self._opened().work():
            self._take_back()
            return self._decoder.logits(prompt)

    def step(self, between: Yield = go_on) -> int:
        self._decoder.expect_room(1)
        with self._opened().work():
            for index in range(self._ahead, self._last + 1):
                if index:
                    between()
                self._run(index, 1)
            number, self._ahead = self._newest, 0
            if self._may_run_ahead and self._decoder.length + 2 <= self.capacity:
                between()
                self._run(0, 1)
                self._ahead = 1
            self._token = self._opened().token(number)
        self._decoder.count_step()
        return self._token

    def verify(self, draft: Sequence[int], between: Yield = go_on) -> list[int]:
        self._may_run_ahead = False
        with self._opened().work():
            self._take_back()
            tokens = self._decoder.verify(draft, between)
        self._token = tokens[-1]
        return tokens

    def rewind(self, length: int) -> None:
        with self._opened().work():
            self._take_back()
            self._decoder.rewind(length)

    def _turn(self, between: Yield) -> Yield:
        """``between`` for a prompt, whose parts a host queues much faster than they run."""
        if between is go_on:
            return go_on

        def turn() -> None:
            self._opened().hold()
            between()

        return turn

    def _run(self, index: int, rows: int) -> None:
        self._newest = self._opened().queue(index, rows)

    @torch.inference_mode()
    def _take_back(self) -> None:
        """Undo, behind it, what the segment that ran ahead does to the decoder's state."""
        if self._ahead:
            self._ahead = 0
            self._decoder.settle(self._decoder.length, self._token)

    def _opened(self) -> SegmentQueue:
        if self._queue is None:
            raise DecodingError("the decoder is closed", mend="Open it again.")
        return self._queue
