"""Each kernel's time and its share of the copy bandwidth that the same GPU reaches, by size.

    python -m benchmarks.decoder.kernels --out docs/benchmarks/decoder_kernels_h100.json

A product is first compared with float64. Then a CUDA graph launches it over copies of its weight,
so many that no second-level cache holds them, and the graph is replayed: a time is the replay's
divided by its launches, so it holds the gap between two kernels of a graph as a decode step does.
Weights are random.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.decoder.results import run_facts
from edge_perception.vlm.kernel_launcher import GpuLauncher
from edge_perception.vlm.kernel_operators import KernelOperators
from edge_perception.vlm.kv_cache import FloatKvLayer, Int8KvLayer, KvLayer
from edge_perception.vlm.operators import HeadLayout, RotaryTable, Span
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.sampling import GREEDY
from edge_perception.vlm.torch_operators import rms_norm
from edge_perception.vlm.weights import FloatWeight

EPS = 1e-5
FLUSHING_BYTES = 200e6
"""Bytes of all copies together, four times the second-level cache of an H100."""

MOST_COPIES = 512
"""Copies of a small weight: 576 x 576 in 4 bits then takes 89 MB, still more than the cache."""

REPLAYS = 25
COPY_BYTES = 2**30

SIZES = (
    (576, 576),  # channels, columns: SmolLM2-135M
    (1536, 1536),  # Qwen2-1.5B
    (2048, 1536),
    (1536, 8960),
    (3584, 3584),  # Qwen2-7B
    (4096, 4096),  # Llama-3-8B's output, qkv, down and head
    (6144, 4096),
    (4096, 14336),
    (128256, 4096),
    (5120, 13824),  # Llama-2-13B
    (8192, 28672),  # Llama-2-70B
    (28672, 8192),
)
GATE_UP_SIZES = ((3072, 576), (17920, 1536), (28672, 4096), (57344, 8192))
ATTENTIONS = ((32, 8), (32, 32), (12, 2))
CONTEXTS = (4, 512, 4096)


@dataclass(frozen=True)
class Product:
    """One measured product: an operator, its weight's size and format, and rows of x."""

    operator: str
    channels: int
    columns: int
    bits: int
    group_size: int
    rows: int = 1


def products() -> Iterator[Product]:
    """All products of the table, the largest last."""
    for bits in (4, 8, 16):
        for operators, sizes in (
            (("norm_linear", "linear_add"), SIZES),
            (("norm_gate_up",), GATE_UP_SIZES),
        ):
            for channels, columns in sizes:
                group = 128 if columns % 128 == 0 else 64
                for operator in operators:
                    yield Product(operator, channels, columns, bits, group)
    for rows in (2, 4, 8):
        yield Product("norm_linear", 6144, 4096, 4, 128, rows)
        yield Product("norm_gate_up", 28672, 4096, 4, 128, rows)
    for group in (32, 64):
        yield Product("linear_add", 4096, 14336, 4, group)


