// Attention of 1 to 8 new tokens over a static cache: rotate and write, attend by chunks, combine.
//
// Three launches. `write_cache`: one warp a head of fused QKV; queries and keys are normed (where
// the model does so) and rotated, keys and values stored, as fp16 or as INT8 with a scale of their
// own. `attend`: one block a key-value head, a row and a chunk of 256 slots; all query heads that
// share the key-value head are served by one reading of it, so the cache is read once. `combine`:
// one block a query head and row joins the chunks by their maxima and sums.
//
// The number of chunks follows from the cache's capacity, not from the length, which lies in device
// memory: a captured graph is right at every length, and chunks that nobody sees return at once. A
// chunk's sums have one order whatever the length and whatever other rows come along, so a row's
// bits depend on its own slots alone.
//
// In `attend` a group of lanes takes a slot, 8 channels a lane (16 bytes of fp16); the score is
// their sum by shuffles, and each group keeps a running maximum, sum and weighted values of its
// own slots (Milakov and Gimelshein, 2018), joined at the end in shared memory.
//
// Left out: tensor cores for groups of 4 to 8 query heads. At batch 1 the cache's bytes bound it,
// and up to 4096 positions they are a tenth of the weights'.

constexpr int kChunk = 256;     // slots a block attends to
constexpr int kAttendWarps = 4;
constexpr int kAttendThreads = 32 * kAttendWarps;
constexpr int kLane = 8;        // channels a lane holds of a slot
constexpr int kMaxHead = 256;   // channels of a head, at most

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

__device__ __forceinline__ float max_over_warp(float value) {
  for (int distance = 16; distance; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

// A head's vector in a warp: lane l holds channels l, l + 32, ...
struct Vector { float at[kMaxHead / 32]; };

__device__ __forceinline__ void norm_head(Vector& v, int channels, const half_bits* weight,
                                          float eps) {
  const int lane = threadIdx.x;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i) squares += v.at[i] * v.at[i];
  const float factor = rsqrtf(sum_over_warp(squares) / channels + eps);
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i)
    if (lane + 32 * i < channels)
      v.at[i] = to_float(to_half(v.at[i] * factor)) * to_float(weight[lane + 32 * i]);
}

// Stores a key or value as INT8 codes and the scale of its largest magnitude / 127.
__device__ __forceinline__ void store_int8(const Vector& v, int channels, signed char* codes,
                                           float* scale) {
  const int lane = threadIdx.x;
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i) largest = fmaxf(largest, fabsf(v.at[i]));
  const float step = max_over_warp(largest) / 127.0f;
  if (lane == 0) *scale = step;
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i)
    if (lane + 32 * i < channels)
      codes[lane + 32 * i] = (signed char)(step > 0.0f ? rintf(v.at[i] / step) : 0.0f);
}

// Grid: (query_heads + 2 kv_heads, rows); a warp a block.
extern "C" __global__ void __launch_bounds__(32)
write_cache(Heads heads, Rotation turn, Cache cache, const half_bits* qkv, half_bits* queries) {
  __shared__ float vector[kMaxHead];
  const int lane = threadIdx.x, head = blockIdx.x, row = blockIdx.y;
  const int channels = heads.head_dim, half = channels / 2;
  const half_bits* in =
      qkv + ((long long)row * (heads.query_heads + 2 * heads.kv_heads) + head) * channels;
  Vector v = {};
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i)
    if (lane + 32 * i < channels) v.at[i] = to_float(in[lane + 32 * i]);

  const bool is_query = head < heads.query_heads;
  const bool is_value = head >= heads.query_heads + heads.kv_heads;
  if (!is_value) {
    const half_bits* norm = is_query ? turn.query_norm : turn.key_norm;
    if (norm) norm_head(v, channels, norm, heads.norm_eps);
#pragma unroll
    for (int i = 0; i < kMaxHead / 32; ++i)
      if (lane + 32 * i < channels) vector[lane + 32 * i] = v.at[i];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kMaxHead / 32; ++i) {
      const int channel = lane + 32 * i;
      if (channel >= channels) continue;
      const int pair = channel % half;
      const long long axis = turn.axis && heads.axes > 1 ? turn.axis[pair] : 0;
      const long long angle = turn.positions[axis * heads.rows + row] * half + pair;
      const float other = channel < half ? -vector[channel + half] : vector[pair];
      v.at[i] = v.at[i] * turn.cosines[angle] + other * turn.sines[angle];
    }
  }
  if (is_query) {
    half_bits* out = queries + ((long long)row * heads.query_heads + head) * channels;
#pragma unroll
    for (int i = 0; i < kMaxHead / 32; ++i)
      if (lane + 32 * i < channels) out[lane + 32 * i] = to_half(v.at[i]);
    return;
  }
  const int kv_head = head - heads.query_heads - (is_value ? heads.kv_heads : 0);
  const long long slot = (long long)kv_head * heads.capacity + *turn.first + row;
  void* memory = is_value ? cache.values : cache.keys;
  if (cache.key_scales) {
    float* scales = is_value ? cache.value_scales : cache.key_scales;
    store_int8(v, channels, (signed char*)memory + slot * channels, scales + slot);
    return;
  }
