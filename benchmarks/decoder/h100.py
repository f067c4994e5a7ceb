"""Decode and prefill of the table's models on a GPU: FP16 and INT4 in this engine.

    python -m benchmarks.decoder.h100 --out docs/benchmarks/decode_h100.json
    python -m benchmarks.decoder.peers --out docs/benchmarks/decode_h100.json

The weights are random (``random_models``); a cut of two layers of each shape first proves that the
kernels answer as the torch operators do. A step is timed by events around its replay, at a length
that is set anew before each; the cache is filled with random values. The file is written after
every part, and what the time does not allow for is left out.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.decoder.random_models import RandomModel, read_model
from benchmarks.decoder.results import BEST, CONTEXTS, Results, shapes_parser
from benchmarks.decoder.timing import copy_bandwidth_gb_s, percentiles, times_ms, wall_ms
from edge_perception.gpu.cuda import Stream, get_device
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.graphs import SegmentGraphs, gpu_operators
from edge_perception.vlm.kernel_operators import KernelOperators
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.pipeline import PipelinedDecoder
from edge_perception.vlm.sampling import GREEDY
from edge_perception.vlm.weights import DecoderWeights

CAPACITY = 4096
STEPS = 100
SEGMENTS = (1, 4, 8)
PREFILLS = (128, 512, 2048)
CAPTURED = (128, 512)
"""Prompts that also run as CUDA graphs."""

HEADS = {4: BEST, 8: "int4, int8 head", 16: "int4, fp16 head"}
LARGEST_ERROR = 0.01
"""Of the logits of two layers, relative, kernels against torch."""


class Bench:
    """What all measurements share: the operators, the stream, the file."""

    def __init__(self, results: Results, operators: KernelOperators, stream: Stream) -> None:
        self.results = results
        self.operators = operators
        self.stream = stream

    def run_shape(self, name: str) -> None:
        """All figures of one shape; a part that fails is told in the file."""
        figures, part = self.results.shape(name), self.results.part
        decode: dict[str, Any] = figures.setdefault("decode", {})
        prefill: dict[str, Any] = figures.setdefault("prefill", {})
        segments: dict[str, Any] = figures.setdefault("segments", {})
        for bits in (4, 16):
            with part(f"{name}, proof of {bits} bits"):
                figures.setdefault("proof", {})[str(bits)] = self.prove(name, bits)
        model = RandomModel(read_model(name), bits=4, head_bits=4)
        weights = model.weights()
        for head_bits, variant in HEADS.items():
            with part(f"{name}, {variant}"):
                decode[variant] = self.time_decode(model.with_head(weights, head_bits))
        with part(f"{name}, int8 KV"):
            decode[f"{BEST}, int8 KV"] = self.time_decode(weights, kv_format="int8")
        for k in SEGMENTS:
            with part(f"{name}, {k} segments"):
                segments[str(k)] = self.time_segments(weights, k)
        with part(f"{name}, prefill of int4"):
            prefill["int4"] = self.time_prefill(weights)
            figures.setdefault("captured_prefill", {})["int4"] = self.time_captured_prefill(weights)
        del weights
        weights = RandomModel(read_model(name), bits=16, head_bits=16).weights()
        with part(f"{name}, fp16"):
            decode["fp16"] = self.time_decode(weights)
        with part(f"{name}, prefill of fp16"):
            prefill["fp16 cuBLAS"] = self.time_prefill(weights)
            captured = self.time_captured_prefill(weights)
            figures.setdefault("captured_prefill", {})["fp16 cuBLAS"] = captured

    @torch.inference_mode()
    def prove(self, name: str, bits: int) -> dict[str, Any]:
        """Logits of a two-layer cut, kernels against torch, over a prompt and single tokens."""
        weights = RandomModel(read_model(name, layers=2), bits, head_bits=bits).weights()
        ours = Decoder(weights, capacity=64, operators=self.operators)
        oracle = Decoder(weights, capacity=64)
        tokens = torch.randint(0, 32000, (20,), generator=torch.Generator().manual_seed(1))
        parts = [tokens[:12], tokens[12:15], *tokens[15:].split(1)]
        got, wanted = (
            torch.cat([decoder.logits(Prompt(part)) for part in parts]).double()
            for decoder in (ours, oracle)
        )
        error = float((got - wanted).norm() / wanted.norm())
        best = wanted.topk(2, dim=-1).values
        clear = (best[:, 0] - best[:, 1]) > 0.05
        same = got.argmax(-1) == wanted.argmax(-1)
        assert error < LARGEST_ERROR, f"{name} at {bits} bits: error {error}"
        assert bool(same[clear].all()), f"{name} at {bits} bits: other words"
        return {
            "layers": 2,
            "relative_error": error,
            "rows": len(tokens),
            "clear": int(clear.sum()),
            "same_where_clear": int((same & clear).sum()),
        }

    @contextmanager
    def captured(
        self, weights: DecoderWeights, **options: Any
    ) -> Iterator[tuple[Decoder, SegmentGraphs]]:
        """A decoder with a cache full of random values, and its graphs."""
        decoder = Decoder(weights, capacity=CAPACITY, operators=self.operators, **options)
        for layer in decoder.cache.layers:
            fill_randomly(layer)
        graphs = SegmentGraphs(decoder, self.stream.handle, most_rows=1)
        try:
            with torch.inference_mode(), graphs.work():
                yield decoder, graphs
        finally:
            graphs.close()

    def time_decode(self, weights: DecoderWeights, kv_format: str = "float") -> dict[str, Any]:
        """Milliseconds a step at each context, the bytes that it reads, and what memory holds."""
        with self.captured(weights, kv_format=kv_format) as (decoder, graphs):
            times = {}
            for context in CONTEXTS:
                state = decoder.state.first
                prepare = partial(state.fill_, context - 1)
                step = partial(run_step, decoder, graphs)
                times_ms(step, prepare=prepare, times=10)
                times[str(context)] = percentiles(times_ms(step, prepare=prepare, times=STEPS))
            slot_bytes = decoder.cache.nbytes // CAPACITY
            return {
                "ms": times,
                "bytes": {str(c): weights.bytes_per_token + c * slot_bytes for c in CONTEXTS},
                "memory": {"weights": weights.nbytes, "kv_cache": decoder.cache.nbytes},
            }

    def time_segments(self, weights: DecoderWeights, segments: int) -> dict[str, Any]:
        """Milliseconds a token at context 512 in ``segments`` graphs: the GPU's, and a caller's."""
        began = time.perf_counter()
        with self.captured(weights, segments=segments) as (decoder, graphs):
            capture_s = time.perf_counter() - began
            prepare = partial(decoder.state.first.fill_, 511)
            step = partial(run_step, decoder, graphs)
            times_ms(step, prepare=prepare, times=10)
            figures: dict[str, Any] = percentiles(times_ms(step, prepare=prepare, times=STEPS))
            with PipelinedDecoder(decoder, graphs) as model:
                model.start(GREEDY)
                model.prefill(Prompt(torch.arange(450)))
                wall_ms(model.step, 10)
                figures["wall"] = round(wall_ms(model.step, STEPS), 4)
            return figures | {"capture_s": round(capture_s, 2)}

    @torch.inference_mode()
    def time_prefill(self, weights: DecoderWeights) -> dict[str, Any]:
        """Tokens a second of a prompt's prefill, in one chunk and in chunks of 512.

        Float products are cuBLAS's; all else is the same kernels.
        """
        figures: dict[str, Any] = {}
        for chunk in (512, max(PREFILLS)):
            decoder = Decoder(
                weights, capacity=CAPACITY, prefill_chunk=chunk, operators=self.operators
            )
            for length in (length for length in PREFILLS if length > 512 or chunk == 512):
                prompt = Prompt(torch.arange(length))
                run = prefill_of(decoder, prompt)
                wall_ms(run, 1)
                ms = min(wall_ms(run, 1) for _ in range(4))
                figures.setdefault(str(length), {})[f"chunks of {chunk}"] = {
                    "ms": round(ms, 3),
                    "tokens_per_s": round(1e3 * length / ms),
                }
        return figures

    def time_captured_prefill(self, weights: DecoderWeights) -> dict[str, Any]:
        """Tokens a second of short prompts' prefill by CUDA graphs."""
        figures: dict[str, Any] = {}
        decoder = Decoder(weights, capacity=CAPACITY, operators=self.operators)
        graphs = SegmentGraphs(decoder, self.stream.handle, most_rows=1, prompt_rows=CAPTURED)
        try:
            with torch.inference_mode(), graphs.work():
                for length in CAPTURED:
                    run = prefill_of(decoder, Prompt(torch.arange(length)))
                    wall_ms(run, 1)
                    ms = min(wall_ms(run, 1) for _ in range(8))
                    told = {"ms": round(ms, 3), "tokens_per_s": round(1e3 * length / ms)}
                    figures[str(length)] = told
        finally:
            graphs.close()
        return figures