def random_weight(size: Product) -> FloatWeight | PackedWeight:
    """A weight on the GPU whose products with unit inputs are of the order of one."""
    n, k = size.channels, size.columns
    if size.bits == 16:
        return FloatWeight(torch.randn(n, k, dtype=torch.float16, device="cuda") / k**0.5)
    words = torch.randint(-(2**31), 2**31, (n, k * size.bits // 32), device="cuda")
    codes = words.to(torch.int32) if size.bits == 4 else words.to(torch.int32).view(torch.uint8)
    spread = 2.0 ** (size.bits - 1)
    scales = torch.rand(n, k // size.group_size, device="cuda") / (spread * k**0.5) + 1e-5
    zeros = torch.randint(0, 2**size.bits, scales.shape, dtype=torch.uint8, device="cuda")
    return PackedWeight(codes, scales.half(), zeros, size.bits, size.group_size)


def copies_of(weight: FloatWeight | PackedWeight) -> list[FloatWeight | PackedWeight]:
    """The weight and copies, so many that they do not fit in the second-level cache."""
    many = min(MOST_COPIES, max(2, int(FLUSHING_BYTES // weight.nbytes) + 1))
    if isinstance(weight, FloatWeight):
        return [weight, *(FloatWeight(weight.values.clone()) for _ in range(many - 1))]
    return [weight, *(replace(weight, codes=weight.codes.clone(), scales=weight.scales.clone(),
                              zeros=weight.zeros.clone()) for _ in range(many - 1))]  # fmt: skip


def graph_times_us(calls: list[Callable[[], object]]) -> list[float]:
    """Microseconds a call, sorted: replays of one graph that makes all of them in turn."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for replay in range(REPLAYS + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 3:
            times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return sorted(times)


def summary(times_us: list[float], nbytes: int, bandwidth: float) -> dict[str, Any]:
    """What a row of the table says of a kernel that reads ``nbytes``."""
    p50 = statistics.median(times_us)
    return {
        "bytes": nbytes,
        "p50_us": round(p50, 3),
        "p90_us": round(times_us[int(0.9 * len(times_us))], 3),
        "gb_s": round(nbytes / p50 / 1e3, 1),
        "share_of_copy": round(nbytes / p50 / 1e3 / bandwidth, 4),
    }


def copy_bandwidth_gb_s() -> float:
    """Bytes read and written a second by a device-to-device copy of 1 GiB, the median.

    Not by a graph: the driver copies slower there than it does otherwise.
    """
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return 2 * COPY_BYTES / statistics.median(times) / 1e3


def product_call(
    run: KernelOperators, size: Product, x: Tensor, norm: Tensor, residual: Tensor
) -> Callable[[FloatWeight | PackedWeight], Tensor]:
    """The operator of ``size`` as a function of its weight."""
    if size.operator == "linear_add":
        return lambda weight: run.linear_add(x, weight, residual)
    if size.operator == "norm_gate_up":
        return lambda weight: run.norm_gate_up(x, norm, EPS, weight)
    return lambda weight: run.norm_linear(x, norm, EPS, weight)


def exact_product(
    size: Product, weight: FloatWeight | PackedWeight, x: Tensor, norm: Tensor, residual: Tensor
) -> Tensor:
    """The operator's result in float64, but for what a norm rounds to fp16 by definition."""
    wide = weight.values if isinstance(weight, FloatWeight) else weight.dequantize(torch.float64)
    inputs = x if size.operator == "linear_add" else rms_norm(x, norm, EPS)
    result = inputs.double() @ wide.double().T
    if size.operator == "linear_add":
        return result + residual.double()
    if size.operator == "norm_linear":
        return result
    gate, up = result.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def measure_product(run: KernelOperators, size: Product, bandwidth: float) -> dict[str, Any]:
    """One row: the error against float64, then the time."""
    weight = random_weight(size)
    x = torch.randn(size.rows, size.columns, dtype=torch.float16, device="cuda")
    norm = torch.rand(size.columns, dtype=torch.float16, device="cuda") + 0.5
    residual = torch.randn(size.rows, size.channels, dtype=torch.float16, device="cuda")
    call = product_call(run, size, x, norm, residual)
    exact = exact_product(size, weight, x, norm, residual)
    error = float((call(weight).double() - exact).norm() / exact.norm())
    del exact
    weights = copies_of(weight)
    times = graph_times_us([lambda each=each: call(each) for each in weights])
    return {
        "kernel": "linear.cu", **asdict(size), "copies": len(weights),
        "relative_error": float(f"{error:.3g}"), **summary(times, weight.nbytes, bandwidth),
    }  # fmt: skip


def kv_layer(kv_heads: int, capacity: int, head_dim: int, kv_format: str) -> KvLayer:
    """A layer's cache with something in every slot."""
    size = (kv_heads, capacity, head_dim)
    if kv_format == "float":
        held = [torch.randn(size, dtype=torch.float16, device="cuda") for _ in range(2)]
        return FloatKvLayer(*held)
    codes = [torch.randint(-127, 128, size, dtype=torch.int8, device="cuda") for _ in range(2)]
    scales = [torch.rand(size[:2], device="cuda") / 127 for _ in range(2)]
    return Int8KvLayer(*codes, *scales)


def measure_attention(
    run: KernelOperators, heads: tuple[int, int], context: int, kv_format: str, bandwidth: float
) -> dict[str, Any]:
    """One row: a decode step's attention at a context, over a cache of 4096 slots."""
    capacity, head_dim = max(CONTEXTS), 128
    layout = HeadLayout(*heads, head_dim, None, EPS)
    angles = torch.rand(capacity, head_dim // 2, device="cuda")
    table = RotaryTable(angles.cos(), angles.sin())
    first = torch.tensor([context - 1], device="cuda")
    span = Span(first, 1, capacity)
    width = (heads[0] + 2 * heads[1]) * head_dim
    qkv = torch.randn(1, width, dtype=torch.float16, device="cuda")
    per_value = 2 if kv_format == "float" else 1
    per_slot = 2 * heads[1] * (head_dim * per_value + (0 if kv_format == "float" else 4))
    layers = [kv_layer(heads[1], capacity, head_dim, kv_format) for _ in range(16)]
    times = graph_times_us(
        [lambda each=each: run.attend(qkv, layout, table, first, each, span) for each in layers]
    )
    return {
        "kernel": "attention.cu", "operator": "attend", "query_heads": heads[0],
        "kv_heads": heads[1], "head_dim": head_dim, "kv_format": kv_format, "context": context,
        "capacity": capacity, **summary(times, per_slot * context, bandwidth),
    }  # fmt: skip


def measure_sampling(run: KernelOperators, words: int, bandwidth: float) -> dict[str, Any]:
    """One row: the greedy choice of a token."""
    logits = torch.randn(1, words, dtype=torch.float16, device="cuda")
    slots = torch.zeros(1, dtype=torch.int64, device="cuda")
    times = graph_times_us([lambda: run.sample(logits, GREEDY, slots)] * 8)
    return {"kernel": "sampling.cu", "operator": "sample", "words": words,
            **summary(times, logits.nbytes, bandwidth)}  # fmt: skip


def rows(run: KernelOperators, bandwidth: float, only: str) -> Iterator[dict[str, Any]]:
    """All rows, as they are measured."""
    for size in products():
        if only in f"{size.operator} {size.bits}":
            yield measure_product(run, size, bandwidth)
    if only in "attend sample":
        for heads in ATTENTIONS:
            for kv_format in ("float", "int8"):
                for context in CONTEXTS:
                    yield measure_attention(run, heads, context, kv_format, bandwidth)
        for words in (32000, 151936):
            yield measure_sampling(run, words, bandwidth)


def told(row: dict[str, Any]) -> str:
    """A row for people."""
    known = ("operator", "channels", "columns", "bits", "group_size", "rows", "query_heads",
             "kv_heads", "kv_format", "context", "words")  # fmt: skip
    what = " ".join(str(row[key]) for key in known if key in row)
    error = f"  error {row['relative_error']:.1e}" if "relative_error" in row else ""
    return f"{what:44s} {row['p50_us']:9.2f} us {row['share_of_copy']:6.1%} of copy{error}"


@torch.inference_mode()
def main() -> None:
    """Measure, print as it goes, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="part of 'OPERATOR BITS' or 'attend'")
    options = parser.parse_args()
    bandwidth = copy_bandwidth_gb_s()
    print(f"copy {bandwidth:.0f} GB/s", flush=True)
    result: dict[str, Any] = {
        **run_facts(),
        "weights": "random", "copy_bandwidth_gb_s": round(bandwidth, 1), "kernels": [],
    }  # fmt: skip
    for row in rows(KernelOperators(GpuLauncher(), "cuda"), bandwidth, options.only):
        print(told(row), flush=True)
        result["kernels"].append(row)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
