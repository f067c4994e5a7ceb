"""Runs the decoder's CUDA kernels on the CPU, warps in step, so that they are tested everywhere.

Each thread of a block is a context of its own, all in one thread of the system; barriers, shuffles
and tensor-core products are places where it waits for the others of its block or warp. ``ptx.cuh``
is replaced by the same functions in C++. Exact in what it checks: indices, layouts, order of sums.
What it cannot show is what an instruction of the GPU really does, and speed.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

KERNELS = resources.files("edge_perception.vlm") / "kernels"

_PROLOGUE = r"""
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <utility>
#include <vector>
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n)
using std::min; using std::max;
typedef unsigned short half_bits;
typedef unsigned char uint8;
struct alignas(8) Bytes8 { unsigned word[2]; };
struct alignas(16) Bytes16 { unsigned word[4]; };
struct Dim { int x, y, z; };
static Dim threadIdx, blockIdx, blockDim, gridDim;

constexpr int kStack = 1 << 16, kMost = 1024;
struct Fiber { ucontext_t context; bool done; };
static Fiber fibers[kMost];
static std::vector<char> stacks(kMost * (size_t)kStack);
static ucontext_t scheduler;
static std::function<void()> entry;
static void run_entry() {
  entry();
  fibers[threadIdx.x].done = true;
}

struct Meeting {  // where ``size`` threads wait for each other
  int size, arrived = 0, times = 0;
  void wait() {
    const int now = times;
    if (++arrived == size) { arrived = 0; ++times; return; }
    while (times == now) swapcontext(&fibers[threadIdx.x].context, &scheduler);
  }
};
struct Warp {
  Meeting meet{32};
  float value[32];
  unsigned a[32][4], b[32][2];
};
static Warp* warps;
static Meeting* block_meet;
static Warp& own_warp() { return warps[threadIdx.x / 32]; }
static void __syncthreads() { block_meet->wait(); }
static void __syncwarp() { own_warp().meet.wait(); }

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
static unsigned add_pairs(unsigned a, unsigned b) {
  return each(a, b, [](float x, float y) { return x + y; });
}
static unsigned multiply_pairs(unsigned a, unsigned b) {
  return each(a, b, [](float x, float y) { return x * y; });
}
static Bytes16 load_once(const void* at) {
  assert((uintptr_t)at % 16 == 0);
  Bytes16 bytes; memcpy(&bytes, at, 16); return bytes;
}
static Bytes16 load_from_others(const void* at) { return load_once(at); }
static Bytes16 load_once_with_line(const void* at) { return load_once(at); }
static void forget(int&) {}
static void start_next_kernel() {}
static void wait_for_last_kernel() {}
static void __threadfence() {}
template <class T> static T __ldcg(const T* at) { return *at; }
static unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
template <unsigned kMask, unsigned kBits> static unsigned keep_and_set(unsigned a) {
  return a & kMask | kBits;
}
static void copy_async(void* to, const void* from, bool wanted) {
  assert((uintptr_t)to % 16 == 0 && (uintptr_t)from % 16 == 0);
  if (wanted) memcpy(to, from, 16); else memset(to, 0, 16);
}
static void copy_async_with_line(void* to, const void* from, bool wanted) {
  copy_async(to, from, wanted);
}
static void fetch(const void* at, unsigned bytes) {  // what it may not touch, reading would
  assert((uintptr_t)at % 16 == 0 && bytes % 16 == 0);
  for (unsigned i = 0; i < bytes; i += 16) (void)*((const volatile char*)at + i);
}
static void end_copies() {}
template <int kLeft> static void wait_for_copies() {}
static int atomicAdd(int* at, int more) { int old = *at; *at += more; return old; }
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
  warp.meet.wait();
  float other = warp.value[threadIdx.x % 32 ^ distance];
  warp.meet.wait();
  return other;
}
static unsigned __shfl_sync(unsigned, unsigned value, int from, int width) {
  Warp& warp = own_warp();
  const int lane = threadIdx.x % 32;
  memcpy(&warp.value[lane], &value, 4);
  warp.meet.wait();
  unsigned other;
  memcpy(&other, &warp.value[lane / width * width + from], 4);
  warp.meet.wait();
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
  warp.meet.wait();
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
  warp.meet.wait();
}
template <class F> static void launch(Dim grid, int threads, F kernel) {
  gridDim = grid; blockDim = {threads, 1, 1};
  for (int z = 0; z < grid.z; ++z)
  for (int y = 0; y < grid.y; ++y)
  for (int x = 0; x < grid.x; ++x) {
    std::vector<Warp> all(threads / 32);
    Meeting meet{threads};
    warps = all.data(); block_meet = &meet; entry = kernel; blockIdx = {x, y, z};
    for (int i = 0; i < threads; ++i) {
      getcontext(&fibers[i].context);
      fibers[i].done = false;
      fibers[i].context.uc_stack = {stacks.data() + (size_t)i * kStack, 0, kStack};
      fibers[i].context.uc_link = &scheduler;
      makecontext(&fibers[i].context, run_entry, 0);
    }
    for (int left = threads; left;) {
      left = 0;
      for (int i = 0; i < threads; ++i) {
        if (fibers[i].done) continue;
        threadIdx = {i, 0, 0};
        swapcontext(&scheduler, &fibers[i].context);
        left += !fibers[i].done;
      }
    }
  }
}
"""


_CALL = r"""
template <class... P, size_t... I>
static void call(void (*kernel)(P...), Dim grid, int threads, void** given,
                 std::index_sequence<I...>) {
  launch(grid, threads, [=] { kernel(*(P*)given[I]...); });
}
template <class... P>
static void call(void (*kernel)(P...), Dim grid, int threads, void** given) {
  call(kernel, grid, threads, given, std::index_sequence_for<P...>{});
}
"""
_BOUNDS = r"(?:__launch_bounds__\([^)]*\)\s*)?"
_KERNEL = re.compile(rf'extern "C" __global__ void {_BOUNDS}(?!__)(\w+)\s*\(')


class EmulatedLauncher:
    """A ``Launcher`` that runs kernels on the CPU; each source is compiled once, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._libraries: dict[str, ctypes.CDLL] = {}
        self.launched: list[str] = []
        self.most_shared_bytes = 99 * 1024  # of a block on sm_86

    def launch(
        self, source: str, kernel: str, grid: Any, threads: int, shared_bytes: int, *arguments: Any
    ) -> None:
        assert shared_bytes <= self.most_shared_bytes
        self.launched.append(kernel)
        given = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        getattr(self._library(source), f"emulate_{kernel}")(*grid, threads, given)

    def _library(self, source: str) -> ctypes.CDLL:
        if source not in self._libraries:
            self._libraries[source] = _compile(source, self._folder)
        return self._libraries[source]


