"""Products of many rows with 4-bit weights against FP16 cuBLAS: which way is faster from where on.

    python -m benchmarks.decoder.prefill_products --out docs/benchmarks/prefill_products_h100.json

For each matrix of a layer and each number of rows: our packed product, dequantising and cuBLAS,
and cuBLAS on a float weight; of few rows also the decode kernel, eight rows a pass. Results are
first compared with float64. Gate and up are timed with the SiLU(gate) x up that follows, which the
packed product does itself. Times as in ``benchmarks.decoder.kernels``: replays of a graph over
copies that no cache holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.decoder.kernels import (
    EPS,
    Product,
    copies_of,
    copy_bandwidth_gb_s,
    graph_times_us,
    random_weight,
)
from benchmarks.decoder.results import run_facts
from edge_perception.vlm.kernel_launcher import GpuLauncher
from edge_perception.vlm.kernel_operators import KernelOperators
from edge_perception.vlm.operators import SAME_ORDER_ROWS
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.weights import FloatWeight

MATRICES = {
    "llama-3-8b": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "qwen2-1.5b": ((2048, 1536), (1536, 1536), (17920, 1536), (1536, 8960)),
}
"""(channels, columns) of a layer's products: QKV, output, gate and up, down."""

GATE_UP = 2
"""The place of gate and up among them."""

ROWS = (16, 24, 32, 64, 128, 192, 256, 512, 1024, 2048)
PASSED_ROWS = 40
"""Up to which passes are timed."""

PACKED_ROWS = 512
"""Up to which the packed product is timed: beyond, it is far behind."""

WAYS = {"packed": 10**9, "dense": 0}
"""The values of ``Prefill.fused_rows`` that make it go one way or the other."""


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of what is exact."""
    return float(f"{float((got.double() - exact).norm() / exact.norm()):.3g}")


class Matrices:
    """One matrix in both formats, in copies that no cache holds, and its exact products."""

    def __init__(self, size: tuple[int, int], is_gate_up: bool) -> None:
        self.size, self.is_gate_up = size, is_gate_up
        packed = random_weight(Product("linear_add", *size, 4, 128))
        assert isinstance(packed, PackedWeight)
        self.packed = copies_of(packed)
        self.floats = copies_of(FloatWeight(packed.dequantize(torch.float16)))
        self.exact = packed.dequantize(torch.float64).T


def measure(run: KernelOperators, of: Matrices, rows: int) -> dict[str, Any]:
    """Microseconds of each way, and its error, for one matrix and number of rows."""
    x = torch.randn(rows, of.size[1], dtype=torch.float16, device="cuda")
    exact, prefill = x.double() @ of.exact, run._prefill
    row: dict[str, Any] = {"channels": of.size[0], "columns": of.size[1], "rows": rows}
    if rows <= PASSED_ROWS:
        norm = torch.ones(of.size[1], dtype=torch.float16, device="cuda")
        row["passes_us"] = median_us([partial(run_passes, run, x, norm, w) for w in of.packed])

    def multiplied(weight: FloatWeight | PackedWeight) -> Callable[[], object]:
        return partial(prefill.multiply, x, weight, gated=of.is_gate_up)

    for way, limit in WAYS.items():
        if way == "packed" and rows > PACKED_ROWS:
            continue
        prefill.fused_rows = limit
        row[f"{way}_error"] = relative_error(prefill.multiply(x, of.packed[0]), exact)
        row[f"{way}_us"] = median_us([multiplied(w) for w in of.packed])
    row["cublas_us"] = median_us([multiplied(w) for w in of.floats])
    return row


def run_passes(
    run: KernelOperators, x: Tensor, norm: Tensor, weight: FloatWeight | PackedWeight
) -> None:
    """The decode kernel over all rows, eight at a time; its norm stands for what it fuses."""
    for part in x.split(SAME_ORDER_ROWS):
        run.norm_linear(part, norm, EPS, weight)


def median_us(calls: list[Callable[[], object]]) -> float:
    """The median of the replays, a call."""
    return round(statistics.median(graph_times_us(calls)), 2)


def layer_totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A layer's four products together, for each number of rows: the best way against cuBLAS."""
    totals = []
    for many in ROWS:
        of = [row for row in rows if row["rows"] == many]
        keys = [key for key in of[0] if key.endswith("_us")]
        sums = {key: round(sum(row[key] for row in of), 2) for key in keys}
        best = min(value for key, value in sums.items() if key != "cublas_us")
        totals.append({"rows": many, **sums, "of_cublas": round(sums["cublas_us"] / best, 3)})
    return totals


@torch.inference_mode()
def main() -> None:
    """Measure, print as it goes, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(MATRICES))
    parser.add_argument("--commit", help="of the code, where this is no checkout")
    options = parser.parse_args()
    result: dict[str, Any] = {
        **run_facts(options.commit),
        "weights": "random, 4 bits in groups of 128",
        "copy_bandwidth_gb_s": round(copy_bandwidth_gb_s(), 1), "models": {},
    }  # fmt: skip
    run = KernelOperators(GpuLauncher(), "cuda")
    for name in options.models:
        rows = []
        for place, size in enumerate(MATRICES[name]):
            matrices = Matrices(size, place == GATE_UP)
            for many in ROWS:
                rows.append(measure(run, matrices, many))
                print(name, *(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        result["models"][name] = {"products": rows, "layer": layer_totals(rows)}
        for total in result["models"][name]["layer"]:
            print(name, total, flush=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
