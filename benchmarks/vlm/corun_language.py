"""A language model of a VLM's shape that answers without pause: prompts of a picture's length.

Our decoder with INT4 weights (random: time does not depend on them), its steps as CUDA graphs on a
stream of its own. Vision is left out: what it costs is counted by its tokens in the prompt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from benchmarks.decoder.random_models import RandomModel, read_model
from benchmarks.vlm.corun_rows import ANSWER_TOKENS, PROMPT_TOKENS, LanguageSetting, Speed
from edge_perception.gpu.cuda import Stream, get_device
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.graphs import SegmentGraphs, gpu_operators
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.pipeline import PipelinedDecoder
from edge_perception.vlm.sampling import GREEDY
from edge_perception.vlm.turns import Yield, go_on
from edge_perception.vlm.weights import DecoderWeights

_CAPACITY = 1024


def draw_weights(model: str) -> DecoderWeights:
    """INT4 weights and head of a shape in ``config/models``."""
    return RandomModel(read_model(model), bits=4, head_bits=4).weights()


class Answering:
    """One model on one stream, asked without pause on a thread of its own."""

    def __init__(self, setting: LanguageSetting, weights: DecoderWeights) -> None:
        get_device().make_current()
        self._stream = Stream(get_device(), high_priority=not setting.low_priority)
        decoder = Decoder(
            weights,
            capacity=_CAPACITY,
            segments=setting.segments,
            prefill_chunk=setting.prefill_chunk,
            operators=gpu_operators(),
        )
        self._decoder = PipelinedDecoder(
            decoder, SegmentGraphs(decoder, self._stream.handle, most_rows=1)
        )
        generator = torch.Generator().manual_seed(0)
        words = torch.randint(0, weights.shape.vocab_size, (PROMPT_TOKENS,), generator=generator)
        self._prompt = Prompt(words.cuda())
        torch.cuda.synchronize()
        self._stop = threading.Event()
        self.answer(Speed())  # compiles what a prompt of this length needs

    def answer(self, speed: Speed, between: Yield = go_on) -> None:
        """One answer; its times are added to ``speed``."""
        start_s = time.perf_counter()
        self._decoder.start(GREEDY)
        self._decoder.prefill(self._prompt, between)
        first_s = time.perf_counter()
        for _ in range(ANSWER_TOKENS - 1):
            self._decoder.step(between)
        end_s = time.perf_counter()
        speed.ttft_ms.append((first_s - start_s) * 1e3)
        speed.tokens += ANSWER_TOKENS - 1
        speed.decode_s += end_s - first_s
        speed.answers += 1

    @contextmanager
    def without_pause(self, between: Yield = go_on) -> Iterator[Speed]:
        """Answer on a thread of its own while the body runs; raises what broke there."""
        speed = Speed()
        self._stop.clear()
        with ThreadPoolExecutor(1, "vlm") as thread:
            answering = thread.submit(self._keep_on, speed, between)
            try:
                yield speed
            finally:
                self._stop.set()
            answering.result()

    def _keep_on(self, speed: Speed, between: Yield) -> None:
        get_device().make_current()
        start_s = time.perf_counter()
        while not self._stop.is_set():
            self.answer(speed, between)
        speed.elapsed_s = time.perf_counter() - start_s

    def close(self) -> None:
        """Free everything but the weights."""
        self._decoder.close()
        self._stream.close()
