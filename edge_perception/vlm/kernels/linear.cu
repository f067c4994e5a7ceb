// y = W x for 1 to 8 rows of x, W of 4, 8 or 16 bits, fused with what stands before and after it.
//
// Decoding reads each weight once and multiplies it once for every row: bytes decide, and what is
// computed must hide behind them. So the product is done by the tensor cores although one row
// fills an eighth of them: it takes an instruction and a quarter to make two weights of 4 bits from
// their codes, and next to nothing to multiply them. Two things come for free: sums are in fp32, and
// the columns of a tensor-core product do not see each other, so a row's bits are the same alone
// as among seven others: what verifying drafts relies on.
//
// All blocks run at once, and each takes an equal part of y: where blocks came in waves, the last
// one left half of the chip idle. A block has 1, 2 or 4 teams of warps; a team takes 16 channels a
// step (or 8 of gates and their 8 ups), and its warps share K, a tile at a time, in turns, and add up
// in a fixed order. Memory does not stop between steps: the next one's first tiles are on their way.
//
// Of a tile a lane holds 16 bytes of codes of two channels: 32 neighbouring k of 4 bits. The
// product's own order of k differs from that of memory, in W and x alike, and a sum does not mind.
// The first tiles are asked for before the kernel waits for its inputs: they come while the kernel
// before it ends. And when the last ones are asked for, what the next product will read first is
// called into the second-level cache, so that the memory works through the end of this kernel and
// the start of the next.
//
// Codes become fp16 by setting the exponent above them: 1024 + code, or 64 + code where the code
// stands four bits higher. Taking that offset and the zero point off each weight would cost more
// than the rest, so a second product with the same x takes it off the sums: both are exact in fp16,
// and sums are in fp32. The scale multiplies a tile's sum. That needs a group to hold whole tiles;
// smaller groups are subtracted and scaled weight by weight, in fp16 (one rounding, as
// dequantising to fp16 has).
//
// Left out: split-K across blocks, which needs a second pass or atomics (not of one order). The
// price: where a team has few channels, tiles of 16 are partly empty: that costs instructions, not
// bytes.

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kChannels = 16;  // of W, a warp at a time
constexpr int kRows = 8;       // of x, at most
constexpr int kBlocks = 2;     // of a multiprocessor, at least
constexpr int kAhead = 4;      // tiles a warp has on their way: a round
constexpr int kHeld = 2;       // octets of x, and of the norm's weight, that a thread holds
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
    const half_bits* from = x + (long long)row * columns;
    Bytes16 held[kHeld] = {};
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int k = 8 * (threadIdx.x + i * kThreads);
      if (k < columns) held[i] = *(const Bytes16*)(from + k);
    }
#pragma unroll
    for (int i = 0; i < 8 * kHeld; ++i) {
      const float value = half_at(held[i / 8], i % 8);
      squares += value * value;
    }
    for (int k = 8 * (threadIdx.x + kHeld * kThreads); k < columns; k += 8 * kThreads) {
      const Bytes16 values = *(const Bytes16*)(from + k);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += half_at(values, i) * half_at(values, i);
    }
    squares = sum_over_warp(squares);
    if (threadIdx.x % 32 == 0) squares_of[row][threadIdx.x / 32] = squares;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < kWarps; ++i) total += squares_of[row][i];
    const float factor = rsqrtf(total / columns + eps);
    half_bits* to = normed + (long long)row * stride;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int k = 8 * (threadIdx.x + i * kThreads);
      if (k < columns) *(Bytes16*)(to + k) = normed_octet(held[i], factor, gains.held[i]);
    }
    for (int k = 8 * (threadIdx.x + kHeld * kThreads); k < columns; k += 8 * kThreads)
      *(Bytes16*)(to + k) = normed_octet(*(const Bytes16*)(from + k), factor,
                                         *(const Bytes16*)(weight + k));
  }
  __syncthreads();
}

