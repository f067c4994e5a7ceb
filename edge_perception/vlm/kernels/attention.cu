// Attention of 1 to 8 new tokens over a static cache, in one launch: norm, rotate, write, attend.
//
// A block takes a key-value head, a row and a chunk of 128 slots, and serves all query heads that
// share the key-value head, so the cache is read once. It makes the rotated queries itself, and
// the new keys and values that fall into its chunk; the block of a row's own chunk also writes
// them to the cache, as fp16 or as INT8 with a scale a vector. So nobody waits for another block.
//
// Each warp takes 16 slots. Scores are one tensor-core product of 16 slots by 8 heads, values one
// of 64 channels by 8 heads: fragments are loaded from the cache as they are needed, 16 bytes a
// lane, and since a product's order of k is free, no shared memory is passed through. Fewer than 8
// heads leave columns empty; the cache's bytes are what counts. Warps keep their own maximum and
// sum, joined in a fixed order. The block that finishes last for a head joins the chunks, in the
// order of the context. (Milakov and Gimelshein, 2018; Dao et al., Flash-Decoding, 2023.)
//
// The number of chunks follows from the cache's capacity, not from the length, which lies in device
// memory: a captured graph is right at every length, and chunks that nobody sees return at once. A
// chunk's sums have one order whatever the length and whatever other rows come along, so a row's
// bits depend on its own slots alone.
//
// Left out: rows sharing one reading of the cache. Seven drafts read it eight times, mostly from
// the second-level cache.

constexpr int kChunk = 128;  // slots, a block
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kSlots = 16;   // slots, a warp
constexpr int kHeads = 8;    // query heads that share a key-value head, at most
constexpr int kRows = 8;     // new tokens, at most
constexpr int kMaxHead = 256;  // channels of a head, at most
constexpr int kBlock = 64;   // channels of one product with the values
constexpr float kNothing = -1e30f;  // a maximum over no slots; finite, so that differences are

// Mirrored field by field by whoever launches.
struct Heads {
  int query_heads, kv_heads, head_dim, window;  // window 0: all slots
  int capacity, rows, axes, reserved;           // axes 1 or 3
  float norm_eps, scale;                        // scale of the scores: head_dim^-0.5
};

struct Cache {        // [kv_heads, capacity, head_dim]; scales [kv_heads, capacity] or null
  void* keys;
  void* values;
  float* key_scales;
  float* value_scales;
};

struct Rotation {
  const float* cosines;      // [positions, head_dim / 2]
  const float* sines;
  const long long* axis;       // [head_dim / 2], or null where positions have one axis
  const long long* positions;  // [axes, rows]
  const long long* first;      // slot of row 0
  const half_bits* query_norm;  // [head_dim], or null
  const half_bits* key_norm;
};

struct Workspace {
  float* values;  // [rows, query_heads, chunks, head_dim], weighted by exponentials, not divided
  float* stats;   // [rows, query_heads, chunks, 2]: maximum, sum
  int* arrived;   // [rows, kv_heads], zero between launches
};