def prefill_of(decoder: Decoder, prompt: Prompt) -> Callable[[], int]:
    """A prefill from an empty cache."""

    def run() -> int:
        decoder.start(GREEDY)
        return decoder.prefill(prompt)

    return run


def run_step(decoder: Decoder, graphs: SegmentGraphs) -> None:
    """Replay a step's segments, as fast as the host can queue them."""
    for index in range(len(decoder.segments)):
        graphs.replay(index, 1)


def fill_randomly(layer: Any) -> None:
    """Values of the size that keys and values have."""
    for name, tensor in vars(layer).items():
        if tensor.dtype == torch.int8:
            tensor.random_(-127, 128)
        elif name.endswith("scales"):
            tensor.fill_(1 / 127)
        else:
            tensor.normal_()


def main() -> int:
    """Run the shapes asked for, until the time is up; 1 where a part failed."""
    options = shapes_parser(__doc__).parse_args()
    ends = time.monotonic() + options.seconds
    results = Results(options.out)
    results.stamp(options.commit)
    stream = Stream(get_device())
    bench = Bench(results, gpu_operators(), stream)
    results.figures["copy_bandwidth_gb_s"] = copy_bandwidth_gb_s()
    print("copy", results.figures["copy_bandwidth_gb_s"], "GB/s", flush=True)
    for name in options.only:
        if time.monotonic() > ends:
            print("no time left for", name, flush=True)
            continue
        began = time.monotonic()
        bench.run_shape(name)
        gc.collect()
        torch.cuda.empty_cache()
        print_shape(name, results, time.monotonic() - began)
    stream.close()
    return int("failed" in results.figures)


def print_shape(name: str, results: Results, took_s: float) -> None:
    """For people who watch."""
    figures = results.shape(name)
    print(f"{name} ({took_s:.0f} s)", figures["proof"], flush=True)
    for variant, found in figures["decode"].items():
        print(f"  {variant:28s}", {c: value["p50"] for c, value in found["ms"].items()})
    print("  segments", figures["segments"])
    print("  prefill", figures["prefill"])
    print("  prefill by graphs", figures.get("captured_prefill"), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