// Rows as they are, to shared memory: all of them are asked for at once.
__device__ __forceinline__ void stage_rows(const half_bits* x, int rows, int columns,
                                           half_bits* staged, int stride) {
  for (int row = 0; row < rows; ++row)
    for (int k = 8 * threadIdx.x; k < columns; k += 8 * kThreads)
      copy_async(staged + row * stride + k, x + (long long)row * columns + k, true);
  end_copies();
  wait_for_copies<0>();
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

// Outputs of a team of warps: as equal parts as whole outputs allow, whatever their number.
struct Range { int first, end; };

template <int kTeams> __device__ __forceinline__ Range outputs_of(int team, int outputs) {
  const unsigned teams = gridDim.x * kTeams, index = blockIdx.x * kTeams + team;
  return {(int)(index * outputs / teams), (int)((index + 1) * outputs / teams)};
}

// Zero points and scales of a round's tiles: lane t of the four that share a channel asks for those
// of tile t, so that one load serves four tiles.
struct Groups { unsigned zero[2], scale[2]; };

template <int kBits, bool kSigned>
__device__ __forceinline__ Groups load_groups(const Matrix& w, const Channels& from, int column,
                                              unsigned per_group) {
  Groups groups = {};
  if (column >= w.columns) return groups;
  const unsigned group = __umulhi(column, per_group);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    groups.zero[half] = kSigned ? 128 : w.zeros[from.groups[half] + group];
    groups.scale[half] = w.scales[from.groups[half] + group];
  }
  return groups;
}

// One of a block's results of a step: its place in y, and its team's channel of it.
struct Output { int team, channel, row, index; long long at; };

template <int kTeams, int kStep>
__device__ __forceinline__ bool find_output(int item, int step, int outputs, int rows,
                                            Output& out) {
  out.team = item / kStep % kTeams, out.channel = item % kStep, out.row = item / (kTeams * kStep);
  const Range range = outputs_of<kTeams>(out.team, outputs);
  out.index = range.first + step * kStep + out.channel;
  out.at = (long long)out.row * outputs + out.index;
  return out.row < rows && out.index < range.end;
}

template <int kTeams, int kStep>
__device__ __forceinline__ float residual_of(const Inputs& in, int item, int step, int outputs) {
  Output out;
  const bool wanted = find_output<kTeams, kStep>(item, step, outputs, in.rows, out) && in.residual;
  return wanted ? to_float(in.residual[out.at]) : 0.0f;
}

// A step's sums, added up over the warps of a team in their order, and what follows the product.
// ``kStep``: outputs that a team makes at a time.
template <bool kSigned, bool kGateUp, int kSplit, int kStep>
__device__ __forceinline__ void hand_out(
    const Matrix& w, const Inputs& in, int step, float residual,
    const float (&shares)[kSplit][kWarps / kSplit * kChannels][kRows]) {
  constexpr int kTeams = kWarps / kSplit;
  const int outputs = w.channels / (kGateUp ? 2 : 1);
  for (int item = threadIdx.x; item < kTeams * kStep * in.rows; item += kThreads) {
    if (item >= kThreads) residual = residual_of<kTeams, kStep>(in, item, step, outputs);
    Output out;
    if (!find_output<kTeams, kStep>(item, step, outputs, in.rows, out)) continue;
    float total[2] = {};
#pragma unroll
    for (int part = 0; part < (kGateUp ? 2 : 1); ++part) {
      for (int j = 0; j < kSplit; ++j)
        total[part] += shares[j][out.team * kChannels + out.channel + part * kStep][out.row];
      if (kSigned) total[part] *= in.row_scales[out.row];
      if (w.bias) total[part] += to_float(w.bias[out.index + part * outputs]);
    }
    const float result = kGateUp ? total[0] / (1.0f + expf(-total[0])) * total[1] : total[0];
    in.y[out.at] = to_half(result + residual);
  }
}

