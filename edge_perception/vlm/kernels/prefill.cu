// y = W x for many rows of x: a W4A16 product, and what a dense product needs around it.
//
// `many_w4_*` dequantise inside the product, on tensor cores (mma.sync: the same source from Ampere
// on). A warp makes 64 channels of 64 rows, so that a weight that it dequantises serves 64 rows and
// what it reads of x serves 64 channels. All that a step of 128 columns needs comes by asynchronous
// copies, some steps ahead, to shared memory: rows of x, codes as they lie in memory (a lane's 16
// bytes are 32 columns, which need not be neighbours in the product, only the same in x), scales
// and zero points. Two warps share each step's columns and add up at the end: tiles stay small, and
// little is handed from block to block.
//
// All steps of all tiles in a row are cut into equal parts, a block each ("stream-K"), so that every
// multiprocessor has the same to do whatever the matrix. Blocks that share a tile leave their sums
// in memory; the last to come adds them up in the order of the columns: the same bits every time.
//
// It is meant for prompts of some hundred rows. With more, dequantising once
// (`dequantise_*`, as fast as memory is) and the library's dense product are faster: on Hopper that
// uses instructions (wgmma) which no other generation has.
//
// Left out: 8-bit weights and rows by the thousand in here; they take the dense way. `ldmatrix`
// would not save anything: a lane's own 16 bytes of x feed two products, as one of its loads would.

constexpr int kThreads = 256;      // of the kernels around the product
constexpr int kStep = 128;         // columns at a time
constexpr int kPieces = kStep / 8;  // of 16 bytes: a row's step of x
constexpr int kCodePieces = kStep / 32;  // of 16 bytes: a channel's step of codes
constexpr int kWarpRows = 64;
constexpr int kWarpChannels = 64;
constexpr int kRowTiles = kWarpRows / 8;
constexpr int kChannelTiles = kWarpChannels / 16;
constexpr int kOwn = 2 * kChannelTiles;  // channels of a lane: neighbours, so that it writes 16 bytes

// The thread's index, each time anew: what is derived from it takes no registers in between.
__device__ __forceinline__ int own_thread() {
  int thread = threadIdx.x;
  forget(thread);
  return thread;
}

// How a block's warps share its tile: channels, rows, and the columns of a step.
template <int kChannelWarps, int kRowWarps, int kDepthWarps_, int kStages_> struct Shape {
  static constexpr int kDepthWarps = kDepthWarps_, kStages = kStages_;
  static constexpr int kThreads = 32 * kChannelWarps * kRowWarps * kDepthWarps;
  static constexpr int kChannels = kWarpChannels * kChannelWarps, kRows = kWarpRows * kRowWarps;
  static constexpr int kSumTiles = kRowTiles / kDepthWarps;  // of rows, after the step's warps joined
  static constexpr int kSums = kChannelTiles * kSumTiles;    // of four floats, a lane
  // A stage in 16 bytes: x, codes, and a scale and zero point for every 32 columns of a channel.
  static constexpr int kCodes = kRows * kPieces, kCells = kCodes + kChannels * kCodePieces;
  static constexpr int kStage = kCells + kChannels;
  struct Warp { int channel, row, depth; };
  static __device__ __forceinline__ Warp own_warp_place() {
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0, 32);
    return {warp / kRowWarps % kChannelWarps, warp % kRowWarps, warp / (kRowWarps * kChannelWarps)};
  }
};

struct Split {
  Bytes16* parts;  // [blocks, 2, kSums, threads]: sums of blocks that share a tile
  int* arrived;    // [tiles], zero between launches
  int share;       // steps a block, of all tiles' steps in a row
  int reserved;
};

// Steps [begin, end) of a tile.
struct Segment { int tile, begin, end, first_row, first_output; };

