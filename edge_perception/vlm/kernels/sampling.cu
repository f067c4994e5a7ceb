// The next token from fp16 logits: greedy, or by temperature, top-k and top-p, as sampling.py says.
//
// Sorting a vocabulary to cut and draw from it is not needed: fp16 has 65536 values, and words of
// equal logits have equal probability. So `count` makes a histogram of the logits, `draw` walks it
// from the largest value down (counts give top-k, counts times exponentials give top-p and the
// draw), and `find` looks for the word: the n-th, in the order of ids, that has the value drawn.
// Counting is exact whatever the order of the atomics, so the same logits give the same token in
// every run. `find` also clears the histogram for the next step.
//
// Greedy decoding needs none of this: `choose_best` is one launch, each block finds the best word of
// its part and the last block to finish the best of all.
//
// The uniform number is splitmix64 of seed and slot. Settings lie in device memory: a captured
// graph obeys new ones. A logit that is not a number ranks above all others and is chosen.

constexpr int kSampleThreads = 256;
constexpr int kValues = 65536;
constexpr int kValuesEach = kValues / kSampleThreads;

struct Settings {
  float temperature;  // 0: greedy
  float top_p;        // 1: all
  int top_k;          // 0: all
  int reserved;
  unsigned long long seed;
};

struct Choice { int value, rank; };  // what `draw` tells `find`

// fp16 bits in the order of their values, largest first: 0 is the largest; both zeros are one.
__device__ __forceinline__ int rank_of(half_bits logit) {
  if (logit == 0x8000u) logit = 0;
  const unsigned ascending = logit & 0x8000u ? ~logit & 0xffffu : logit | 0x8000u;
  return 0xffff - ascending;
}

__device__ __forceinline__ float value_at(int rank) {
  const unsigned ascending = 0xffff - rank;
  return to_float(ascending & 0x8000u ? ascending & 0x7fffu : ~ascending & 0xffffu);
}

__device__ __forceinline__ float uniform_at(unsigned long long seed, long long slot) {
  unsigned long long state = seed + (slot + 1) * 0x9e3779b97f4a7c15ull;
  state = (state ^ state >> 30) * 0xbf58476d1ce4e5b9ull;
  state = (state ^ state >> 27) * 0x94d049bb133111ebull;
  return (float)((state ^ state >> 31) >> 40) * 0x1p-24f;
}

// Rank and id in one number: the smallest is the best word, of equal ones the first.
__device__ __forceinline__ unsigned long long key_of(half_bits logit, int word) {
  return (unsigned long long)rank_of(logit) << 32 | (unsigned)word;
}

__device__ __forceinline__ unsigned long long smallest_of_block(unsigned long long key) {
  __shared__ unsigned long long keys[kSampleThreads];
  keys[threadIdx.x] = key;
  for (int half = kSampleThreads / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      keys[threadIdx.x] = min(keys[threadIdx.x], keys[threadIdx.x + half]);
  }
  __syncthreads();
  return keys[0];
}

// Grid: (blocks, rows), at most kSampleThreads blocks. ``best``: [rows, blocks]; ``arrived``: [rows],
// zero between launches.
extern "C" __global__ void __launch_bounds__(kSampleThreads)
choose_best(const half_bits* logits, int words, unsigned long long* best, int* arrived,
            long long* tokens) {
  __shared__ int arrivals;
  start_next_kernel();
  wait_for_last_kernel();
  const int row = blockIdx.y, blocks = gridDim.x;
  const half_bits* mine = logits + (long long)row * words;
  unsigned long long key = ~0ull;
  const int octets = words % 8 ? 0 : words / 8;  // rows lie on 16 bytes only where 8 divides them
  const int start = blockIdx.x * kSampleThreads + threadIdx.x, step = blocks * kSampleThreads;
  for (int i = start; i < octets; i += step) {
    const Bytes16 eight = ((const Bytes16*)mine)[i];
#pragma unroll
    for (int j = 0; j < 8; ++j)
      key = min(key, key_of(eight.word[j / 2] >> 16 * (j % 2) & 0xffff, 8 * i + j));
  }
  for (int i = 8 * octets + start; i < words; i += step) key = min(key, key_of(mine[i], i));
  key = smallest_of_block(key);
  if (threadIdx.x == 0) {
    best[row * blocks + blockIdx.x] = key;
    __threadfence();
    arrivals = atomicAdd(&arrived[row], 1);
  }
  __syncthreads();
  if (arrivals != blocks - 1) return;
  __threadfence();
  key = threadIdx.x < blocks ? __ldcg(&best[row * blocks + threadIdx.x]) : ~0ull;
  key = smallest_of_block(key);
  if (threadIdx.x == 0) {
    tokens[row] = (long long)(key & 0xffffffffu);
    arrived[row] = 0;
  }
}

