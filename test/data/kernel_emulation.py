"""Runs the CUDA kernels' own sources on the CPU, so that their arithmetic is tested everywhere.

g++ compiles the source behind a few definitions: a launch becomes loops over blocks and threads.
Threads run one after another, so a kernel with barriers must be launched with a single thread.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

KERNELS = resources.files("edge_perception.gpu") / "kernels"

_PROLOGUE = r"""
#include <algorithm>
#include <cmath>
#include <cstring>
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __grid_constant__
#define __shared__
#define __restrict__
static void __syncthreads() {}
using std::max; using std::min;
struct Dim { int x, y, z; };
static Dim blockIdx, blockDim, threadIdx;
template <class T> static T __ldg(const T* at) { return *at; }
static int __float2int_rn(float value) { return (int)lrintf(value); }
static float __int_as_float(int bits) { float value; memcpy(&value, &bits, 4); return value; }
static unsigned short to_half(float value) {
  _Float16 half = (_Float16)value; unsigned short bits; memcpy(&bits, &half, 2); return bits;
}
#define asm(...) half = to_half(value)
static int atomicAdd(int* at, int more) { int old = *at; *at += more; return old; }
#define FOR_EACH_THREAD(grid, block) \
  blockDim = block; \
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) \
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) \
  for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) \
  for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y) \
  for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x)
"""


def compile_for_cpu(source_name: str, launchers: str, folder: Path) -> ctypes.CDLL:
    """Build a kernel source as a shared library whose C functions are ``launchers``."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    source = (KERNELS / source_name).read_text()
    file = folder / f"{source_name}.cpp"
    file.write_text(_PROLOGUE + source + launchers)
    library = folder / f"{source_name}.so"
    command = [compiler, "-O2", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off"]
    subprocess.run([*command, str(file), "-o", str(library)], check=True, timeout=120)
    return ctypes.CDLL(str(library))


def by_reference(*arguments: Any) -> list[Any]:
    """Pass ctypes values by address."""
    return [ctypes.byref(argument) for argument in arguments]