// What does not change while a kernel runs.
template <class Shape, bool kIsGateUp, bool kHasSmallGroups> struct Task {
  using S = Shape;
  static constexpr bool kGateUp = kIsGateUp, kSmallGroups = kHasSmallGroups;
  static constexpr int kParts = kGateUp ? 2 : 1;  // gate channels lie before up channels
  static constexpr int kOutputs = S::kChannels / kParts;
  const Matrix& w;
  const Inputs& in;
  const int outputs = w.channels / kParts, steps = (w.columns + kStep - 1) / kStep;
  const int groups = w.columns / w.group_size;
  const int row_tiles = (in.rows + S::kRows - 1) / S::kRows;
  const unsigned per_group = 0xffffffffu / w.group_size + 1;

  __device__ __forceinline__ int total() const {
    return (outputs + kOutputs - 1) / kOutputs * row_tiles * steps;
  }

  // Of ``left`` steps from step ``at`` of all: those of the first tile.
  __device__ __forceinline__ Segment segment(int at, int left) const {
    const int tile = at / steps, begin = at % steps;
    return {tile, begin, min(steps, begin + left), tile % row_tiles * S::kRows,
            tile / row_tiles * kOutputs};
  }

  // Slot j * 8 + r of a warp's 64 holds channel j of the lanes with lane / 4 = r. ``channel``
  // may lie beyond the last one: then ``is_there`` is false.
  struct Channel { int channel; bool is_there; };
  __device__ __forceinline__ Channel channel_at(const Segment& now, int slot) const {
    constexpr int kTogether = kOwn / kParts;
    const int warp = slot / kWarpChannels, r = slot % 8, j = slot % kWarpChannels / 8;
    const int output = now.first_output + (warp * 8 + r) * kTogether + j % kTogether;
    return {output + j / kTogether * outputs, output < outputs};
  }
};

// Where piece ``piece`` of a row stands: eight threads that write a row's pieces, and eight lanes
// that read two rows' (4t + quarter), meet different banks.
__device__ __forceinline__ int place_of(int row, int piece) {
  return row * kPieces + (piece ^ piece / 8 ^ row % 2 * 2);
}

template <class T>
__device__ __forceinline__ void copy_codes(const T& task,
                                           const Segment& now, int step, Bytes16* stage) {
  using S = typename T::S;
  const int thread = own_thread();
  const int column = step * kStep + thread % kCodePieces * 32;
#pragma unroll
  for (int i = 0; i < S::kChannels * kCodePieces / S::kThreads; ++i) {
    const int slot = thread / kCodePieces + i * (S::kThreads / kCodePieces);
    const auto from = task.channel_at(now, slot);
    const bool wanted = from.is_there && column < task.w.columns;
    const unsigned piece = from.channel * (task.w.columns / 32) + column / 32;
    copy_async_with_line(stage + S::kCodes + slot * kCodePieces + thread % kCodePieces,
                         task.w.codes + 16ull * piece, wanted);
  }
}

template <class T>
__device__ __forceinline__ void copy_rows(const T& task,
                                          const Segment& now, int step, Bytes16* stage) {
  using S = typename T::S;
  const int thread = own_thread();
  const int piece = thread % kPieces, column = step * kStep + 8 * piece;
#pragma unroll
  for (int i = 0; i < S::kRows * kPieces / S::kThreads; ++i) {
    const int row = thread / kPieces + i * (S::kThreads / kPieces);
    const bool wanted = now.first_row + row < task.in.rows && column < task.w.columns;
    const unsigned at = (now.first_row + row) * (task.w.columns / 8) + column / 8;
    copy_async(stage + place_of(row, piece), (const Bytes16*)task.in.x + at, wanted);
  }
}

// Scales and zero points of a step on their way to shared memory: a thread's. In large groups one
// serves all 128 columns of a channel.
template <class T> struct Cells {
  using S = typename T::S;
  static constexpr int kGroups = T::kSmallGroups ? 4 : 1;  // of a channel
  static constexpr int kMany = (S::kChannels * kGroups + S::kThreads - 1) / S::kThreads;
  static constexpr bool kAllThreads = S::kChannels * kGroups % S::kThreads == 0;
  unsigned scale[kMany], zero[kMany];
};

template <class T>
__device__ __forceinline__ void load_cells(Cells<T>& cells,
                                           const T& task,
                                           const Segment& now, int step) {
  using S = typename T::S;
  const int thread = own_thread();
#pragma unroll
  for (int i = 0; i < cells.kMany; ++i) {
    const int cell = thread + i * S::kThreads;
    if (!cells.kAllThreads && cell >= S::kChannels * cells.kGroups) break;
    const auto from = task.channel_at(now, cell / cells.kGroups);
    const int column = min(step * kStep + cell % cells.kGroups * 32, task.w.columns - 32);
    const unsigned group = __umulhi(column, task.per_group);
    const unsigned at = from.is_there ? from.channel * task.groups + group : 0;
    cells.scale[i] = task.w.scales[at];
    cells.zero[i] = task.w.zeros[at];
  }
}

