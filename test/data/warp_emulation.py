"""Runs the decoder's CUDA kernels on the CPU, warps in step, so that they are tested everywhere.

Each thread of a block is a thread of the system; barriers, shuffles and tensor-core products are
places where the threads of a block or a warp meet. ``ptx.cuh`` is replaced by the same functions
in C++. Slow, and exact in what it checks: indices, layouts, order of sums. What it cannot show is
what an instruction of the GPU really does, and speed.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

KERNELS = resources.files("edge_perception.vlm") / "kernels"

_PROLOGUE = r"""
#include <barrier>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __restrict__
#define __align__(n)
using std::min; using std::max;
typedef unsigned short half_bits;
typedef unsigned char uint8;
struct alignas(16) Bytes16 { unsigned word[4]; };
struct Dim { int x, y, z; };
static thread_local Dim threadIdx, blockIdx;
static Dim blockDim, gridDim;

struct Warp {
  std::barrier<> meet{32};
  float value[32];
  unsigned a[32][4], b[32][2];
};
static Warp* warps;
static std::barrier<>* block_meet;
static Warp& own_warp() { return warps[threadIdx.x / 32]; }
static void __syncthreads() { block_meet->arrive_and_wait(); }
static void __syncwarp() { own_warp().meet.arrive_and_wait(); }

static float to_float(half_bits bits) { _Float16 h; memcpy(&h, &bits, 2); return (float)h; }
static half_bits to_half(float value) {
  _Float16 h = (_Float16)value; half_bits bits; memcpy(&bits, &h, 2); return bits;
}
static unsigned pair_of(half_bits value) { return value | (unsigned)value << 16; }
template <class F> static unsigned each(unsigned a, unsigned b, F f) {
  half_bits low = to_half(f(to_float(a & 0xffff), to_float(b & 0xffff)));
  half_bits high = to_half(f(to_float(a >> 16), to_float(b >> 16)));
  return low | (unsigned)high << 16;
}
static unsigned subtract_pairs(unsigned a, unsigned b) {
  return each(a, b, [](float x, float y) { return x - y; });
}
static unsigned multiply_pairs(unsigned a, unsigned b) {
  return each(a, b, [](float x, float y) { return x * y; });
}
static Bytes16 load_once(const void* at) {
  assert((uintptr_t)at % 16 == 0);
  Bytes16 bytes; memcpy(&bytes, at, 16); return bytes;
}
static unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  uint64_t bytes = (uint64_t)y << 32 | x; unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}
#define __expf expf
static float rsqrtf(float value) { return 1.0f / sqrtf(value); }
static float __shfl_xor_sync(unsigned, float value, int distance) {
  Warp& warp = own_warp();
  warp.value[threadIdx.x % 32] = value;
  warp.meet.arrive_and_wait();
  float other = warp.value[threadIdx.x % 32 ^ distance];
  warp.meet.arrive_and_wait();
  return other;
}
static float sum_over_warp(float value) {
  for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}
static float half_of(unsigned pair, int which) { return to_float(pair >> 16 * which & 0xffff); }
static void multiply_tiles(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  Warp& warp = own_warp();
  const int lane = threadIdx.x % 32;
  memcpy(warp.a[lane], a, sizeof a);
  memcpy(warp.b[lane], b, sizeof b);
  warp.meet.arrive_and_wait();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = lane % 4 * 2 + i % 2, lower = i / 2;
    float sum = d[i];
    for (int k = 0; k < 16; ++k) {
      const int quarter = k % 8 / 2, upper = k / 8;
      sum += half_of(warp.a[row * 4 + quarter][2 * upper + lower], k % 2) *
             half_of(warp.b[column * 4 + quarter][upper], k % 2);
    }
    d[i] = sum;
  }
  warp.meet.arrive_and_wait();
}
template <class F> static void launch(Dim grid, int threads, F kernel) {
  gridDim = grid; blockDim = {threads, 1, 1};
  for (int z = 0; z < grid.z; ++z)
  for (int y = 0; y < grid.y; ++y)
  for (int x = 0; x < grid.x; ++x) {
    std::vector<Warp> all(threads / 32);
    std::barrier<> meet(threads);
    warps = all.data(); block_meet = &meet;
    std::vector<std::thread> running;
    for (int i = 0; i < threads; ++i)
      running.emplace_back([=] { threadIdx = {i, 0, 0}; blockIdx = {x, y, z}; kernel(); });
    for (auto& thread : running) thread.join();
  }
}
"""


def compile_for_cpu(source_name: str, launchers: str, folder: Path) -> ctypes.CDLL:
    """Build a source of ``vlm/kernels`` as a library whose C functions are ``launchers``."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    source = (KERNELS / source_name).read_text()
    source = source.replace("extern __shared__", "extern").replace("__shared__", "static")
    file = folder / f"{source_name}.cpp"
    file.write_text(_PROLOGUE + source + launchers)
    library = folder / f"{source_name}.so"
    command = [compiler, "-O2", "-std=c++20", "-shared", "-fPIC", "-ffp-contract=off", "-pthread"]
    subprocess.run([*command, "-w", str(file), "-o", str(library)], check=True, timeout=120)
    return ctypes.CDLL(str(library))
