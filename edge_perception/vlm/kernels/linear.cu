// y = W x for 1 to 8 rows of x, W of 4, 8 or 16 bits, fused with what stands before and after it.
//
// Decoding reads each weight once and multiplies it once for every row: bytes decide, and what is
// computed must hide behind them. So the product is done by the tensor cores although one row
// fills an eighth of them: a weight then costs half an instruction to unpack, half to subtract its
// zero point, and next to nothing to multiply, where a dot product on the ordinary cores would
// spend a conversion and an FMA more. Two things come for free: sums are in fp32, and the columns
// of a tensor-core product do not see each other, so a row's bits are the same alone as among
// seven others: what verifying drafts relies on.
//
// A block makes 16 channels of y; its 8 warps split K among them (128 neighbouring k at a time,
// in turns) and add up in a fixed order. Within a tile of 128, lane t of four takes 32 neighbouring
// k of a row: one 16-byte load of 4-bit codes. The product's own order of k differs from that of
// memory, in W and x alike, and a sum does not mind. All loads of several tiles are issued before
// the first is used.
//
// Where the group is a multiple of 128, codes less zero point are whole numbers, exact in fp16;
// the scale multiplies a tile's sum in fp32. Smaller groups scale each weight in fp16 instead
// (one rounding a weight, as dequantising to fp16 has).
//
// Left out: split-K across blocks, which needs a second pass or atomics (not of one order): a
// matrix of few channels leaves part of the chip idle; 576 channels make 36 blocks.

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kChannels = 16;  // of y, a block
constexpr int kRows = 8;       // of x, at most
constexpr int kTile = 128;     // k, a warp at a time
constexpr int kLaneColumns = 32;

// Mirrored field by field by whoever launches. Codes as in docs/adr/0005-packed-layout.md, or fp16.
struct Matrix {
  const uint8* codes;
  const half_bits* scales;
  const uint8* zeros;
  const half_bits* bias;  // or null
  int channels, columns, group_size, reserved;
};

struct Inputs {
  const half_bits* x;         // [rows, columns]
  const half_bits* norm;      // RMSNorm's weight [columns], or null: x as it is
  const half_bits* residual;  // [rows, channels], added to y; or null
  half_bits* y;               // [rows, channels]; of gate and up: [rows, channels / 2]
  float norm_eps;
  int rows;
};

template <int kBits> struct Raw { Bytes16 part[kBits / 4]; };  // 32 codes of a row

template <int kBits>
__device__ __forceinline__ Raw<kBits> load_codes(const Matrix& w, int channel, int column) {
  Raw<kBits> raw = {};
  if (column < w.columns) {
    const long long code = (long long)channel * w.columns + column;
#pragma unroll
    for (int i = 0; i < kBits / 4; ++i)
      raw.part[i] = load_once(w.codes + code * kBits / 8 + 16 * i);
  }
  return raw;
}

// Codes 2i and 2i + 1 of 32 as a half2; 4 and 8 bits come as 1024 + code, which is exact.
template <int kBits> __device__ __forceinline__ unsigned pair_at(const Raw<kBits>& raw, int i) {
  if (kBits == 4) return raw.part[0].word[i / 4] >> 4 * (i % 4) & 0x000f000fu | 0x64006400u;
  if (kBits == 8) {
    const unsigned word = raw.part[i / 8].word[i % 8 / 2];
    return __byte_perm(word, 0x64646464u, i % 2 ? 0x4342 : 0x4140);
  }
  return raw.part[i / 4].word[i % 4];
}

// A channel's zero point (plus 1024, as a half2) and scale for the group of ``column``.
struct Group { unsigned zero; half_bits scale; };

template <int kBits>
__device__ __forceinline__ Group load_group(const Matrix& w, int channel, int column) {
  if (kBits == 16 || column >= w.columns) return {0x64006400u, 0};
  const int groups = w.columns / w.group_size;
  const long long at = (long long)channel * groups + column / w.group_size;
  return {pair_of((half_bits)(0x6400 + w.zeros[at])), w.scales[at]};
}

template <int kBits, bool kExact>
__device__ __forceinline__ unsigned weight_pair(const Raw<kBits>& raw, const Group& group, int i) {
  const unsigned pair = pair_at<kBits>(raw, i);
  if (kBits == 16) return pair;
  const unsigned offset = subtract_pairs(pair, group.zero);
  return kExact ? offset : multiply_pairs(offset, pair_of(group.scale));
}

// 16 channels from ``first``, 128 columns from the lane's own on, into a warp's sums.
template <int kBits, bool kExact>
__device__ __forceinline__ void add_tile(float (&sums)[4], const Raw<kBits> (&raw)[2],
                                         const Group (&group)[2], const Bytes16 (&x)[4]) {
  float tile[4] = {};
#pragma unroll
  for (int i = 0; i < kLaneColumns / 4; ++i) {
    const unsigned a[4] = {
        weight_pair<kBits, kExact>(raw[0], group[0], 2 * i),
        weight_pair<kBits, kExact>(raw[1], group[1], 2 * i),
        weight_pair<kBits, kExact>(raw[0], group[0], 2 * i + 1),
        weight_pair<kBits, kExact>(raw[1], group[1], 2 * i + 1)};
    const unsigned b[2] = {x[i / 2].word[i % 2 * 2], x[i / 2].word[i % 2 * 2 + 1]};
    multiply_tiles(tile, a, b);
  }
  const bool scaled = kExact && kBits != 16;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    sums[i] += scaled ? to_float(group[i / 2].scale) * tile[i] : tile[i];
}