template <class T>
__device__ __forceinline__ void put_cells(const Cells<T>& cells, Bytes16* stage) {
  using S = typename T::S;
#pragma unroll
  for (int i = 0; i < cells.kMany; ++i) {
    const int cell = threadIdx.x + i * S::kThreads;
    if (!cells.kAllThreads && cell >= S::kChannels * cells.kGroups) break;
    const unsigned put = cells.scale[i] | cells.zero[i] << 16;
    if (T::kSmallGroups)
      ((unsigned*)(stage + S::kCells))[cell] = put;
    else
      stage[S::kCells + cell] = {{put, put, put, put}};
  }
}

template <int kTiles> struct alignas(16) Sums { float at[kTiles][kChannelTiles][4]; };

// Weights of 16 channels and a quarter of a lane's columns, as two products take them.
struct Weights { unsigned at[2][4]; };

__device__ __forceinline__ Weights dequantised(const unsigned (&words)[2],
                                               const unsigned (&cells)[2]) {
  Weights a;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const unsigned scale = __byte_perm(cells[j], 0, 0x1010);
    const unsigned offset = __byte_perm(cells[j], 0x64, 0x4242);  // 1024 + zero, as pairs are
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned pair = keep_and_set<0x000f000f, 0x64006400>(words[j] >> 4 * i);
      a.at[i / 2][j + i % 2 * 2] = multiply_pairs(subtract_pairs(pair, offset), scale);
    }
  }
  return a;
}

// Half of each lane's columns of a step. Dequantising runs 16 channels ahead of the tensor cores;
// without the barriers the compiler would gather it, and the tensor cores would wait meanwhile.
// ``meanwhile`` is called some times in between, with how many times it was before.
template <class S, class Meanwhile>
__device__ __forceinline__ void multiply_half(Sums<kRowTiles>& sums, const Bytes16* stage, int half,
                                              const Meanwhile& meanwhile) {
  const auto warp = S::own_warp_place();
  const int r = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int own = (warp.channel * kWarpChannels + r) * 4 + t;
  const Bytes8* codes_at = (const Bytes8*)(stage + S::kCodes + own) + half;
  const unsigned* cells_at = (const unsigned*)(stage + S::kCells) + own;
  Bytes8 codes[kOwn];
#pragma unroll
  for (int j = 0; j < kOwn; ++j) codes[j] = codes_at[8 * 4 * 2 * j];
  const auto weights_of = [&](int quarter, int m) {
    const unsigned words[2] = {codes[2 * m].word[quarter], codes[2 * m + 1].word[quarter]};
    const unsigned cells[2] = {cells_at[8 * 4 * 2 * m], cells_at[8 * 4 * (2 * m + 1)]};
    return dequantised(words, cells);
  };
  Weights next = weights_of(0, 0);
#pragma unroll
  for (int quarter = 0; quarter < 2; ++quarter) {
    const Bytes16* x_at = stage + place_of(warp.row * kWarpRows + r, 4 * t + 2 * half + quarter);
    Bytes16 x[kRowTiles];
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) x[n] = x_at[8 * n * kPieces];
#pragma unroll
    for (int m = 0; m < kChannelTiles; ++m) {
      const Weights a = next;
      __syncwarp();
      if (m + 1 < kChannelTiles)
        next = weights_of(quarter, m + 1);
      else if (quarter == 0)
        next = weights_of(1, 0);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
          const unsigned b[2] = {x[n].word[2 * i], x[n].word[2 * i + 1]};
          multiply_tiles(sums.at[n][m], a.at[i], b);
        }
      if (quarter == 0) meanwhile(m);
    }
  }
}

