"""A prompt's prefill over whole models: INT4 and FP16 in this engine, from Python and by graphs.

    python -m benchmarks.decoder.prefill_models --out prefill_models_h100.json

Weights are random (``random_models``). A time is the caller's, from an empty cache to the first
token, the best of some; what graphs cost (seconds to capture, memory that they hold) is beside it.
"""

from __future__ import annotations

import gc
import json
import time
from typing import Any

import torch

from benchmarks.decoder.h100 import CAPACITY, PREFILLS, prefill_of
from benchmarks.decoder.random_models import RandomModel, read_model
from benchmarks.decoder.results import run_facts, shapes_parser
from benchmarks.decoder.timing import wall_ms
from edge_perception.gpu.cuda import Stream, get_device
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.graphs import SegmentGraphs, gpu_operators
from edge_perception.vlm.kernel_operators import KernelOperators
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.weights import DecoderWeights

BITS = {"int4": 4, "fp16 cuBLAS": 16}
TIMES = 6


def measure(
    weights: DecoderWeights, operators: KernelOperators, stream: Stream, length: int
) -> dict[str, Any]:
    """Milliseconds of one prompt in one chunk, both ways, and what its graph costs."""
    decoder = Decoder(weights, capacity=CAPACITY, prefill_chunk=length, operators=operators)
    run = prefill_of(decoder, Prompt(torch.arange(length)))
    wall_ms(run, 1)
    python_ms = min(wall_ms(run, 1) for _ in range(TIMES))
    held, began = torch.cuda.memory_reserved(), time.perf_counter()
    graphs = SegmentGraphs(decoder, stream.handle, most_rows=1, prompt_rows=(length,))
    capture_s, held = time.perf_counter() - began, torch.cuda.memory_reserved() - held
    try:
        with torch.inference_mode(), graphs.work():
            wall_ms(run, 1)
            graph_ms = min(wall_ms(run, 1) for _ in range(TIMES))
    finally:
        graphs.close()
    return {
        "python_ms": round(python_ms, 3),
        "python_tokens_per_s": round(1e3 * length / python_ms),
        "graph_ms": round(graph_ms, 3),
        "graph_tokens_per_s": round(1e3 * length / graph_ms),
        "capture_s": round(capture_s, 2),
        "graph_held_bytes": held,
    }


def main() -> None:
    """Measure, print as it goes, write; what the time does not allow for is left out."""
    options = shapes_parser(__doc__).parse_args()
    ends = time.monotonic() + options.seconds
    result: dict[str, Any] = {
        "what": "a prompt's prefill in one chunk, the caller's time, random weights",
        **run_facts(options.commit),
        "models": {},
    }
    operators, stream = gpu_operators(), Stream(get_device())
    for name in options.only:
        if time.monotonic() > ends:
            print("no time left for", name, flush=True)
            continue
        for kind, bits in BITS.items():
            weights = RandomModel(read_model(name), bits, head_bits=bits).weights()
            for length in PREFILLS:
                found = measure(weights, operators, stream, length)
                result["models"].setdefault(name, {}).setdefault(kind, {})[str(length)] = found
                print(name, kind, length, found, flush=True)
                options.out.write_text(json.dumps(result, indent=1) + "\n")
            del weights
            gc.collect()
            torch.cuda.empty_cache()
    stream.close()


if __name__ == "__main__":
    main()
