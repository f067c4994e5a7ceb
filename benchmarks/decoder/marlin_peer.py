"""Our W4A16 products beside Marlin's, the kernel of vLLM and GPTQModel, on the same weights.

    git clone https://github.com/IST-DASLab/marlin
    python -m benchmarks.decoder.marlin_peer --marlin marlin --library /tmp/marlin.so \
        --out docs/benchmarks/marlin_peer_h100.json

``--marlin`` is a checkout of Marlin (Apache-2.0), whose kernel nvcc compiles into ``--library``,
if that is not there yet, and whose own code packs the weights. Marlin knows symmetric codes in
groups of 128; ours are given the same, with the zero point 8 in place of any other. Both are first
compared with float64. Times as in ``benchmarks.decoder.kernels``; ours add a residual besides, as
the decoder wants it.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.decoder.kernels import Product, copies_of, random_weight
from benchmarks.decoder.prefill_products import MATRICES, median_us, relative_error
from benchmarks.frames.frame_source import provenance
from edge_perception.vlm.kernel_launcher import GpuLauncher
from edge_perception.vlm.kernel_operators import KernelOperators
from edge_perception.vlm.packed_linear import PackedWeight

GROUP, SYMMETRIC_ZERO = 128, 8
ROWS = (1, 8, 16, 32, 64, 128, 256)
MOST_PARALLEL = 16  # Marlin's max_par: blocks of 64 rows side by side
MOST_ERROR = 5e-3
_SHIM = """#include "{source}"
extern "C" int multiply(const void* x, const void* codes, void* y, void* scales, int rows,
                        int channels, int columns, void* locks, void* stream) {{
  return marlin_cuda(x, codes, y, scales, rows, channels, columns, locks, {group}, 0,
                     (cudaStream_t)stream);
}}
"""


def build_library(checkout: Path, library: Path) -> None:
    """Compile Marlin's kernel for the GPU at hand."""
    source = (checkout / "marlin" / "marlin_cuda_kernel.cu").resolve()
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "shim.cu"
        shim.write_text(_SHIM.format(source=source, group=GROUP))
        options = ["-O3", "--shared", "-Xcompiler", "-fPIC", "--expt-relaxed-constexpr"]
        options += [f"-arch=sm_{major}{minor}"]
        subprocess.run(["nvcc", *options, "-o", str(library), str(shim)], check=True)


def import_marlin(checkout: Path) -> Any:
    """Marlin's own Python, for its packing; it asks for its extension, which is not built here."""
    sys.modules["marlin_cuda"] = ModuleType("marlin_cuda")
    sys.path.insert(0, str(checkout))
    return importlib.import_module("marlin")


class Marlin:
    """Marlin's product with weights of one shape."""

    def __init__(self, library: ctypes.CDLL, size: tuple[int, int]) -> None:
        self._multiply = library.multiply
        self._multiply.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int] * 3 + [ctypes.c_void_p] * 2
        self._channels, self._columns = size
        locks = self._channels // 128 * MOST_PARALLEL
        self._locks = torch.zeros(locks, dtype=torch.int32, device="cuda")

    def __call__(self, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        """``x`` FP16 (rows, columns); returns FP16 (rows, channels), queued on torch's stream."""
        y = torch.empty(len(x), self._channels, dtype=x.dtype, device=x.device)
        pointers = (x.data_ptr(), codes.data_ptr(), y.data_ptr(), scales.data_ptr())
        sizes = (len(x), self._channels, self._columns)
        stream = torch.cuda.current_stream().cuda_stream
        failed = self._multiply(*pointers, *sizes, self._locks.data_ptr(), stream)
        if failed:
            raise ValueError(f"Marlin has no kernel for {sizes}: error {failed}")
        return y


def symmetric_weight(size: tuple[int, int]) -> PackedWeight:
    """A random weight with the one zero point that Marlin knows."""
    weight = random_weight(Product("linear_add", *size, 4, GROUP))
    assert isinstance(weight, PackedWeight)
    weight.zeros.fill_(SYMMETRIC_ZERO)
    return weight


def packed_for_marlin(marlin: Any, weight: PackedWeight) -> tuple[Tensor, Tensor]:
    """Marlin's codes and scales of the same weight."""
    channels, columns = weight.out_features, weight.in_features
    linear = torch.nn.Linear(columns, channels, bias=False, dtype=torch.half, device="meta")
    linear.weight = torch.nn.Parameter(weight.dequantize(torch.float16))
    layer = marlin.Layer(columns, channels, GROUP).to(weight.codes.device)
    layer.pack(linear, weight.scales)
    return layer.B, layer.s


def measure_matrix(
    run: KernelOperators, marlin: Any, library: ctypes.CDLL, size: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """A result for each number of rows."""
    weight, theirs = symmetric_weight(size), Marlin(library, size)
    copies = copies_of(weight)[:16]
    codes, scales = packed_for_marlin(marlin, weight)
    packed = [(codes.clone(), scales.clone()) for _ in copies]
    exact = weight.dequantize(torch.float64)
    for rows in ROWS:
        x = torch.randn(rows, size[1], dtype=torch.float16, device="cuda")
        zero = torch.zeros(rows, size[0], dtype=torch.float16, device="cuda")
        ways = {
            "ours": [partial(run.linear_add, x, each, zero) for each in copies],
            "marlin": [partial(theirs, x, *each) for each in packed],
        }
        shape = {"channels": size[0], "columns": size[1], "rows": rows}
        yield {**shape, **compare(ways, x.double() @ exact.T)}


def compare(ways: Mapping[str, Sequence[Callable[[], Tensor]]], exact: Tensor) -> dict[str, Any]:
    """Error and microseconds of each way; a wrong result is not timed."""
    errors = {f"{name}_error": relative_error(calls[0](), exact) for name, calls in ways.items()}
    if max(errors.values()) > MOST_ERROR:
        raise ValueError(f"{tuple(exact.shape)}: {errors}, more than {MOST_ERROR}")
    times = {f"{name}_us": median_us(list(calls)) for name, calls in ways.items()}
    return {**errors, **times, "speedup": round(times["marlin_us"] / times["ours_us"], 3)}


@torch.inference_mode()
def main() -> None:
    """Measure, print as it goes, write after each matrix."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--marlin", type=Path, required=True, help="a checkout")
    parser.add_argument("--library", type=Path, required=True, help="compiled, if not there yet")
    parser.add_argument("--models", nargs="+", choices=MATRICES, default=["llama-3-8b"])
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not options.library.exists():
        build_library(options.marlin, options.library)
    marlin, library = import_marlin(options.marlin), ctypes.CDLL(str(options.library.resolve()))
    run = KernelOperators(GpuLauncher(), "cuda")
    result = {**provenance(options.commit), "weights": f"random, symmetric, groups of {GROUP}"}
    result["products"] = []
    for size in [size for model in options.models for size in MATRICES[model]]:
        for row in measure_matrix(run, marlin, library, size):
            result["products"].append(row)
            print(row, flush=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
