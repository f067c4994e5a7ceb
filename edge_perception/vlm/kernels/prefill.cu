// y = W x for many rows of x: a W4A16 product, and what a dense product needs around it.
//
// `multiply_many_w4` dequantises inside the product. A block makes 128 channels of 128 rows, its
// eight warps 32 channels of 64 rows each. Weights go from memory to registers as in linear.cu, a
// lane's 16 bytes a channel; x goes through shared memory, two steps of 128 columns, its 16-byte
// pieces placed such that the four lanes of a fragment and two rows read different banks. Where
// the tiles do not fill the chip, blocks share one tile's K; the last of them adds up, in order.
//
// It is meant for prompts of up to a few hundred rows, which the bytes of the weights bound. With
// more rows dequantising once (`dequantise_*`, as fast as memory is) and the library's dense product
// are faster: on Hopper this kernel's instructions reach some 60% of the tensor cores' rate.
//
// Left out: 8-bit weights and rows by the thousand in here; they take the dense way.

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kStep = 128;          // columns at a time: a tile of 4 bits
constexpr int kBlockRows = 128;
constexpr int kBlockChannels = 128;
constexpr int kWarpRows = 64;
constexpr int kWarpTiles = 2;       // of 16 channels, a warp: of gate and up one each
constexpr int kRowTiles = kWarpRows / 8;
constexpr int kPieces = kStep / 8;  // of 16 bytes, a row's step
constexpr int kStage = kBlockRows * kPieces;
constexpr int kSums = kWarpTiles * kRowTiles;  // of four floats, a lane

struct Split {
  Bytes16* parts;  // [tiles, splits, kSums, kThreads]: sums of blocks that share a tile
  int* arrived;    // [tiles], zero between launches
};

// Where piece ``piece`` (8 columns) of a row stands in shared memory.
__device__ __forceinline__ int place_of(int row, int piece) {
  return row * kPieces + ((piece % 4 * 4 + piece / 4) ^ row % 2 * 4);
}

__device__ __forceinline__ void copy_rows(const Inputs& in, int columns, int first_row, int step,
                                          Bytes16* stage) {
  for (int i = threadIdx.x; i < kStage; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces, column = step * kStep + 8 * piece;
    const bool wanted = first_row + row < in.rows && column < columns;
    const long long at = wanted ? (long long)(first_row + row) * columns + column : 0;
    copy_async(stage + place_of(row, piece), in.x + at, wanted);
  }
  end_copies();
}

struct alignas(16) Sums { float at[kWarpTiles][kRowTiles][4]; };

__device__ __forceinline__ void multiply_step(Sums& sums, const Tile (&tiles)[kWarpTiles],
                                              const Bytes16* stage, int warp_row) {
  const int lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll
  for (int quarter = 0; quarter < 4; ++quarter) {
    unsigned a[kWarpTiles][2][4];
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          a[m][i][j] = weight_pair<4, false>(tiles[m], j % 2, 4 * quarter + 2 * i + j / 2);
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      const Bytes16 x = stage[place_of(warp_row + 8 * n + lane / 4, 4 * t + quarter)];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int m = 0; m < kWarpTiles; ++m) {
          const unsigned b[2] = {x.word[2 * i], x.word[2 * i + 1]};
          multiply_tiles(sums.at[m][n], a[m][i], b);
        }
    }
  }
}

// Adds up the blocks that share a tile; true in the one that holds the whole sums afterwards.
__device__ __forceinline__ bool join_splits(Sums& sums, const Split& split) {
  __shared__ int arrivals;
  const int tile = blockIdx.y * gridDim.x + blockIdx.x, splits = gridDim.z;
  if (splits == 1) return true;
  Bytes16* parts = split.parts + (long long)tile * splits * kSums * kThreads + threadIdx.x;
  const Bytes16* own = (const Bytes16*)&sums;
#pragma unroll
  for (int i = 0; i < kSums; ++i) parts[(blockIdx.z * kSums + i) * kThreads] = own[i];
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    arrivals = atomicAdd(&split.arrived[tile], 1);
    if (arrivals == splits - 1) split.arrived[tile] = 0;
  }
  __syncthreads();
  if (arrivals != splits - 1) return false;
  __threadfence();
  sums = {};
  for (int z = 0; z < splits; ++z)
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const float* part = (const float*)(parts + (z * kSums + i) * kThreads);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        sums.at[i / kRowTiles][i % kRowTiles][j] += __ldcg(part + j);
    }
  return true;
}