// The first copies of a segment; ``next``: the cells that are to be put next.
template <class T>
__device__ __forceinline__ void start_copies(const T& task, const Segment& now,
                                             Bytes16* stages, Cells<T>& next) {
  using S = typename T::S;
  constexpr int kAhead = S::kStages - 1;
#pragma unroll 1
  for (int i = 0; i < kAhead; ++i)
    if (now.begin + i < now.end) copy_codes(task, now, now.begin + i, stages + i * S::kStage);
  wait_for_last_kernel();
#pragma unroll 1
  for (int i = 0; i < kAhead; ++i) {
    if (now.begin + i < now.end) copy_rows(task, now, now.begin + i, stages + i * S::kStage);
    end_copies();
  }
  Cells<T> cells[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load_cells(cells[i], task, now, now.begin + i);
#pragma unroll
  for (int i = 0; i + 1 < kAhead; ++i) put_cells(cells[i], stages + i * S::kStage);
  next = cells[kAhead - 1];
}

template <class T>
__device__ __forceinline__ void multiply_segment(const T& task, const Segment& now,
                                                 Bytes16* stages, Cells<T>& next,
                                                 Sums<kRowTiles>& sums) {
  using S = typename T::S;
  constexpr int kAhead = S::kStages - 1;
  for (int step = now.begin; step < now.end; ++step) {
    const int i = step - now.begin;
    put_cells(next, stages + (i + kAhead - 1) % S::kStages * S::kStage);
    wait_for_copies<kAhead - 1>();
    __syncthreads();
    const auto copy_next = [&](int part) {  // in parts, so that tensor cores never wait for long
      Bytes16* stage = stages + (i + kAhead) % S::kStages * S::kStage;
      if (step + kAhead < now.end) {
        if (part == 0) load_cells(next, task, now, step + kAhead);
        if (part == 1) copy_codes(task, now, step + kAhead, stage);
        if (part == 2) copy_rows(task, now, step + kAhead, stage);
      }
      if (part == 2) end_copies();
    };
    const Bytes16* stage = stages + i % S::kStages * S::kStage;
    multiply_half<S>(sums, stage, S::own_warp_place().depth, copy_next);
    if (S::kDepthWarps == 1) multiply_half<S>(sums, stage, 1, [](int) {});
  }
  __syncthreads();
}

// Warps that shared steps add up their sums, through shared memory: each keeps a part of the rows.
template <class S>
__device__ __forceinline__ Sums<S::kSumTiles> join_depths(const Sums<kRowTiles>& sums,
                                                          Bytes16* stages) {
  static_assert(S::kDepthWarps <= 2, "two warps exchange halves");
  Sums<S::kSumTiles> kept;
  const bool upper = S::own_warp_place().depth;
  constexpr int kOthers = S::kDepthWarps == 2 ? S::kSumTiles : 0;
#pragma unroll
  for (int n = 0; n < S::kSumTiles; ++n)
#pragma unroll
    for (int m = 0; m < kChannelTiles; ++m) {
      Bytes16 given;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float low = sums.at[n][m][i], high = sums.at[n + kOthers][m][i];
        kept.at[n][m][i] = upper ? high : low;
        ((float*)&given)[i] = upper ? low : high;
      }
      if (kOthers) stages[(n * kChannelTiles + m) * S::kThreads + threadIdx.x] = given;
    }
  if (!kOthers) return kept;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < S::kSums; ++i) {
    const int other = threadIdx.x ^ S::kThreads / 2;
    const float* taken = (const float*)(stages + i * S::kThreads + other);
#pragma unroll
    for (int k = 0; k < 4; ++k) kept.at[i / kChannelTiles][i % kChannelTiles][k] += taken[k];
  }
  __syncthreads();
  return kept;
}

// Adds up the blocks that share a tile; true in the one that holds the whole sums afterwards.
template <class S>
__device__ __forceinline__ bool join_blocks(Sums<S::kSumTiles>& sums, const Segment& now, int steps,
                                            const Split& split) {
  __shared__ int arrivals;
  const int first = now.tile * steps / split.share;
  const int last = ((now.tile + 1) * steps - 1) / split.share;
  if (first == last) return true;
  const auto part_of = [&](int block) {  // a block begins one tile at most, and ends one
    return split.parts + (2ll * block + (block == first)) * S::kSums * S::kThreads + threadIdx.x;
  };
  Bytes16* own = part_of(blockIdx.x);
#pragma unroll
  for (int i = 0; i < S::kSums; ++i) own[i * S::kThreads] = ((const Bytes16*)&sums)[i];
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    arrivals = atomicAdd(&split.arrived[now.tile], 1);
    if (arrivals == last - first) split.arrived[now.tile] = 0;
  }
  __syncthreads();
  if (arrivals != last - first) return false;
  __threadfence();
  sums = {};
  for (int block = first; block <= last; ++block) {
    const Bytes16* part = part_of(block);
#pragma unroll
    for (int i = 0; i < S::kSums; ++i) {
      const Bytes16 more = load_from_others(part + i * S::kThreads);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        sums.at[i / kChannelTiles][i % kChannelTiles][k] += ((const float*)&more)[k];
    }
  }
  return true;
}