#pragma unroll
  for (int i = 0; i < kMaxHead / 32; ++i)
    if (lane + 32 * i < channels)
      ((half_bits*)memory)[slot * channels + lane + 32 * i] = to_half(v.at[i]);
}

struct Channels { float at[kLane]; };

template <bool kInt8>
__device__ __forceinline__ Channels load_channels(const void* memory, long long at, float scale) {
  Channels c;
  if (kInt8) {
    const signed char* codes = (const signed char*)memory + at;
    struct alignas(8) Bytes8 { signed char byte[8]; } b = *(const Bytes8*)codes;
#pragma unroll
    for (int i = 0; i < kLane; ++i) c.at[i] = scale * b.byte[i];
    return c;
  }
  const Bytes16 b = *(const Bytes16*)((const half_bits*)memory + at);
#pragma unroll
  for (int i = 0; i < kLane; ++i) c.at[i] = to_float(b.word[i / 2] >> 16 * (i % 2) & 0xffff);
  return c;
}

// A running softmax over slots: its maximum, the sum of exponentials, the weighted values.
struct Softmax { float most, sum; Channels values; };

__device__ __forceinline__ void add_slot(Softmax& s, float score, const Channels& value) {
  const float most = fmaxf(s.most, score);
  const float kept = __expf(s.most - most), weight = __expf(score - most);
  s.sum = s.sum * kept + weight;
#pragma unroll
  for (int i = 0; i < kLane; ++i)
    s.values.at[i] = s.values.at[i] * kept + weight * value.at[i];
  s.most = most;
}

constexpr float kNothing = -1e30f;  // a maximum over no slots; finite, so that differences are

// Grid: (kv_heads, chunks, rows). ``parts``: [rows, query_heads, chunks, head_dim + 2] floats,
// weighted values, maximum, sum.
template <bool kInt8, int kGroup>
__device__ __forceinline__ void attend_chunk(const Heads& heads, const long long* first,
                                             const Cache& cache, const half_bits* queries,
                                             float* parts) {
  __shared__ float joined[kAttendWarps * 32 * kLane];
  __shared__ float most_of[kAttendWarps * 32], sum_of[kAttendWarps * 32];
  const int kv_head = blockIdx.x, chunk = blockIdx.y, row = blockIdx.z;
  const int channels = heads.head_dim, group = heads.query_heads / heads.kv_heads;
  const long long own = *first + row;
  const long long oldest = heads.window && own >= heads.window ? own - heads.window + 1 : 0;
  float* out = parts + (((long long)row * heads.query_heads + kv_head * group) * gridDim.y + chunk)
                       * (channels + 2);
  const long long next_head = (long long)gridDim.y * (channels + 2);
  const long long start = (long long)chunk * kChunk;
  if (start > own || start + kChunk <= oldest) {
    for (int g = threadIdx.x; g < group; g += kAttendThreads) {
      out[g * next_head + channels] = kNothing;
      out[g * next_head + channels + 1] = 0.0f;
    }
    return;
  }

  int lanes = 1;  // that hold a slot: a power of two, so that a shuffle's exclusive or stays inside
  while (lanes * kLane < channels) lanes *= 2;
  const int slots_at_once = kAttendThreads / lanes;
  const int team = threadIdx.x / lanes, channel = threadIdx.x % lanes * kLane;
  const bool holds = channel < channels;
  const long long base = (long long)kv_head * heads.capacity;

  Channels query[kGroup];
  Softmax softmax[kGroup];
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    softmax[g] = {kNothing, 0.0f, {}};
    query[g] = {};
    const long long head = (long long)row * heads.query_heads + kv_head * group + g;
    if (g < group && holds) query[g] = load_channels<false>(queries, head * channels + channel, 0);
  }
  for (int i = team; i < kChunk; i += slots_at_once) {
    const long long slot = start + i;
    const bool seen = slot <= own && slot >= oldest;
    Channels key = {}, value = {};
    if (seen && holds) {
      const long long at = (base + slot) * channels + channel;
      key = load_channels<kInt8>(cache.keys, at, kInt8 ? cache.key_scales[base + slot] : 1.0f);
      value = load_channels<kInt8>(cache.values, at, kInt8 ? cache.value_scales[base + slot] : 1.0f);
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      if (g >= group) break;
      float score = 0.0f;
#pragma unroll
      for (int c = 0; c < kLane; ++c) score += query[g].at[c] * key.at[c];
      for (int distance = lanes / 2; distance; distance /= 2)
        score += __shfl_xor_sync(0xffffffffu, score, distance);
      if (seen) add_slot(softmax[g], score * heads.scale, value);
    }
  }

