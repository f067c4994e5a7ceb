// How weights lie and how codes become halves: for the products of few rows and of many.

template <int kBits> constexpr int kLaneColumns = 128 / kBits;  // of a channel, in 16 bytes
template <int kBits> constexpr int kTile = 4 * kLaneColumns<kBits>;  // k, a warp at a time

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
  const float* row_scales;    // [rows]: x times these is meant (W8A8); or null
  float norm_eps;
  int rows;
  int is_staged;  // x as it is fits in shared memory, and is put there
  int reserved;
};

// Codes that the next product will read: bytes of them in all, and how many to fetch ahead.
struct Upcoming {
  const uint8* codes;
  long long bytes, wanted;
};

// A block's share, in pieces spread evenly over the codes, as the blocks that will read them are.
__device__ __forceinline__ void fetch_upcoming(const Upcoming& next, int block, int blocks) {
  constexpr int kPieces = 2;  // one in the gates, one in the ups
  const long long apart = next.bytes / (kPieces * blocks) / 16 * 16;
  const long long wanted = next.wanted / (kPieces * blocks) / 16 * 16;
  const unsigned bytes = (unsigned)(wanted < apart ? wanted : apart);
  if (!bytes) return;
  for (int i = kPieces * block; i < kPieces * (block + 1); ++i)
    fetch(next.codes + i * apart, bytes);
}

// Pair i of a lane's codes as a half2: 1024 + code, of 4 bits 64 + code where i is odd.
template <int kBits> __device__ __forceinline__ unsigned pair_at(const Bytes16& codes, int i) {
  if (kBits == 4) {
    const unsigned word = codes.word[i / 4] >> i % 4 / 2 * 8;
    return i % 2 ? keep_and_set<0x00f000f0, 0x54005400>(word)
                 : keep_and_set<0x000f000f, 0x64006400>(word);
  }
  if (kBits == 8) return __byte_perm(codes.word[i / 2], 0x64646464u, i % 2 ? 0x4342 : 0x4140);
  return codes.word[i];
}

// What ``pair_at`` adds to a code, and the zero point, as a half2; ``sign``: 0x80008000 or 0.
template <int kBits>
__device__ __forceinline__ unsigned offset_at(unsigned zero, int i, unsigned sign) {
  if (kBits == 4 && i % 2) return zero * 0x00100010u + (0x54005400u | sign);
  return zero * 0x00010001u + (0x64006400u | sign);
}

// What a lane holds of a tile: codes of two channels, and their groups' zero points and scales.
struct Tile {
  Bytes16 codes[2];
  unsigned zero[2];
  half_bits scale[2];
};

// Where a lane's two channels begin: in 16 bytes of codes, and in groups.
struct Channels { unsigned codes[2], groups[2]; };

template <int kBits>
__device__ __forceinline__ Channels find_channels(const Matrix& w, int one, int other) {
  const unsigned groups = kBits == 16 ? 0 : w.columns / w.group_size;
  const unsigned row = w.columns / kLaneColumns<kBits>;
  return {{one * row, other * row}, {one * groups, other * groups}};
}

// Beyond the columns a tile keeps what it holds, which x = 0 multiplies.
template <int kBits>
__device__ __forceinline__ void load_codes(Tile& tile, const Matrix& w, const Channels& from,
                                           int column) {
  if (column >= w.columns) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const unsigned codes = from.codes[half] + column / kLaneColumns<kBits>;
    const uint8* at = w.codes + 16ull * codes;
    tile.codes[half] = kBits == 16 ? load_once(at) : load_once_with_line(at);
  }
}

// ``per_group``: 2^32 / group_size, rounded up; exact for what is below 65536.
template <int kBits>
__device__ __forceinline__ void load_tile(Tile& tile, const Matrix& w, const Channels& from,
                                          int column, unsigned per_group) {
  if (column >= w.columns) return;
  load_codes<kBits>(tile, w, from, column);
  const unsigned group = __umulhi(column, per_group);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    tile.zero[half] = w.zeros[from.groups[half] + group];
    tile.scale[half] = w.scales[from.groups[half] + group];
  }
}

template <int kBits, bool kWholeTiles>
__device__ __forceinline__ unsigned weight_pair(const Tile& tile, int half, int i) {
  const unsigned pair = pair_at<kBits>(tile.codes[half], i);
  if (kBits == 16 || kWholeTiles) return pair;
  const unsigned code = subtract_pairs(pair, offset_at<kBits>(tile.zero[half], i, 0));
  return multiply_pairs(code, pair_of(tile.scale[half]));
}

__device__ __forceinline__ float half_at(const Bytes16& bytes, int i) {
  return to_float(bytes.word[i / 2] >> 16 * (i % 2) & 0xffff);
}
