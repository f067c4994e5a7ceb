"""Products of many rows with 4-bit weights against FP16 cuBLAS: which way is faster from where on.

    python -m benchmarks.decoder.prefill_products --out docs/benchmarks/prefill_products_h100.json

For each matrix of a layer and each number of rows: our packed product, dequantising and cuBLAS,
and cuBLAS on a float weight. Results are first compared with float64. Times as in
``benchmarks.decoder.kernels``: replays of a graph over copies that no cache holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.decoder.kernels import (
    Product,
    copies_of,
    copy_bandwidth_gb_s,
    graph_times_us,
    random_weight,
)
from edge_perception.core.machine import describe_code, describe_machine, utc_now
from edge_perception.vlm.kernel_launcher import GpuLauncher
from edge_perception.vlm.kernel_operators import KernelOperators
from edge_perception.vlm.weights import FloatWeight

MATRICES = {
    "llama-3-8b": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "qwen2-1.5b": ((2048, 1536), (1536, 1536), (17920, 1536), (1536, 8960)),
}
"""(channels, columns) of a layer's products: QKV, output, gate and up, down."""

ROWS = (16, 64, 128, 192, 256, 384, 512, 1024, 2048)
WAYS = {"packed": 10**9, "dense": 0}
"""The values of ``Prefill.fused_rows`` that make it go one way or the other."""


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of what is exact."""
    return float(f"{float((got.double() - exact).norm() / exact.norm()):.3g}")


def measure(run: KernelOperators, size: tuple[int, int], rows: int) -> dict[str, Any]:
    """Microseconds of each way, and its error, for one matrix and number of rows."""
    weight = random_weight(Product("linear_add", *size, 4, 128))
    x = torch.randn(rows, size[1], dtype=torch.float16, device="cuda")
    zero = torch.zeros(rows, size[0], dtype=torch.float16, device="cuda")
    weights = copies_of(weight)[:16]
    exact = x.double() @ weight.dequantize(torch.float64).T
    row: dict[str, Any] = {"channels": size[0], "columns": size[1], "rows": rows}
    for way, limit in WAYS.items():
        run._prefill.fused_rows = limit
        row[f"{way}_error"] = relative_error(run.linear_add(x, weight, zero), exact)
        row[f"{way}_us"] = median_us([lambda w=w: run._prefill.multiply(x, w) for w in weights])
    dense = [FloatWeight(w.dequantize(torch.float16)) for w in weights[:4]]
    row["cublas_us"] = median_us([lambda w=w: run._prefill.multiply(x, w) for w in dense])
    return row


def median_us(calls: list[Callable[[], object]]) -> float:
    """The median of the replays, a call."""
    return round(statistics.median(graph_times_us(calls)), 2)


def layer_totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A layer's four products together, for each number of rows: the better way against cuBLAS."""
    totals = []
    for many in ROWS:
        of = [row for row in rows if row["rows"] == many]
        sums = {key: sum(row[key] for row in of) for key in ("packed_us", "dense_us", "cublas_us")}
        best = sum(min(row["packed_us"], row["dense_us"]) for row in of)
        totals.append({"rows": many, **sums, "of_cublas": round(sums["cublas_us"] / best, 3)})
    return totals


@torch.inference_mode()
def main() -> None:
    """Measure, print as it goes, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(MATRICES))
    options = parser.parse_args()
    result: dict[str, Any] = {
        "machine": describe_machine(), "date": utc_now(), "code": describe_code(),
        "weights": "random, 4 bits in groups of 128",
        "copy_bandwidth_gb_s": round(copy_bandwidth_gb_s(), 1), "models": {},
    }  # fmt: skip
    run = KernelOperators(GpuLauncher(), "cuda")
    for name in options.models:
        rows = []
        for size in MATRICES[name]:
            for many in ROWS:
                rows.append(measure(run, size, many))
                print(name, *(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        result["models"][name] = {"products": rows, "layer": layer_totals(rows)}
        for total in result["models"][name]["layer"]:
            print(name, total, flush=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