__device__ __forceinline__ float max_over_warp(float value) {
  for (int distance = 16; distance; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

// Eight neighbouring channels of a slot: 16 bytes of fp16, or 8 of INT8.
template <bool kInt8> struct Piece;
template <> struct Piece<false> { Bytes16 bytes; };
template <> struct Piece<true> { Bytes8 bytes; };

// Channels 2i and 2i + 1 of a piece as a half2; INT8 codes are whole numbers, exact.
__device__ __forceinline__ unsigned pair_at(const Piece<false>& piece, int i) {
  return piece.bytes.word[i];
}
__device__ __forceinline__ unsigned pair_at(const Piece<true>& piece, int i) {
  const unsigned above = piece.bytes.word[i / 2] ^ 0x80808080u;  // code + 128
  return subtract_pairs(__byte_perm(above, 0x64646464u, i % 2 ? 0x4342 : 0x4140), 0x64806480u);
}

struct Angle { float cosine, sine; };

// New keys and values of the block's chunk, as the cache will hold them, and the queries.
template <bool kInt8> struct alignas(16) Fresh {
  half_bits queries[kHeads][kMaxHead];
  Piece<kInt8> keys[kRows][kMaxHead / 8], values[kRows][kMaxHead / 8];
  float key_scales[kRows], value_scales[kRows];
  float turning[kWarps][kMaxHead];  // a warp's vector while it is rotated
  Angle angles[kMaxHead / 2];       // of the block's row
};

// A head's vector in a warp: lane l holds channels l, l + 32, ...
struct Vector { float at[kMaxHead / 32]; };

__device__ __forceinline__ Vector load_vector(const half_bits* from, int channels) {
  Vector v = {};
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i) {
    const int channel = threadIdx.x % 32 + 32 * i;
    if (channel < channels) v.at[i] = to_float(from[channel]);
  }
  return v;
}

__device__ __forceinline__ void norm_head(Vector& v, int channels, const half_bits* weight,
                                          float eps) {
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i) squares += v.at[i] * v.at[i];
  const float factor = rsqrtf(sum_over_warp(squares) / channels + eps);
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i) {
    const int channel = threadIdx.x % 32 + 32 * i;
    if (channel < channels)
      v.at[i] = to_float(to_half(v.at[i] * factor)) * to_float(weight[channel]);
  }
}

__device__ __forceinline__ Angle angle_at(const Heads& heads, const Rotation& turn, int row,
                                          int pair) {
  const long long axis = turn.axis && heads.axes > 1 ? turn.axis[pair] : 0;
  const long long at = turn.positions[axis * heads.rows + row] * (heads.head_dim / 2) + pair;
  return {turn.cosines[at], turn.sines[at]};
}

// ``held``: the row's angles, or null.
__device__ __forceinline__ void rotate(Vector& v, const Heads& heads, const Rotation& turn, int row,
                                       float* scratch, const Angle* held) {
  const int channels = heads.head_dim, half = channels / 2;
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i) {
    const int channel = threadIdx.x % 32 + 32 * i;
    if (channel < channels) scratch[channel] = v.at[i];
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i) {
    const int channel = threadIdx.x % 32 + 32 * i;
    if (channel >= channels) continue;
    const int pair = channel % half;
    const Angle angle = held ? held[pair] : angle_at(heads, turn, row, pair);
    const float other = channel < half ? -scratch[channel + half] : scratch[pair];
    v.at[i] = v.at[i] * angle.cosine + other * angle.sine;
  }
  __syncwarp();
}

__device__ __forceinline__ void store(const Vector& v, int channels, half_bits* to) {
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i) {
    const int channel = threadIdx.x % 32 + 32 * i;
    if (channel < channels) to[channel] = to_half(v.at[i]);
  }
}

// As INT8 codes and the scale of the largest magnitude / 127.
__device__ __forceinline__ void store(const Vector& v, int channels, signed char* to,
                                      float* scale) {
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i) largest = fmaxf(largest, fabsf(v.at[i]));
  const float step = max_over_warp(largest) / 127.0f;
  if (threadIdx.x % 32 == 0) *scale = step;
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i) {
    const int channel = threadIdx.x % 32 + 32 * i;
    if (channel < channels)
      to[channel] = (signed char)(step > 0.0f ? rintf(v.at[i] / step) : 0.0f);
  }
}

template <bool kInt8>
__device__ __forceinline__ void store_as_cached(const Vector& v, int channels, void* to,
                                                float* scale) {
  if (kInt8) store(v, channels, (signed char*)to, scale);
  else store(v, channels, (half_bits*)to);
}

// Where a block stands: its row's slots, and the first slot of its chunk.
struct Place { long long first, own, oldest, start; };

