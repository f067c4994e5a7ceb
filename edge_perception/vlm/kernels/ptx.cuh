// The few instructions that the kernels need by name, so that no header of the toolkit has to be
// found when they are compiled on the machine. A half is the 16 bits of one, a half2 an unsigned
// with the first half in its low bits.

typedef unsigned short half_bits;
typedef unsigned char uint8;

struct alignas(8) Bytes8 { unsigned word[2]; };
struct alignas(16) Bytes16 { unsigned word[4]; };

__device__ __forceinline__ float to_float(half_bits value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
  return wide;
}

__device__ __forceinline__ half_bits to_half(float value) {
  half_bits half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
}

__device__ __forceinline__ unsigned pair_of(half_bits value) {
  return value | (unsigned)value << 16;
}

__device__ __forceinline__ unsigned subtract_pairs(unsigned a, unsigned b) {
  unsigned difference;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
  return difference;
}

__device__ __forceinline__ unsigned add_pairs(unsigned a, unsigned b) {
  unsigned sum;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  return sum;
}

__device__ __forceinline__ unsigned multiply_pairs(unsigned a, unsigned b) {
  unsigned product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// a & mask | bits in one instruction; written in C++ it takes two.
template <unsigned kMask, unsigned kBits>
__device__ __forceinline__ unsigned keep_and_set(unsigned a) {
  unsigned result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "n"(kMask), "n"(kBits));
  return result;
}

// Bytes read once: they take no room in the first-level cache from what is read again.
__device__ __forceinline__ Bytes16 load_once(const void* at) {
  Bytes16 b;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(b.word[0]), "=r"(b.word[1]), "=r"(b.word[2]), "=r"(b.word[3]) : "l"(at));
  return b;
}

// The same, where a neighbour soon asks for the rest of the 128 bytes around it: the second-level
// cache brings them at once.
__device__ __forceinline__ Bytes16 load_once_with_line(const void* at) {
  Bytes16 b;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(b.word[0]), "=r"(b.word[1]), "=r"(b.word[2]), "=r"(b.word[3]) : "l"(at));
  return b;
}

// What another block wrote: the second-level cache has it, the first-level one may not.
__device__ __forceinline__ Bytes16 load_from_others(const void* at) {
  Bytes16 b;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(b.word[0]), "=r"(b.word[1]), "=r"(b.word[2]), "=r"(b.word[3]) : "l"(at)
               : "memory");
  return b;
}

// 16 bytes from global to shared memory behind the thread's back, or zeros. Copies between two
// ``end_copies`` are a group; ``wait_for_copies<n>`` waits for all but the n youngest groups.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool wanted) {
  const unsigned shared = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}

// The same, where the rest of the 128 bytes around it is soon asked for, too.
__device__ __forceinline__ void copy_async_with_line(void* to, const void* from, bool wanted) {
  const unsigned shared = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :: "r"(shared), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}

__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kLeft> __device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" :: "n"(kLeft) : "memory");
}

// d[16 x 8] += a[16 x 16] b[16 x 8], fp16 with fp32 sums, over a warp. With row = lane / 4 and
// t = lane % 4, a lane holds a[row][2t, 2t+1], a[row + 8][..], a[row][2t+8, 2t+9], a[row + 8][..];
// b[2t, 2t+1][row], b[2t+8, 2t+9][row]; and d[row][2t, 2t+1], d[row + 8][2t, 2t+1].
__device__ __forceinline__ void multiply_tiles(float (&d)[4], const unsigned (&a)[4],
                                               const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// From Hopper on a kernel may be started while the last one still runs, so that its start, and what
// it reads that no kernel writes, cost no time. Every kernel here calls both, at its beginning: it
// lets the next one start, and waits until the last one's results are there.
__device__ __forceinline__ void start_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void wait_for_last_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ float sum_over_warp(float value) {
  for (int distance = 16; distance; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// Asks for bytes to be brought to the second-level cache, from Hopper on; nobody waits for them.
// Address and size are multiples of 16.
__device__ __forceinline__ void fetch(const void* at, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(at), "r"(bytes) : "memory");
#endif
}

// The compiler forgets where a value came from: what is derived from it is computed anew, and takes
// no registers in the meantime.
__device__ __forceinline__ void forget(int& value) { asm volatile("" : "+r"(value)); }