// kSplit: warps of a team, which share K.
template <int kBits, bool kWholeTiles, bool kSigned, bool kGateUp, int kSplit>
__device__ __forceinline__ void multiply(const Matrix& w, const Inputs& in, const Upcoming& next) {
  constexpr int kTeams = kWarps / kSplit;
  constexpr int kStep = kGateUp ? kChannels / 2 : kChannels;  // 8 gates lie above their 8 ups
  constexpr int kTurn = kSplit * kTile<kBits>, kRound = kAhead * kTurn;
  extern __shared__ __align__(16) half_bits staged[];
  __shared__ float shares[2][kSplit][kTeams * kChannels][kRows];

  start_next_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
  const int begin = warp % kSplit * kTile<kBits>, own = begin + lane % 4 * kLaneColumns<kBits>;
  const int outputs = w.channels / (kGateUp ? 2 : 1);
  const Range range = outputs_of<kTeams>(warp / kSplit, outputs);
  const int most = (outputs - 1) / (int)(gridDim.x * kTeams) + 1;
  const int steps = (most - 1) / kStep + 1;  // the same for all warps: they meet at the end of each
  const unsigned per_group = 0xffffffffu / w.group_size + 1;
  auto find = [&](int step) {
    const int last = max(range.end - 1, range.first);
    const int output = min(range.first + step * kStep + row, last);
    return find_channels<kBits>(w, output, kGateUp ? output + outputs : min(output + 8, last));
  };
  auto load = [&](Tile& tile, const Channels& from, int column) {
    if (kWholeTiles) load_codes<kBits>(tile, w, from, column);
    else load_tile<kBits>(tile, w, from, column, per_group);
  };

  Channels from = find(0);
  Tile tiles[kAhead] = {};
  Groups groups = {};
#pragma unroll
  for (int n = 0; n < kAhead; ++n) load(tiles[n], from, n * kTurn + own);
  if (kWholeTiles)
    groups = load_groups<kBits, kSigned>(w, from, begin + lane % 4 * kTurn, per_group);
  Gains gains = {};
  if (in.norm) gains = load_gains(in.norm, w.columns);
  auto fetch_next = [&] {
    if (threadIdx.x == 0) fetch_upcoming(next, blockIdx.x, gridDim.x);
  };
  if (steps == 1 && kRound >= w.columns) fetch_next();  // all of the block's own is on its way

  wait_for_last_kernel();
  const int stride = w.columns + kPadding;
  if (in.norm)
    norm_rows(in.x, in.norm, gains, in.norm_eps, in.rows, w.columns, staged, stride);
  else if (in.is_staged)
    stage_rows(in.x, in.rows, w.columns, staged, stride);
  // Lanes of rows that are not there compute the last row again: nobody sees it.
  const int of = min(row, in.rows - 1);
  const half_bits* x = in.norm || in.is_staged ? staged + of * stride : in.x + of * w.columns;

  float sums[4] = {};
  for (int step = 0, start = 0;;) {
    int later = start + kRound;
    const bool ends = later >= w.columns, is_last = ends && step + 1 == steps;
    if (ends) later = is_last ? w.columns : 0;  // beyond the columns nothing is loaded
    if (ends && !is_last) from = find(step + 1);
    if (is_last && start + step) fetch_next();
    float residual = 0.0f;
    if (ends) residual = residual_of<kTeams, kStep>(in, threadIdx.x, step, outputs);
    unsigned packed[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      packed[half] = groups.scale[half] | groups.zero[half] << 16;
    if (kWholeTiles)
      groups = load_groups<kBits, kSigned>(w, from, later + begin + lane % 4 * kTurn, per_group);
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const int column = start + n * kTurn + own;
      Tile tile = tiles[n];
      if (kWholeTiles)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const unsigned group = __shfl_sync(0xffffffffu, packed[half], n % 4, 4);
          tile.scale[half] = group & 0xffff;
          tile.zero[half] = group >> 16;
        }
      if (start + n * kTurn + begin < w.columns) {
        Bytes16 values[kLaneColumns<kBits> / 8];
#pragma unroll
        for (int i = 0; i < kLaneColumns<kBits> / 8; ++i)
          values[i] = column < w.columns ? *(const Bytes16*)(x + column + 8 * i) : Bytes16{};
        if (kSigned)
          for (int half = 0; half < 2; ++half)
            for (unsigned& word : tile.codes[half].word) word ^= 0x80808080u;  // code + 128
        add_tile<kBits, kWholeTiles>(sums, tile, values);
      }
      load(tiles[n], from, later + n * kTurn + own);
    }
    start = later;
    if (!ends) continue;
    auto& now = shares[step % 2];  // those of the step before may still be read
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      now[warp % kSplit][warp / kSplit * kChannels + row + i / 2 * 8][lane % 4 * 2 + i % 2] =
          sums[i];
      sums[i] = 0.0f;
    }
    __syncthreads();
    hand_out<kSigned, kGateUp, kSplit, kStep>(w, in, step, residual, now);
    if (is_last) return;
    ++step;
  }
}