// Makes what the block needs of the new rows; one warp a vector, in turns.
template <bool kInt8>
__device__ __forceinline__ void prepare(const Heads& heads, const Rotation& turn,
                                        const Cache& cache, const half_bits* qkv,
                                        const Place& place, Fresh<kInt8>& fresh) {
  const int kv_head = blockIdx.x, row = blockIdx.z, warp = threadIdx.x / 32;
  const int channels = heads.head_dim, group = heads.query_heads / heads.kv_heads;
  const int width = (heads.query_heads + 2 * heads.kv_heads) * channels;
  const int earliest = max((int)(place.start - place.first), 0);  // new row in this chunk
  const int latest = min((int)(place.start + kChunk - 1 - place.first), row);
  const int fresh_rows = max(latest - earliest + 1, 0);
  for (int i = warp; i < group + 2 * fresh_rows; i += kWarps) {
    const bool is_query = i < group, is_value = i >= group + fresh_rows;
    const int from = is_query ? row : earliest + (i - group) % max(fresh_rows, 1);
    const int head = is_query ? kv_head * group + i
                              : heads.query_heads + kv_head + (is_value ? heads.kv_heads : 0);
    Vector v = load_vector(qkv + (long long)from * width + head * channels, channels);
    const half_bits* norm = is_query ? turn.query_norm : turn.key_norm;
    if (norm && !is_value) norm_head(v, channels, norm, heads.norm_eps);
    const Angle* angles = from == row ? fresh.angles : nullptr;
    if (!is_value) rotate(v, heads, turn, from, fresh.turning[warp], angles);
    if (is_query) {
      store(v, channels, fresh.queries[i]);
      continue;
    }
    store_as_cached<kInt8>(v, channels, is_value ? fresh.values[from] : fresh.keys[from],
                           (is_value ? fresh.value_scales : fresh.key_scales) + from);
    if (from != row) continue;
    const long long slot = (long long)kv_head * heads.capacity + place.own;
    const int size = kInt8 ? 1 : 2;
    store_as_cached<kInt8>(v, channels,
                           (uint8*)(is_value ? cache.values : cache.keys) + slot * channels * size,
                           (is_value ? cache.value_scales : cache.key_scales) + slot);
  }
}

// For many rows: writes their keys and values to the cache and hands out their rotated queries,
// [rows, query_heads, head_dim]. Grid: ((query_heads + 2 kv_heads) / kWarps, rows); a warp a head.
extern "C" __global__ void __launch_bounds__(kThreads)
place_rows(Heads heads, Rotation turn, Cache cache, const half_bits* qkv, half_bits* queries) {
  __shared__ float turning[kWarps][kMaxHead];
  start_next_kernel();
  wait_for_last_kernel();
  const int warp = threadIdx.x / 32, head = blockIdx.x * kWarps + warp, row = blockIdx.y;
  const int channels = heads.head_dim, all = heads.query_heads + 2 * heads.kv_heads;
  if (head >= all) return;
  const bool is_query = head < heads.query_heads;
  const bool is_value = head >= heads.query_heads + heads.kv_heads;
  Vector v = load_vector(qkv + ((long long)row * all + head) * channels, channels);
  const half_bits* norm = is_query ? turn.query_norm : turn.key_norm;
  if (norm && !is_value) norm_head(v, channels, norm, heads.norm_eps);
  if (!is_value) rotate(v, heads, turn, row, turning[warp], nullptr);
  if (is_query) {
    store(v, channels, queries + ((long long)row * heads.query_heads + head) * channels);
    return;
  }
  const int kv_head = head - heads.query_heads - (is_value ? heads.kv_heads : 0);
  const long long slot = (long long)kv_head * heads.capacity + *turn.first + row;
  void* memory = is_value ? cache.values : cache.keys;
  if (cache.key_scales)
    store(v, channels, (signed char*)memory + slot * channels,
          (is_value ? cache.value_scales : cache.key_scales) + slot);
  else
    store(v, channels, (half_bits*)memory + slot * channels);
}