// RMSNorm of one row into ``normed``, by a whole block, rounded where the oracle rounds.
__device__ __forceinline__ void norm_row(const half_bits* x, const half_bits* weight, float eps,
                                         int columns, half_bits* normed) {
  __shared__ float warp_sums[kWarps];
  float squares = 0.0f;
  for (int k = threadIdx.x; k < columns; k += kThreads) squares += to_float(x[k]) * to_float(x[k]);
  squares = sum_over_warp(squares);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = squares;
  __syncthreads();
  float total = 0.0f;
  for (int i = 0; i < kWarps; ++i) total += warp_sums[i];
  const float factor = rsqrtf(total / columns + eps);
  for (int k = threadIdx.x; k < columns; k += kThreads)
    normed[k] = to_half(to_float(to_half(to_float(x[k]) * factor)) * to_float(weight[k]));
  __syncthreads();
}

// Grid: (rows). For rows too many or too wide to be normed in shared memory: the same bits.
extern "C" __global__ void __launch_bounds__(kThreads)
normalise(const half_bits* x, const half_bits* weight, float eps, int columns, half_bits* normed) {
  const long long row = (long long)blockIdx.x * columns;
  norm_row(x + row, weight, eps, columns, normed + row);
}

__device__ __forceinline__ float with_bias(const Matrix& w, int channel, float sum) {
  return w.bias ? sum + to_float(w.bias[channel]) : sum;
}

template <int kBits, bool kExact, bool kGateUp>
__device__ __forceinline__ void multiply(const Matrix& w, const Inputs& in) {
  constexpr int kParts = kGateUp ? 2 : 1;     // gate rows lie before up rows
  constexpr int kAhead = 16 / kBits > kParts ? 16 / kBits / kParts : 1;  // tiles loaded together
  extern __shared__ __align__(16) half_bits normed[];
  __shared__ float shares[kWarps][kParts][kChannels][kRows];

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = lane / 4, own = lane % 4 * kLaneColumns;
  const int outputs = w.channels / kParts, first = blockIdx.x * kChannels;
  for (int i = 0; in.norm && i < in.rows; ++i)
    norm_row(in.x + (long long)i * w.columns, in.norm, in.norm_eps, w.columns,
             normed + (long long)i * w.columns);
  const half_bits* x = in.norm ? normed : in.x;

  float sums[kParts][4] = {};
  for (int start = warp * kTile; start < w.columns; start += kWarps * kAhead * kTile) {
    Raw<kBits> raw[kAhead][kParts][2];
    Group group[kAhead][kParts][2];
#pragma unroll
    for (int n = 0; n < kAhead; ++n)
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int channel = min(first + row + 8 * half, outputs - 1) + part * outputs;
          const int column = start + n * kWarps * kTile + own;
          raw[n][part][half] = load_codes<kBits>(w, channel, column);
          group[n][part][half] = load_group<kBits>(w, channel, column);
        }
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const int column = start + n * kWarps * kTile + own;
      Bytes16 values[4] = {};
      if (row < in.rows && column < w.columns)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          values[i] = *(const Bytes16*)(x + (long long)row * w.columns + column + 8 * i);
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        add_tile<kBits, kExact>(sums[part], raw[n][part], group[n][part], values);
    }
  }

  for (int part = 0; part < kParts; ++part)
    for (int i = 0; i < 4; ++i)
      shares[warp][part][row + i / 2 * 8][lane % 4 * 2 + i % 2] = sums[part][i];
  __syncthreads();
  if (threadIdx.x >= kChannels * kRows) return;
  const int channel = threadIdx.x % kChannels, out_row = threadIdx.x / kChannels;
  if (first + channel >= outputs || out_row >= in.rows) return;
  float total[kParts] = {};
  for (int part = 0; part < kParts; ++part) {
    for (int i = 0; i < kWarps; ++i) total[part] += shares[i][part][channel][out_row];
    total[part] = with_bias(w, first + channel + part * outputs, total[part]);
  }
  const long long at = (long long)out_row * outputs + first + channel;
  float result = total[0];
  if (kGateUp) result = total[0] / (1.0f + expf(-total[0])) * total[kParts - 1];
  if (in.residual) result += to_float(in.residual[at]);
  in.y[at] = to_half(result);
}

#define LINEAR(bits, exact, name)                                                              \
  extern "C" __global__ void __launch_bounds__(kThreads) linear_##name(Matrix w, Inputs in) {  \
    multiply<bits, exact, false>(w, in);                                                       \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(kThreads) gate_up_##name(Matrix w, Inputs in) { \
    multiply<bits, exact, true>(w, in);                                                        \
  }

LINEAR(4, true, w4)           // groups of 128 and their multiples
LINEAR(4, false, w4_small)    // groups of 32, 64, 96
LINEAR(8, true, w8)
LINEAR(8, false, w8_small)
LINEAR(16, true, f16)