// Float weights, four times the bytes: blocks of 16, 32 or 64 channels, three a multiprocessor, come
// one after the other. As equal parts at once, as above, they were slower by a tenth.
template <bool kGateUp, int kSplit>
__device__ __forceinline__ void multiply_floats(const Matrix& w, const Inputs& in) {
  constexpr int kParts = kGateUp ? 2 : 1;  // gate rows lie before up rows
  constexpr int kTurns = kAhead / kParts;
  constexpr int kTurn = kSplit * kTile<16>;
  constexpr int kOutputs = kWarps / kSplit * kChannels;  // a block
  constexpr int kItems = (kOutputs * kRows + kThreads - 1) / kThreads;  // of them, a thread
  extern __shared__ __align__(16) half_bits staged[];
  __shared__ float shares[kSplit][kParts][kOutputs][kRows];

  start_next_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = lane / 4, own = lane % 4 * kLaneColumns<16>;
  const int outputs = w.channels / kParts, first = blockIdx.x * kOutputs;
  const int in_block = warp / kSplit * kChannels;  // the warp's first channel of the block's
  const int begin = warp % kSplit * kTile<16>;
  Channels from[kParts];
  Tile tiles[kTurns][kParts] = {};
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int channel = first + in_block + row + part * outputs;
    const int last = (part + 1) * outputs - 1;
    from[part] = find_channels<16>(w, min(channel, last), min(channel + 8, last));
  }
#pragma unroll
  for (int n = 0; n < kTurns; ++n)
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      load_codes<16>(tiles[n][part], w, from[part], begin + n * kTurn + own);
  Gains gains = {};
  if (in.norm) gains = load_gains(in.norm, w.columns);

  wait_for_last_kernel();
  if (in.norm)
    norm_rows(in.x, in.norm, gains, in.norm_eps, in.rows, w.columns, staged, w.columns + kPadding);
  // Lanes of rows that are not there compute the last row again: nobody sees it.
  const int of = min(row, in.rows - 1);
  const half_bits* x = in.norm ? staged + of * (w.columns + kPadding) : in.x + of * w.columns;
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
      const Bytes16 values[1] = {column < w.columns ? *(const Bytes16*)(x + column) : Bytes16{}};
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        add_tile<16, true>(sums[part], tiles[n][part], values);
        load_codes<16>(tiles[n][part], w, from[part], column + kTurns * kTurn);
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
      if (w.bias) total[part] += to_float(w.bias[output + part * outputs]);
    }
    float result = total[0];
    if (kGateUp) result = total[0] / (1.0f + expf(-total[0])) * total[kParts - 1];
    in.y[(long long)out_row * outputs + output] = to_half(result + residual[i]);
  }
}

#define SPLIT(bits, whole_tiles, is_signed, split, name)                                       \
  extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) linear_##name(               \
      Matrix w, Inputs in, Upcoming next) {                                                    \
    multiply<bits, whole_tiles, is_signed, false, split>(w, in, next);                         \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) gate_up_##name(              \
      Matrix w, Inputs in, Upcoming next) {                                                    \
    multiply<bits, whole_tiles, is_signed, true, split>(w, in, next);                          \
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

#define FLOATS(split, name)                                                                    \
  extern "C" __global__ void __launch_bounds__(kThreads) linear_##name(                        \
      Matrix w, Inputs in, Upcoming) {                                                         \
    multiply_floats<false, split>(w, in);                                                      \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(kThreads) gate_up_##name(                       \
      Matrix w, Inputs in, Upcoming) {                                                         \
    multiply_floats<true, split>(w, in);                                                       \
  }

FLOATS(8, f16_8)
FLOATS(4, f16_4)
FLOATS(2, f16_2)
