"""A decoder's segments as CUDA graphs, captured once and replayed for every token.

A step of an 8B model is some 230 launches. From Python each costs ten microseconds, as much as the
kernel itself runs in a small model; in a graph the GPU goes from one to the next by itself. What a
graph holds is fixed: addresses and sizes. So all that changes from token to token lies in device
memory (``StepState``, the sampling's settings), and there is a graph for each number of rows that a
step can have, one to verify drafts of each length.

Greedy decoding and drawing launch other kernels, so the segment that chooses exists twice. All
graphs share one pool of memory for what lives inside them only: they never run at the same time.

Capturing takes a second or two and synchronises the device: in a node it belongs into
``on_configure``. Other threads may launch meanwhile (``thread_local`` capture).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_perception.errors import DecodingError
from edge_perception.vlm.assembly import load_model
from edge_perception.vlm.decoder import PREFILL_CHUNK, Decoder
from edge_perception.vlm.kernel_operators import KernelOperators
from edge_perception.vlm.operators import SAME_ORDER_ROWS
from edge_perception.vlm.pipeline import PipelinedDecoder
from edge_perception.vlm.sampling import GREEDY, Sampling
from edge_perception.vlm.tower import take_tower
from edge_perception.vlm.weights import DecoderWeights

_DRAWN = Sampling(temperature=1.0)
_IN_FLIGHT = 3
"""Segments whose marks are kept: one runs, one waits, and one may still be asked for its token."""


class SegmentGraphs:
    """The graphs of one decoder on one stream; a ``pipeline.SegmentQueue``.

    Args:
        decoder: on a GPU, with operators that can be captured; its sequence is lost.
        stream: handle of the stream to run on (``gpu.cuda.Stream``), which must outlive this.
        most_rows: of a step; 1 where no drafts are to be verified.
        prompt_rows: of prompts that run as graphs too (``PromptGraphs``).

    Raises:
        DecodingError: a step cannot be captured.
    """

    def __init__(
        self,
        decoder: Decoder,
        stream: int,
        most_rows: int = SAME_ORDER_ROWS,
        prompt_rows: Sequence[int] = (),
    ) -> None:
        device = decoder.state.first.device
        self._decoder = decoder
        self._stream = torch.cuda.ExternalStream(stream, device=device)
        self._graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}
        self._queued = 0
        self._marks = [torch.cuda.Event(blocking=True) for _ in range(_IN_FLIGHT)]
        self._tokens = torch.zeros(_IN_FLIGHT, dtype=torch.int64).pin_memory()
        torch.cuda.synchronize(device)  # weights may still be on their way
        try:
            with torch.inference_mode(), self.work():
                self._capture_steps(range(1, min(most_rows, decoder.capacity) + 1))
            self._prompts = PromptGraphs(decoder, self._stream, prompt_rows)
        except BaseException:
            _reset(self._graphs)
            raise
        decoder.prompts = self._prompts

    def queue(self, index: int, rows: int) -> int:
        number, place = self._queued, self._queued % _IN_FLIGHT
        self._marks[(number - 2) % _IN_FLIGHT].synchronize()
        self.replay(index, rows)
        if rows == 1 and index == len(self._decoder.segments) - 1:
            token = self._decoder.state.tokens[:1]
            self._tokens[place : place + 1].copy_(token, non_blocking=True)
        self._marks[place].record(self._stream)
        self._queued += 1
        return number

    def replay(self, index: int, rows: int) -> None:
        """Queue a segment alone, without a mark: for measurements."""
        self._graphs[self._key(index, rows)].replay()

    def token(self, number: int) -> int:
        place = number % _IN_FLIGHT
        self._marks[place].synchronize()
        return int(self._tokens[place])

    def hold(self) -> None:
        self._marks[(self._queued - 1) % _IN_FLIGHT].synchronize()
        self._marks[self._queued % _IN_FLIGHT].record(self._stream)
        self._queued += 1

    @contextmanager
    def work(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):
            yield

    def close(self) -> None:
        self._stream.synchronize()
        self._decoder.prompts = None
        self._prompts.close()
        _reset(self._graphs)

    def _key(self, index: int, rows: int) -> tuple[int, int, bool]:
        chooses = index == len(self._decoder.segments) - 1
        return index, rows, chooses and self._decoder.sampling.temperature > 0.0

    def _capture_steps(self, steps_rows: Iterable[int]) -> None:
        pool = torch.cuda.graph_pool_handle()
        for rows in steps_rows:
            for sampling in (GREEDY, _DRAWN):
                self._capture_step(rows, sampling, pool)
        self._decoder.start(GREEDY)

    def _capture_step(self, rows: int, sampling: Sampling, pool: Any) -> None:
        decoder = self._decoder
        decoder.start(sampling)
        segments = range(len(decoder.segments))
        for index in segments:  # first in earnest: nothing may be loaded during a capture
            decoder.run_segment(index, rows)
        for index in segments:
            if self._key(index, rows) not in self._graphs:
                run = partial(decoder.run_segment, index, rows)
                self._graphs[self._key(index, rows)] = captured(run, self._stream, pool)
        decoder.start(sampling)
        for index in segments:  # the first replay carries a graph to the GPU
            self.replay(index, rows)


class PromptGraphs:
    """Segments over a whole short prompt as CUDA graphs; a ``decoder.PromptSegments``.

    From Python the launches of a short prompt take longer than what they launch. A graph of so many
    rows serves every prompt of no more: rows are filled up at the end, where no real row sees them,
    and what they leave in the cache is written over before it is read. The rows' products are of
    another size then, so their last bits may differ from those of a prefill without graphs.

    Args:
        decoder: on a GPU, with operators that can be captured; its sequence is lost.
        stream: to run on.
        rows: for which there shall be graphs; of one size, memory for its activations is held.

    Raises:
        DecodingError: a segment cannot be captured.
    """

    def __init__(
        self, decoder: Decoder, stream: torch.cuda.ExternalStream, rows: Sequence[int]
    ) -> None:
        self._decoder = decoder
        self._sizes = sorted(
            size for size in set(rows) if SAME_ORDER_ROWS < size <= decoder.capacity
        )
        most, device = max(self._sizes, default=0), decoder.state.first.device
        self.hidden = decoder.state.hidden.new_zeros(most, decoder.state.hidden.shape[1])
        self._positions = torch.arange(most, device=device)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        try:
            with torch.inference_mode(), torch.cuda.stream(stream):
                self._capture(stream)
        except BaseException:
            _reset(self._graphs)
            raise

    def load(self, hidden: Tensor, positions: Tensor) -> int | None:
        rows = next((size for size in self._sizes if size >= len(hidden)), None)
        if rows is None or positions.dim() > 1:
            return None
        self.hidden[: len(hidden)].copy_(hidden)
        self._positions[: len(hidden)].copy_(positions)
        return rows

    def replay(self, index: int, rows: int) -> None:
        self._graphs[rows, index].replay()

    def close(self) -> None:
        _reset(self._graphs)
        self._sizes = []

    def _capture(self, stream: torch.cuda.ExternalStream) -> None:
        pool = torch.cuda.graph_pool_handle()
        self._decoder.start(GREEDY)
        for size in reversed(self._sizes):  # the largest first: the others use its memory
            for index in range(len(self._decoder.segments)):
                run = partial(self._run, index, size)
                run()  # first in earnest: nothing may be loaded during a capture
                self._graphs[size, index] = captured(run, stream, pool)
        stream.synchronize()

    def _run(self, index: int, rows: int) -> None:
        hidden, positions = self.hidden[:rows], self._positions[:rows]
        hidden.copy_(self._decoder.run_prompt_segment(index, hidden, positions))


def _reset(graphs: MutableMapping[Any, torch.cuda.CUDAGraph]) -> None:
    """Give the memory of graphs back, and forget them."""
    for graph in graphs.values():
        graph.reset()
    graphs.clear()


def captured(
    run: Callable[[], None], stream: torch.cuda.ExternalStream, pool: Any
) -> torch.cuda.CUDAGraph:
    """What ``run`` launches, as a graph; raises ``DecodingError`` where that cannot be."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            run()
    except RuntimeError as error:
        raise DecodingError(
            f"a decode step of this model cannot be captured as a CUDA graph ({error})",
            mend="Run its Decoder without graphs.",
        ) from error
    return graph