// A piece of a slot in the cache, nothing where the slot is unseen, new or beyond the channels.
template <bool kInt8>
__device__ __forceinline__ Piece<kInt8> load_piece(const void* memory, const Heads& heads,
                                                   const Place& place, int slot, int channel) {
  Piece<kInt8> piece = {};
  const long long at = place.start + slot;
  if (at < place.first && at >= place.oldest && channel < heads.head_dim) {
    const long long index = ((long long)blockIdx.x * heads.capacity + at) * heads.head_dim + channel;
    piece = ((const Piece<kInt8>*)memory)[index / 8];
  }
  return piece;
}

template <bool kInt8>
__device__ __forceinline__ void take_fresh(Piece<kInt8>& piece,
                                           const Piece<kInt8> (&fresh)[kRows][kMaxHead / 8],
                                           const Heads& heads, const Place& place, int slot,
                                           int channel) {
  const long long at = place.start + slot;
  if (at >= place.first && at <= place.own && at >= place.oldest && channel < heads.head_dim)
    piece = fresh[at - place.first][channel / 8];
}

__device__ __forceinline__ float scale_at(const float* scales, const float* fresh,
                                          const Heads& heads, const Place& place, int slot) {
  const long long at = place.start + slot;
  if (at > place.own || at < place.oldest) return 0.0f;
  if (at >= place.first) return fresh[at - place.first];
  return scales[(long long)blockIdx.x * heads.capacity + at];
}

