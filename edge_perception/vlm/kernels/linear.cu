// y = W x for 1 to 8 rows of x, W of 4, 8 or 16 bits, fused with what stands before and after it.
//
// Decoding reads each weight once and multiplies it once for every row: bytes decide, and what is
// computed must hide behind them. So the product is done by the tensor cores although one row
// fills an eighth of them: it takes an instruction and a quarter to make two weights of 4 bits from
// their codes, and next to nothing to multiply them. Two things come for free: sums are in fp32, and
// the columns of a tensor-core product do not see each other, so a row's bits are the same alone
// as among seven others: what verifying drafts relies on.
//
// A block makes 16, 32 or 64 channels of y: 8, 4 or 2 of its 8 warps split K among them, a tile at a
// time, in turns, and add up in a fixed order. The more channels, the longer a block streams and
// the less its beginning and end weigh; how many is chosen by the sizes of matrix and chip alone.
//
// Of a tile a lane holds 16 bytes of codes of two channels: 32 neighbouring k of 4 bits. The
// product's own order of k differs from that of memory, in W and x alike, and a sum does not mind.
// Each warp keeps four tiles on their way. The first ones are asked for before the kernel waits for
// its inputs: they come while the kernel before it ends.
//
// Codes become fp16 by setting the exponent above them: 1024 + code, or 64 + code where the code
// stands four bits higher. Taking that offset and the zero point off each weight would cost more
// than the rest, so a second product with the same x takes it off the sums: both are exact in fp16,
// and sums are in fp32. The scale multiplies a tile's sum. That needs a group to hold whole tiles;
// smaller groups are subtracted and scaled weight by weight, in fp16 (one rounding, as
// dequantising to fp16 has).
//
// Left out: split-K across blocks, which needs a second pass or atomics (not of one order): a
// matrix of few channels leaves part of the chip idle; 576 channels make 36 blocks.

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kChannels = 16;  // of y, a block
constexpr int kRows = 8;       // of x, at most
constexpr int kAhead = 4;      // tiles a warp has on their way
constexpr int kHeld = 2;       // octets of the norm's weight that a thread holds: 4096 columns
constexpr int kPadding = 8;    // halves between normed rows: they lie in different banks

// 16 channels by a tile's columns, into a warp's sums; two chains of products, to wait less.
template <int kBits, bool kWholeTiles>
__device__ __forceinline__ void add_tile(float (&sums)[4], const Tile& tile,
                                         const Bytes16 (&x)[kLaneColumns<kBits> / 8]) {
  constexpr bool kOffset = kWholeTiles && kBits != 16;
  constexpr unsigned kMinus = 0x80008000u;
  float chain[2][4] = {};
  const unsigned offset[4] = {
      offset_at<kBits>(tile.zero[0], 0, kMinus), offset_at<kBits>(tile.zero[1], 0, kMinus),
      offset_at<kBits>(tile.zero[0], 1, kMinus), offset_at<kBits>(tile.zero[1], 1, kMinus)};
#pragma unroll
  for (int i = 0; i < kLaneColumns<kBits> / 4; ++i) {
    const unsigned a[4] = {weight_pair<kBits, kWholeTiles>(tile, 0, 2 * i),
                           weight_pair<kBits, kWholeTiles>(tile, 1, 2 * i),
                           weight_pair<kBits, kWholeTiles>(tile, 0, 2 * i + 1),
                           weight_pair<kBits, kWholeTiles>(tile, 1, 2 * i + 1)};
    const unsigned b[2] = {x[i / 2].word[i % 2 * 2], x[i / 2].word[i % 2 * 2 + 1]};
    multiply_tiles(chain[i % 2], a, b);
    if (kOffset) multiply_tiles(chain[i % 2], offset, b);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float sum = chain[0][i] + chain[1][i];
    sums[i] += kOffset ? to_float(tile.scale[i / 2]) * sum : sum;
  }
}

// The norm's weight for the first columns that a thread norms; no kernel writes it.
struct Gains { Bytes16 held[kHeld]; };

__device__ __forceinline__ Gains load_gains(const half_bits* weight, int columns) {
  Gains gains = {};
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int k = 8 * (threadIdx.x + i * kThreads);
    if (k < columns) gains.held[i] = *(const Bytes16*)(weight + k);
  }
  return gains;
}