def gpu_operators(ordinal: int = 0) -> KernelOperators:
    """The kernels on a GPU; raises ``DecodingError`` where there is none, or no NVRTC."""
    if not torch.cuda.is_available():
        raise DecodingError(
            "torch finds no GPU to decode on",
            expected="an NVIDIA GPU and a torch built for its CUDA",
            mend="Decode on the CPU (device 'cpu') or repair the driver.",
        )
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise DecodingError(
            f"the kernels cannot be compiled here ({error})",
            expected="cuda-bindings and the NVRTC library of CUDA 12 or 13",
            mend="Install requirements/gpu.txt.",
        ) from error
    from edge_perception.vlm.kernel_launcher import GpuLauncher

    return KernelOperators(GpuLauncher(ordinal), torch.device("cuda", ordinal))


def capture_decoder(
    weights: DecoderWeights,
    stream: int,
    *,
    capacity: int,
    kv_format: str = "float",
    segments: int = 1,
    prefill_chunk: int = PREFILL_CHUNK,
    most_rows: int = SAME_ORDER_ROWS,
    prompt_rows: Sequence[int] = (),
) -> PipelinedDecoder:
    """A decoder on the GPU that holds ``weights``, its steps captured; the caller closes it.

    Raises ``DecodingError`` where there is no GPU, no compiler or an option out of range.
    """
    operators = gpu_operators(weights.final_norm.device.index or 0)
    decoder = Decoder(
        weights,
        capacity=capacity,
        kv_format=kv_format,
        segments=segments,
        prefill_chunk=prefill_chunk,
        operators=operators,
    )
    return PipelinedDecoder(decoder, SegmentGraphs(decoder, stream, most_rows, prompt_rows))


def open_gpu_decoder(
    path: Path,
    stream: int,
    *,
    capacity: int,
    kv_format: str = "float",
    segments: int = 1,
    prefill_chunk: int = PREFILL_CHUNK,
    most_rows: int = SAME_ORDER_ROWS,
    prompt_rows: Sequence[int] = (),
) -> PipelinedDecoder:
    """``capture_decoder`` from a checkpoint directory or a ``.gguf``, in FP16.

    Raises ``CheckpointError`` for a checkpoint that is damaged or of an unknown family.
    """
    gpu_operators()  # before gigabytes are read
    weights = take_tower(load_model(path, device="cuda", dtype=torch.float16))
    return capture_decoder(
        weights,
        stream,
        capacity=capacity,
        kv_format=kv_format,
        segments=segments,
        prefill_chunk=prefill_chunk,
        most_rows=most_rows,
        prompt_rows=prompt_rows,
    )