// Over the 8 lanes that hold the same heads of a product of slots by heads.
template <class Join> __device__ __forceinline__ float over_slots(float value, Join join) {
  for (int distance = 4; distance < 32; distance *= 2)
    value = join(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

// Joins the chunks of the block's heads, in their order.
__device__ __forceinline__ void join_chunks(const Heads& heads, const Workspace& work, int from,
                                            int to, half_bits* out) {
  const int channels = heads.head_dim, group = heads.query_heads / heads.kv_heads;
  const long long head0 = (long long)blockIdx.z * heads.query_heads + blockIdx.x * group;
  for (int i = threadIdx.x; i < group * channels; i += kThreads) {
    const long long head = head0 + i / channels;
    const float* stats = work.stats + head * gridDim.y * 2;
    const float* values = work.values + head * gridDim.y * channels + i % channels;
    float most = kNothing, sum = 0.0f, total = 0.0f;
#pragma unroll 8
    for (int c = from; c <= to; ++c) most = fmaxf(most, __ldcg(stats + 2 * c));
#pragma unroll 8
    for (int c = from; c <= to; ++c) {
      const float weight = __expf(__ldcg(stats + 2 * c) - most);
      sum += __ldcg(stats + 2 * c + 1) * weight;
      total += __ldcg(values + (long long)c * channels) * weight;
    }
    out[head * channels + i % channels] = to_half(total / sum);
  }
}

// Grid: (kv_heads, chunks, rows); ``out``: [rows, query_heads * head_dim]. kMost: head_dim at most.
template <bool kInt8, int kMost>
__device__ __forceinline__ void attend(const Heads& heads, const Rotation& turn, const Cache& cache,
                                       const half_bits* qkv, const Workspace& work,
                                       half_bits* out, const Upcoming& next) {
  constexpr int kKeyPieces = kMost / 32, kBlocks = kMost / kBlock;
  __shared__ Fresh<kInt8> fresh;
  __shared__ float shares[kWarps][kBlock][kHeads + 1];
  __shared__ half_bits weights[kWarps][kHeads][kSlots + 8];
  __shared__ float most_of[kWarps][kHeads], sum_of[kWarps][kHeads];
  __shared__ int arrivals;

  start_next_kernel();
  if (threadIdx.x == 0)  // the memory has little else to do
    fetch_upcoming(next, (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x,
                   gridDim.x * gridDim.y * gridDim.z);
  const int row = blockIdx.z, channels = heads.head_dim;
  const int group = heads.query_heads / heads.kv_heads;
  Place place;
  place.first = *turn.first;
  place.own = place.first + row;
  place.oldest = heads.window && place.own >= heads.window ? place.own - heads.window + 1 : 0;
  place.start = (long long)blockIdx.y * kChunk;
  if (place.start > place.own || place.start + kChunk <= place.oldest) return;
  const int from = (int)(place.oldest / kChunk), to = (int)(place.own / kChunk);
  const bool is_only = from == to;  // nothing to join: the same numbers, two trips less

  // Key fragments: slots lane / 4 and lane / 4 + 8; value fragments: four slots, 8 channels each.
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4, eighth = lane / 4;
  const int slot0 = warp * kSlots;
  Piece<kInt8> keys[2][kKeyPieces], values[4][kBlocks];
#pragma unroll
  for (int p = 0; p < kKeyPieces; ++p)
#pragma unroll
    for (int s = 0; s < 2; ++s)
      keys[s][p] = load_piece<kInt8>(cache.keys, heads, place, slot0 + eighth + 8 * s,
                                     8 * (t + 4 * p));
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int s = 0; s < 4; ++s)
      values[s][b] = load_piece<kInt8>(cache.values, heads, place,
                                       slot0 + 2 * t + s % 2 + s / 2 * 8, kBlock * b + 8 * eighth);

  // Length and slots before it are of earlier steps, and so is the position of a single row.
  if (heads.rows > 1) wait_for_last_kernel();
  if (threadIdx.x < channels / 2)
    fresh.angles[threadIdx.x] = angle_at(heads, turn, row, threadIdx.x);
  wait_for_last_kernel();
  __syncthreads();
  prepare<kInt8>(heads, turn, cache, qkv, place, fresh);
  __syncthreads();

  float scores[4] = {};
#pragma unroll
  for (int p = 0; p < kKeyPieces; ++p) {
    const int channel = 8 * (t + 4 * p);
    Bytes16 query = {};
    if (eighth < group && channel < channels) query = *(Bytes16*)&fresh.queries[eighth][channel];
    for (int s = 0; s < 2; ++s)
      take_fresh<kInt8>(keys[s][p], fresh.keys, heads, place, slot0 + eighth + 8 * s, channel);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned a[4] = {pair_at(keys[0][p], 2 * i), pair_at(keys[1][p], 2 * i),
                             pair_at(keys[0][p], 2 * i + 1), pair_at(keys[1][p], 2 * i + 1)};
      const unsigned b[2] = {query.word[2 * i], query.word[2 * i + 1]};
      multiply_tiles(scores, a, b);
    }
  }

  // This lane's scores: slots eighth and eighth + 8 (index / 2), heads 2t and 2t + 1 (index % 2).
  float value_scale[2] = {1.0f, 1.0f}, largest_scale = 1.0f;
  bool seen[2];
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const int slot = slot0 + eighth + 8 * s;
    seen[s] = place.start + slot <= place.own && place.start + slot >= place.oldest;
    float scale = heads.scale;
    if (kInt8) {
      scale *= scale_at(cache.key_scales, fresh.key_scales, heads, place, slot);
      value_scale[s] = scale_at(cache.value_scales, fresh.value_scales, heads, place, slot);
    }
    for (int h = 0; h < 2; ++h) scores[2 * s + h] = seen[s] ? scores[2 * s + h] * scale : kNothing;
  }
  if (kInt8) largest_scale = max_over_warp(fmaxf(value_scale[0], value_scale[1]));
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float most = over_slots(fmaxf(scores[h], scores[2 + h]),
                                  [](float a, float b) { return fmaxf(a, b); });
    float weight[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) weight[s] = seen[s] ? __expf(scores[2 * s + h] - most) : 0.0f;
    const float sum = over_slots(weight[0] + weight[1], [](float a, float b) { return a + b; });
#pragma unroll
    for (int s = 0; s < 2; ++s) {  // INT8 values' scales, relative to the largest: fp16 holds them
      const float share = kInt8 && largest_scale > 0.0f ? value_scale[s] / largest_scale : 1.0f;
      weights[warp][2 * t + h][eighth + 8 * s] = to_half(weight[s] * share);
    }
    if (eighth == 0) {
      most_of[warp][2 * t + h] = most;
      sum_of[warp][2 * t + h] = sum;
    }
  }
  __syncwarp();

  const unsigned weight_pairs[2] = {*(unsigned*)&weights[warp][eighth][2 * t],
                                    *(unsigned*)&weights[warp][eighth][2 * t + 8]};
  const long long head0 = (long long)row * heads.query_heads + blockIdx.x * group;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    if (b * kBlock >= channels) break;