// x * factor * gain, rounded where the oracle rounds.
__device__ __forceinline__ Bytes16 normed_octet(const Bytes16& x, float factor,
                                                const Bytes16& gain) {
  Bytes16 out = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float scaled = to_float(to_half(half_at(x, i) * factor));
    out.word[i / 2] |= (unsigned)to_half(scaled * half_at(gain, i)) << 16 * (i % 2);
  }
  return out;
}

// RMSNorm of rows by a whole block; a row's sum has one order.
__device__ __forceinline__ void norm_rows(const half_bits* x, const half_bits* weight,
                                          const Gains& gains, float eps, int rows, int columns,
                                          half_bits* normed, int stride) {
  __shared__ float squares_of[kRows][kWarps];
  for (int row = 0; row < rows; ++row) {
    float squares = 0.0f;
    for (int k = 8 * threadIdx.x; k < columns; k += 8 * kThreads) {
      const Bytes16 values = *(const Bytes16*)(x + (long long)row * columns + k);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += half_at(values, i) * half_at(values, i);
    }
    squares = sum_over_warp(squares);
    if (threadIdx.x % 32 == 0) squares_of[row][threadIdx.x / 32] = squares;
  }
  __syncthreads();
  for (int row = 0; row < rows; ++row) {
    float total = 0.0f;
    for (int i = 0; i < kWarps; ++i) total += squares_of[row][i];
    const float factor = rsqrtf(total / columns + eps);
    const half_bits* from = x + (long long)row * columns;
    half_bits* to = normed + (long long)row * stride;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int k = 8 * (threadIdx.x + i * kThreads);
      if (k < columns)
        *(Bytes16*)(to + k) = normed_octet(*(const Bytes16*)(from + k), factor, gains.held[i]);
    }
    for (int k = 8 * (threadIdx.x + kHeld * kThreads); k < columns; k += 8 * kThreads)
      *(Bytes16*)(to + k) = normed_octet(*(const Bytes16*)(from + k), factor,
                                         *(const Bytes16*)(weight + k));
  }
  __syncthreads();
}

// Grid: (rows). For rows too many or too wide to be normed in shared memory: the same bits.
extern "C" __global__ void __launch_bounds__(kThreads)
normalise(const half_bits* x, const half_bits* weight, float eps, int columns, half_bits* normed) {
  start_next_kernel();
  const Gains gains = load_gains(weight, columns);
  wait_for_last_kernel();
  const long long row = (long long)blockIdx.x * columns;
  norm_rows(x + row, weight, gains, eps, 1, columns, normed + row, columns);
}