def _compile(source_name: str, folder: Path) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    source = (KERNELS / "weights.cuh").read_text() + (KERNELS / source_name).read_text()
    names = _KERNEL.findall(source) + _expanded_names(source)
    dynamic = re.search(r"extern __shared__ __align__\(16\) (\w+ \w+)\[\]", source)
    shared = f"{dynamic[1]}[1 << 18];\n" if dynamic else ""
    source = source.replace("extern __shared__", "extern").replace("__shared__", "static")
    calls = "".join(
        f'extern "C" void emulate_{name}(int x, int y, int z, int threads, void** given) '
        f"{{ call({name}, {{x, y, z}}, threads, given); }}\n"
        for name in names
    )
    file = folder / f"{source_name}.cpp"
    file.write_text(_PROLOGUE + source + _CALL + shared + calls)
    library = folder / f"{source_name}.so"
    command = [compiler, "-O2", "-std=c++20", "-shared", "-fPIC", "-ffp-contract=off"]
    command += ["-fno-strict-aliasing"]  # as CUDA's compiler
    subprocess.run([*command, "-w", str(file), "-o", str(library)], check=True, timeout=120)
    return ctypes.CDLL(str(library))


def _expanded_names(source: str) -> list[str]:
    """Kernels that a macro of the source makes: ``LINEAR(4, true, w4)`` and the like."""
    prefixes = sorted(
        set(re.findall(r"void __launch_bounds__\([^)]*\)[\s\\]+(\w+)_##name", source))
    )
    made = re.findall(r"^[A-Z]+\([^()]*, (\w+)\)", source, re.MULTILINE)
    return [f"{prefix}_{name}" for prefix in prefixes for name in made]