#pragma unroll
    for (int s = 0; s < 4; ++s)
      take_fresh<kInt8>(values[s][b], fresh.values, heads, place,
                        slot0 + 2 * t + s % 2 + s / 2 * 8, kBlock * b + 8 * eighth);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      unsigned pairs[4];
      for (int s = 0; s < 4; ++s) pairs[s] = pair_at(values[s][b], j);
      const unsigned a[4] = {
          __byte_perm(pairs[0], pairs[1], 0x5410), __byte_perm(pairs[0], pairs[1], 0x7632),
          __byte_perm(pairs[2], pairs[3], 0x5410), __byte_perm(pairs[2], pairs[3], 0x7632)};
      float sums[4] = {};
      multiply_tiles(sums, a, weight_pairs);
      for (int i = 0; i < 4; ++i)
        shares[warp][8 * eighth + 2 * j + i / 2][2 * t + i % 2] =
            kInt8 ? sums[i] * largest_scale : sums[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < group * kBlock; i += kThreads) {
      const int channel = i % kBlock, head = i / kBlock;
      if (b * kBlock + channel >= channels) continue;
      float most = kNothing, total = 0.0f, sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) most = fmaxf(most, most_of[w][head]);
      for (int w = 0; w < kWarps; ++w) {
        const float weight = __expf(most_of[w][head] - most);
        total += shares[w][channel][head] * weight;
        sum += sum_of[w][head] * weight;
      }
      const long long at = head0 + head;
      if (is_only)
        out[at * channels + b * kBlock + channel] = to_half(total / sum);
      else
        work.values[(at * gridDim.y + blockIdx.y) * channels + b * kBlock + channel] = total;
    }
  }
  if (is_only) return;
  if (threadIdx.x < group) {
    const int head = threadIdx.x;
    float most = kNothing, sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, most_of[w][head]);
    for (int w = 0; w < kWarps; ++w) sum += sum_of[w][head] * __expf(most_of[w][head] - most);
    float* stats = work.stats + ((head0 + head) * gridDim.y + blockIdx.y) * 2;
    stats[0] = most;
    stats[1] = sum;
  }

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int* arrived = work.arrived + row * heads.kv_heads + blockIdx.x;
    arrivals = atomicAdd(arrived, 1);
    if (arrivals == to - from) *arrived = 0;
  }
  __syncthreads();
  if (arrivals != to - from) return;
  __threadfence();
  join_chunks(heads, work, from, to, out);
}

#define ATTEND(int8, most, blocks, name)                                                       \
  extern "C" __global__ void __launch_bounds__(kThreads, blocks) attend_##name(                \
      Heads heads, Rotation turn, Cache cache, const half_bits* qkv, Workspace work,           \
      half_bits* out, Upcoming next) {                                                         \
    attend<int8, most>(heads, turn, cache, qkv, work, out, next);                              \
  }

ATTEND(false, 128, 2, f16_128)  // heads of up to 128 channels, of up to 256
ATTEND(false, 256, 1, f16_256)
ATTEND(true, 128, 2, i8_128)
ATTEND(true, 256, 1, i8_256)