// kSplit: warps that share 16 channels.
template <int kBits, bool kWholeTiles, bool kSigned, bool kGateUp, int kSplit>
__device__ __forceinline__ void multiply(const Matrix& w, const Inputs& in) {
  constexpr int kParts = kGateUp ? 2 : 1;  // gate rows lie before up rows
  constexpr int kTurns = kAhead / kParts;
  constexpr int kTurn = kSplit * kTile<kBits>;
  constexpr int kOutputs = kWarps / kSplit * kChannels;  // a block
  constexpr int kItems = (kOutputs * kRows + kThreads - 1) / kThreads;  // of them, a thread
  extern __shared__ __align__(16) half_bits normed[];
  __shared__ float shares[kSplit][kParts][kOutputs][kRows];

  start_next_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = lane / 4, own = lane % 4 * kLaneColumns<kBits>;
  const int outputs = w.channels / kParts, first = blockIdx.x * kOutputs;
  const int in_block = warp / kSplit * kChannels;  // the warp's first channel of the block's
  const int begin = warp % kSplit * kTile<kBits>;
  const unsigned per_group = kBits == 16 ? 0 : 0xffffffffu / w.group_size + 1;
  Channels from[kParts];
  Tile tiles[kTurns][kParts] = {};
#pragma unroll
  for (int part = 0; part < kParts; ++part)
    from[part] = find_channels<kBits>(w, first + in_block + row + part * outputs,
                                      (part + 1) * outputs - 1);
#pragma unroll
  for (int n = 0; n < kTurns; ++n)
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      load_tile<kBits, kSigned>(tiles[n][part], w, from[part], begin + n * kTurn + own, per_group);
  Gains gains = {};
  if (in.norm) gains = load_gains(in.norm, w.columns);

  wait_for_last_kernel();
  if (in.norm)
    norm_rows(in.x, in.norm, gains, in.norm_eps, in.rows, w.columns, normed, w.columns + kPadding);
  // Lanes of rows that are not there compute the last row again: nobody sees it.
  const int of = min(row, in.rows - 1);
  const half_bits* x = in.norm ? normed + of * (w.columns + kPadding) : in.x + of * w.columns;
  float residual[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int item = threadIdx.x + i * kThreads, output = first + item % kOutputs;
    const int out_row = item / kOutputs;
    const bool wanted = in.residual && out_row < in.rows && output < outputs;
    residual[i] = wanted ? to_float(in.residual[(long long)out_row * outputs + output]) : 0.0f;
  }

  float sums[kParts][4] = {};
  for (int start = begin; start < w.columns; start += kTurns * kTurn) {
#pragma unroll
    for (int n = 0; n < kTurns; ++n) {
      const int column = start + n * kTurn + own;
      if (column - own >= w.columns) break;
      Bytes16 values[kLaneColumns<kBits> / 8];
#pragma unroll
      for (int i = 0; i < kLaneColumns<kBits> / 8; ++i)
        values[i] = column < w.columns ? *(const Bytes16*)(x + column + 8 * i) : Bytes16{};
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        Tile tile = tiles[n][part];
        if (kSigned)
          for (int half = 0; half < 2; ++half)
            for (unsigned& word : tile.codes[half].word) word ^= 0x80808080u;  // code + 128
        add_tile<kBits, kWholeTiles>(sums[part], tile, values);
        load_tile<kBits, kSigned>(tiles[n][part], w, from[part], column + kTurns * kTurn,
                                  per_group);
      }
    }
  }

  for (int part = 0; part < kParts; ++part)
    for (int i = 0; i < 4; ++i)
      shares[warp % kSplit][part][in_block + row + i / 2 * 8][lane % 4 * 2 + i % 2] = sums[part][i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int item = threadIdx.x + i * kThreads, channel = item % kOutputs;
    const int out_row = item / kOutputs, output = first + channel;
    if (out_row >= in.rows || output >= outputs) break;
    float total[kParts] = {};
    for (int part = 0; part < kParts; ++part) {
      for (int j = 0; j < kSplit; ++j) total[part] += shares[j][part][channel][out_row];
      if (kSigned) total[part] *= in.row_scales[out_row];
      if (w.bias) total[part] += to_float(w.bias[output + part * outputs]);
    }
    float result = total[0];
    if (kGateUp) result = total[0] / (1.0f + expf(-total[0])) * total[kParts - 1];
    in.y[(long long)out_row * outputs + output] = to_half(result + residual[i]);
  }
}

#define SPLIT(bits, whole_tiles, is_signed, split, name)                                       \
  extern "C" __global__ void __launch_bounds__(kThreads) linear_##name(Matrix w, Inputs in) {  \
    multiply<bits, whole_tiles, is_signed, false, split>(w, in);                               \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(kThreads) gate_up_##name(Matrix w, Inputs in) { \
    multiply<bits, whole_tiles, is_signed, true, split>(w, in);                                \
  }

SPLIT(4, true, false, 8, w4_8)  // groups of 128 and their multiples
SPLIT(4, true, false, 4, w4_4)
SPLIT(4, true, false, 2, w4_2)
SPLIT(4, false, false, 8, w4_small_8)  // groups of 32, 64, 96
SPLIT(4, false, false, 4, w4_small_4)
SPLIT(4, false, false, 2, w4_small_2)
SPLIT(8, true, false, 8, w8_8)  // groups of 64 and their multiples
SPLIT(8, true, false, 4, w8_4)
SPLIT(8, true, false, 2, w8_2)
SPLIT(8, false, false, 8, w8_small_8)
SPLIT(8, false, false, 4, w8_small_4)
SPLIT(8, false, false, 2, w8_small_2)
SPLIT(8, true, true, 8, i8_8)  // W8A8: x holds whole numbers, one scale a channel and a row
SPLIT(8, true, true, 4, i8_4)
SPLIT(8, true, true, 2, i8_2)
SPLIT(16, true, false, 8, f16_8)
SPLIT(16, true, false, 4, f16_4)
SPLIT(16, true, false, 2, f16_2)