template <bool kGateUp>
__device__ __forceinline__ void multiply_many(const Matrix& w, const Inputs& in,
                                              const Split& split) {
  constexpr int kParts = kGateUp ? 2 : 1;  // gate rows lie before up rows
  constexpr int kOutputs = kBlockChannels / kParts;
  constexpr int kPitch = kOutputs + 8;     // halves between rows of the staged result
  extern __shared__ __align__(16) Bytes16 staged[];

  start_next_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp % 2 * kWarpRows, warp_output = warp / 2 * (kOutputs / 4);
  const int outputs = w.channels / kParts, first = blockIdx.x * kOutputs;
  const int first_row = blockIdx.y * kBlockRows;
  const int steps = (w.columns + kStep - 1) / kStep;
  const int begin = steps * blockIdx.z / gridDim.z, end = steps * (blockIdx.z + 1) / gridDim.z;
  const unsigned per_group = 0xffffffffu / w.group_size + 1;
  const int own = lane % 4 * kLaneColumns<4>;

  Channels from[kWarpTiles];
  Tile next[kWarpTiles] = {};
#pragma unroll
  for (int m = 0; m < kWarpTiles; ++m) {
    const int part = kGateUp ? m : 0, tile = kGateUp ? 0 : 16 * m;
    const int channel = first + warp_output + tile + lane / 4 + part * outputs;
    const int last = (part + 1) * outputs - 1;
    from[m] = find_channels<4>(w, min(channel, last), min(channel + 8, last));
    load_tile<4>(next[m], w, from[m], begin * kStep + own, per_group);
  }
  wait_for_last_kernel();
  if (begin < end) copy_rows(in, w.columns, first_row, begin, staged);

  Sums sums = {};
  for (int step = begin; step < end; ++step) {
    if (step + 1 < end)
      copy_rows(in, w.columns, first_row, step + 1, staged + (step + 1 - begin) % 2 * kStage);
    else
      end_copies();
    Tile tiles[kWarpTiles];
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m) {
      tiles[m] = next[m];
      load_tile<4>(next[m], w, from[m], (step + 1) * kStep + own, per_group);
    }
    wait_for_copies<1>();
    __syncthreads();
    multiply_step(sums, tiles, staged + (step - begin) % 2 * kStage, warp_row);
    __syncthreads();
  }
  if (!join_splits(sums, split)) return;

  half_bits* result = (half_bits*)staged;  // [kBlockRows, kPitch]
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp_row + 8 * n + lane % 4 * 2 + i % 2;
      const int output = warp_output + lane / 4 + i / 2 * 8;
      float total[kWarpTiles];
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) {
        const int channel = min(first + output + (kGateUp ? 0 : 16 * m), outputs - 1);
        const float bias = w.bias ? to_float(w.bias[channel + (kGateUp ? m * outputs : 0)]) : 0.0f;
        total[m] = sums.at[m][n][i] + bias;
      }
      if (kGateUp) {
        const float gated = total[0] / (1.0f + __expf(-total[0])) * total[1];
        result[row * kPitch + output] = to_half(gated);
      } else {
#pragma unroll
        for (int m = 0; m < kWarpTiles; ++m)
          result[row * kPitch + output + 16 * m] = to_half(total[m]);
      }
    }
  __syncthreads();
  for (int i = threadIdx.x; i < kBlockRows * kOutputs / 8; i += kThreads) {
    const int row = i / (kOutputs / 8), output = i % (kOutputs / 8) * 8;
    if (first_row + row >= in.rows || first + output >= outputs) continue;
    Bytes16 values = *(const Bytes16*)(result + row * kPitch + output);
    const long long at = (long long)(first_row + row) * outputs + first + output;
    if (in.residual) {
      const Bytes16 more = *(const Bytes16*)(in.residual + at);
#pragma unroll
      for (int j = 0; j < 4; ++j) values.word[j] = add_pairs(values.word[j], more.word[j]);
    }
    *(Bytes16*)(in.y + at) = values;
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) many_w4(Matrix w, Inputs in, Split split) {
  multiply_many<false>(w, in, split);
}

extern "C" __global__ void __launch_bounds__(kThreads)
many_gate_up_w4(Matrix w, Inputs in, Split split) {
  multiply_many<true>(w, in, split);
}

// Eight neighbouring weights as halves, with the rounding of dequantising in fp16.
template <int kBits>
__device__ __forceinline__ Bytes16 dequantised(const Bytes16& codes, unsigned zero,
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
        dequantised<kBits>(codes[n], w.zeros[group], w.scales[group]);
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