// Grid: (blocks, rows). ``counts``: [rows, 65536], zero before.
extern "C" __global__ void __launch_bounds__(kSampleThreads)
count_logits(const half_bits* logits, int words, int* counts) {
  start_next_kernel();
  wait_for_last_kernel();
  const int row = blockIdx.y;
  for (int i = blockIdx.x * kSampleThreads + threadIdx.x; i < words;
       i += gridDim.x * kSampleThreads)
    atomicAdd(&counts[(long long)row * kValues + rank_of(logits[(long long)row * words + i])], 1);
}

// A thread's part of the ranking, and what comes before it.
struct Part { int words; float mass; };

// Grid: (rows); slot of row 0 in ``first``.
extern "C" __global__ void __launch_bounds__(kSampleThreads)
draw(const int* counts, const Settings* settings, const long long* first, Choice* choices) {
  __shared__ int words_of[kSampleThreads];
  __shared__ float mass_of[kSampleThreads];
  __shared__ int best;
  __shared__ float kept;
  start_next_kernel();
  wait_for_last_kernel();
  const int row = blockIdx.x, start = threadIdx.x * kValuesEach;
  const int* mine = counts + (long long)row * kValues + start;
  const Settings how = *settings;

  int words = 0, own_best = kValues;
  for (int i = kValuesEach - 1; i >= 0; --i) {
    words += mine[i];
    if (mine[i]) own_best = start + i;
  }
  words_of[threadIdx.x] = words;
  mass_of[threadIdx.x] = own_best;  // whole numbers up to 65536 are exact
  __syncthreads();
  if (threadIdx.x == 0) {
    best = kValues;
    for (int i = kSampleThreads - 1; i >= 0; --i)
      if (mass_of[i] < kValues) best = (int)mass_of[i];
    choices[row] = {best, 0};  // greedy
  }
  if (how.temperature == 0.0f) return;
  __syncthreads();

  // Words allowed by top-k in this thread's part, and their mass relative to the best word's.
  int before = 0;
  for (int i = 0; i < (int)threadIdx.x; ++i) before += words_of[i];
  const float top = value_at(best);
  const int limit = how.top_k ? how.top_k : 0x7fffffff;
  float mass = 0.0f;
  int seen = before;
  for (int i = 0; i < kValuesEach && seen < limit; ++i) {
    if (!mine[i]) continue;
    mass += min(mine[i], limit - seen) * expf((value_at(start + i) - top) / how.temperature);
    seen += mine[i];
  }
  mass_of[threadIdx.x] = mass;
  __syncthreads();
  float total = 0.0f, below = 0.0f;
  for (int i = 0; i < kSampleThreads; ++i) {
    if (i == (int)threadIdx.x) below = total;
    total += mass_of[i];
  }

  // Twice the same walk: to the fewest words that reach top-p, then to the word drawn among them.
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 0 && threadIdx.x == 0) kept = total;
    __syncthreads();
    const float target = pass == 0 ? how.top_p * total : uniform_at(how.seed, *first + row) * kept;
    const bool inside = mass > 0.0f && below <= target && target < below + mass;
    if (inside) {
      float sum = below;
      int taken = before;
      for (int i = 0; i < kValuesEach && taken < limit; ++i) {
        if (!mine[i]) continue;
        const int many = min(mine[i], limit - taken);
        const float each = expf((value_at(start + i) - top) / how.temperature);
        if (target < sum + many * each || i == kValuesEach - 1) {
          const int whole = min((int)((target - sum) / each), many - 1);  // words wholly below
          if (pass == 0) kept = sum + (whole + 1) * each;
          else choices[row] = {start + i, whole};
          break;
        }
        if (pass == 1) choices[row] = {start + i, many - 1};  // where rounding left nothing after
        sum += many * each;
        taken += mine[i];
      }
    }
    __syncthreads();
  }
}

// Grid: (rows). The word of rank ``choice.rank`` among those of the value drawn, by id.
extern "C" __global__ void __launch_bounds__(kSampleThreads)
find_word(const half_bits* logits, int words, const Choice* choices, int* counts,
          long long* tokens) {
  __shared__ int found_by[kSampleThreads];
  start_next_kernel();
  wait_for_last_kernel();
  const int row = blockIdx.x;
  const half_bits* mine = logits + (long long)row * words;
  const Choice choice = choices[row];
  const int each = (words + kSampleThreads - 1) / kSampleThreads;
  const int start = min((int)threadIdx.x * each, words), stop = min(start + each, words);
  int found = 0;
  for (int i = start; i < stop; ++i) found += rank_of(mine[i]) == choice.value;
  found_by[threadIdx.x] = found;
  __syncthreads();
  int before = 0;
  for (int i = 0; i < (int)threadIdx.x; ++i) before += found_by[i];
  if (before <= choice.rank && choice.rank < before + found) {
    int rank = before;
    for (int i = start; i < stop; ++i)
      if (rank_of(mine[i]) == choice.value && rank++ == choice.rank) tokens[row] = i;
  }
  for (int i = threadIdx.x; i < kValues; i += kSampleThreads)
    counts[(long long)row * kValues + i] = 0;
}