// Bias, SiLU(gate) x up, residual; each lane writes neighbouring outputs of its rows.
template <class T>
__device__ __forceinline__ void finish(const T& task, const Segment& now,
                                       const Sums<T::S::kSumTiles>& sums) {
  using S = typename T::S;
  constexpr int kTogether = kOwn / T::kParts;
  const auto warp = S::own_warp_place();
  const int r = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int output = now.first_output + (warp.channel * 8 + r) * kTogether;
  if (output >= task.outputs) return;
  float bias[kOwn] = {};
#pragma unroll
  for (int j = 0; j < kOwn; ++j)
    if (task.w.bias)
      bias[j] = to_float(task.w.bias[output + j % kTogether + j / kTogether * task.outputs]);
#pragma unroll
  for (int n = 0; n < S::kSumTiles; ++n)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int tile = warp.depth * S::kSumTiles + n;
      const int row = now.first_row + warp.row * kWarpRows + 8 * tile + 2 * t + odd;
      if (row >= task.in.rows) continue;
      const long long at = (long long)row * task.outputs + output;
      float total[kOwn];
#pragma unroll
      for (int j = 0; j < kOwn; ++j) total[j] = sums.at[n][j / 2][j % 2 * 2 + odd] + bias[j];
      if (T::kGateUp) {
        half_bits gated[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          gated[j] = to_half(total[j] / (1.0f + __expf(-total[j])) * total[j + 4]);
        *(Bytes8*)(task.in.y + at) = {{gated[0] | (unsigned)gated[1] << 16,
                                       gated[2] | (unsigned)gated[3] << 16}};
      } else {
        Bytes16 values;
#pragma unroll
        for (int j = 0; j < 4; ++j)
          values.word[j] = to_half(total[2 * j]) | (unsigned)to_half(total[2 * j + 1]) << 16;
        if (task.in.residual) {
          const Bytes16 more = *(const Bytes16*)(task.in.residual + at);
#pragma unroll
          for (int j = 0; j < 4; ++j) values.word[j] = add_pairs(values.word[j], more.word[j]);
        }
        *(Bytes16*)(task.in.y + at) = values;
      }
    }
}

extern __shared__ __align__(16) Bytes16 staged[];

template <class T>
__device__ __forceinline__ void multiply_many(const Matrix& w, const Inputs& in,
                                              const Split& split) {
  using S = typename T::S;
  start_next_kernel();
  const T task{w, in};
  for (int done = 0; done < split.share;) {
    int at = blockIdx.x * split.share + done, left = min(split.share - done, task.total() - at);
    if (left <= 0) return;
    Sums<kRowTiles> sums;
    {
      const Segment now = task.segment(at, left);
      Cells<T> next;
      start_copies(task, now, staged, next);
      sums = {};
      multiply_segment(task, now, staged, next, sums);
    }
    forget(done);
    at = blockIdx.x * split.share + done, left = min(split.share - done, task.total() - at);
    const Segment now = task.segment(at, left);
    Sums<S::kSumTiles> joined = join_depths<S>(sums, staged);
    if (join_blocks<S>(joined, now, task.steps, split)) finish(task, now, joined);
    done += now.end - now.begin;
  }
}

#define MANY(channel_warps, row_warps, depth_warps, stages, gate_up, small, name)                  \
  extern "C" __global__ void __launch_bounds__(32 * channel_warps * row_warps * depth_warps, 1) \
      many_##name(Matrix w, Inputs in, Split split) {                                            \
    using Block = Shape<channel_warps, row_warps, depth_warps, stages>;                          \
    multiply_many<Task<Block, gate_up, small>>(w, in, split);                                          \
  }