#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    if (g >= group) break;
    __syncthreads();
    if (channel == 0) {
      most_of[team] = softmax[g].most;
      sum_of[team] = softmax[g].sum;
    }
#pragma unroll
    for (int c = 0; c < kLane; ++c)
      joined[team * lanes * kLane + channel + c] = softmax[g].values.at[c];
    __syncthreads();
    float most = kNothing, sum = 0.0f;
    for (int t = 0; t < slots_at_once; ++t) most = fmaxf(most, most_of[t]);
    for (int t = 0; t < slots_at_once; ++t) sum += sum_of[t] * __expf(most_of[t] - most);
    for (int c = threadIdx.x; c < channels; c += kAttendThreads) {
      float total = 0.0f;
      for (int t = 0; t < slots_at_once; ++t)
        total += joined[t * lanes * kLane + c] * __expf(most_of[t] - most);
      out[g * next_head + c] = total;
    }
    if (threadIdx.x == 0) {
      out[g * next_head + channels] = most;
      out[g * next_head + channels + 1] = sum;
    }
  }
}

#define ATTEND(int8, group, name)                                                             \
  extern "C" __global__ void __launch_bounds__(kAttendThreads) attend_##name(                 \
      Heads heads, const long long* first, Cache cache, const half_bits* queries,             \
      float* parts) {                                                                         \
    attend_chunk<int8, group>(heads, first, cache, queries, parts);                           \
  }

ATTEND(false, 1, f16_1)  // query heads that share a key-value head: 1, up to 4, up to 8
ATTEND(false, 4, f16_4)
ATTEND(false, 8, f16_8)
ATTEND(true, 1, i8_1)
ATTEND(true, 4, i8_4)
ATTEND(true, 8, i8_8)

// Grid: (query_heads, rows); ``out``: [rows, query_heads * head_dim].
extern "C" __global__ void __launch_bounds__(kMaxHead)
combine(Heads heads, const float* parts, int chunks, half_bits* out) {
  const int channels = heads.head_dim, channel = threadIdx.x;
  const long long head = (long long)blockIdx.y * heads.query_heads + blockIdx.x;
  const float* part = parts + head * chunks * (channels + 2);
  if (channel >= channels) return;
  float most = kNothing, sum = 0.0f, total = 0.0f;
  for (int i = 0; i < chunks; ++i) most = fmaxf(most, part[i * (channels + 2) + channels]);
  for (int i = 0; i < chunks; ++i) {
    const float* p = part + i * (channels + 2);
    if (p[channels + 1] == 0.0f) continue;  // nothing seen: its values were never written
    const float weight = __expf(p[channels] - most);
    sum += p[channels + 1] * weight;
    total += p[channel] * weight;
  }
  out[head * channels + channel] = to_half(total / sum);
}