MANY(2, 2, 2, 3, false, false, w4_128x128_3)
MANY(2, 2, 2, 3, false, true, w4_128x128_3_small)
MANY(2, 2, 2, 3, true, false, gate_up_w4_128x128_3)
MANY(2, 2, 2, 3, true, true, gate_up_w4_128x128_3_small)
MANY(2, 2, 2, 2, false, false, w4_128x128_2)
MANY(2, 2, 2, 2, false, true, w4_128x128_2_small)
MANY(2, 2, 2, 2, true, false, gate_up_w4_128x128_2)
MANY(2, 2, 2, 2, true, true, gate_up_w4_128x128_2_small)
MANY(4, 1, 2, 4, false, false, w4_256x64_4)
MANY(4, 1, 2, 4, false, true, w4_256x64_4_small)
MANY(4, 1, 2, 4, true, false, gate_up_w4_256x64_4)
MANY(4, 1, 2, 4, true, true, gate_up_w4_256x64_4_small)
MANY(4, 1, 2, 2, false, false, w4_256x64_2)
MANY(4, 1, 2, 2, false, true, w4_256x64_2_small)
MANY(4, 1, 2, 2, true, false, gate_up_w4_256x64_2)
MANY(4, 1, 2, 2, true, true, gate_up_w4_256x64_2_small)

// Eight neighbouring weights as halves, with the rounding of dequantising in fp16.
template <int kBits>
__device__ __forceinline__ Bytes16 dequantised_octet(const Bytes16& codes, unsigned zero,
                                                     half_bits scale) {
  Bytes16 weights;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned code = subtract_pairs(pair_at<kBits>(codes, i), offset_at<kBits>(zero, i, 0));
    weights.word[i] = multiply_pairs(code, pair_of(scale));
  }
  return weights;
}

constexpr int kTogether = 4;  // octets a thread has on their way

// Grid: (columns / 8 / kThreads / kTogether, channels); ``out``: [channels, columns].
template <int kBits>
__device__ __forceinline__ void dequantise(const Matrix& w, half_bits* out) {
  start_next_kernel();
  wait_for_last_kernel();  // what reads ``out`` may still run
  const long long channel = blockIdx.y;
  const int octets = w.columns / 8, groups = w.columns / w.group_size;
  const unsigned per_group = 0xffffffffu / w.group_size + 1;
  const int first = blockIdx.x * kThreads * kTogether + threadIdx.x;
  Bytes16 codes[kTogether] = {};
#pragma unroll
  for (int n = 0; n < kTogether; ++n) {
    const int octet = first + n * kThreads;
    if (octet >= octets) break;
    const unsigned* at = (const unsigned*)w.codes + (channel * octets + octet) * (kBits / 4);
    codes[n].word[0] = at[0];
    if (kBits == 8) codes[n].word[1] = at[1];
  }
#pragma unroll
  for (int n = 0; n < kTogether; ++n) {
    const int octet = first + n * kThreads;
    if (octet >= octets) break;
    const long long group = channel * groups + __umulhi(8 * octet, per_group);
    *(Bytes16*)(out + channel * w.columns + 8 * octet) =
        dequantised_octet<kBits>(codes[n], w.zeros[group], w.scales[group]);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) dequantise_w4(Matrix w, half_bits* out) {
  dequantise<4>(w, out);
}

extern "C" __global__ void __launch_bounds__(kThreads) dequantise_w8(Matrix w, half_bits* out) {
  dequantise<8>(w, out);
}

// SiLU(gate) x up of rows [gate, up]. Grid: (outputs / 8 / kThreads, rows).
extern "C" __global__ void __launch_bounds__(kThreads)
gate(const half_bits* gate_up, int outputs, half_bits* out) {
  start_next_kernel();
  wait_for_last_kernel();
  const int octet = blockIdx.x * kThreads + threadIdx.x;
  if (8 * octet >= outputs) return;
  const half_bits* at = gate_up + (long long)blockIdx.y * 2 * outputs + 8 * octet;
  const Bytes16 gates = *(const Bytes16*)at, ups = *(const Bytes16*)(at + outputs);
  Bytes16 result = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float g = half_at(gates, i);
    const half_bits gated = to_half(g / (1.0f + __expf(-g)) * half_at(ups, i));
    result.word[i / 2] |= (unsigned)gated << 16 * (i % 2);
  }
  *(Bytes16*)(out + (long long)blockIdx.y * outputs + 8 * octet) = result;
}
