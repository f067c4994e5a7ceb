// Camera pixels -> letterboxed, normalised network input; one thread an output pixel.
//
// For each output pixel: the four source pixels around its centre are converted to RGB by OpenCV's
// fixed-point formulas, blended bilinearly, and written as value * gain + offset. Around the
// picture lies the padding. The arithmetic is preprocess.py's, with two deliberate differences:
// centres are exact rationals (integer division instead of OpenCV's float), and the blend is not
// rounded to 8 bits before normalisation. Together they stay within one level of OpenCV.
//
// Bytes: a source pixel is fetched only if an output pixel needs it. Taps with weight zero are
// not read, which halves the traffic of odd integral reductions (1080p to 640 wide).

typedef unsigned char uint8;

enum Encoding {
  RGB8, BGR8, RGBA8, BGRA8, MONO8, NV12, UYVY, YUYV,
  BAYER_RGGB8, BAYER_BGGR8, BAYER_GBRG8, BAYER_GRBG8,
};
enum Dtype { FLOAT32, FLOAT16, UINT8 };

// Mirrored field by field by preprocess_cuda.py; 64 bytes.
struct Region {
  const uint8* pixels;
  int encoding, step;             // bytes a row
  int height, width;              // whole image, px
  int crop_left, crop_top, crop_width, crop_height;
  int pad_left, pad_top, resized_width, resized_height;
  int reserved0, reserved1;
};

struct Target {
  void* tensor;
  int batch, height, width;
  int dtype, channels_last, bgr;  // booleans as int
  float gain[3], offset[3];       // in the tensor's channel order
  float pad_value;
};

constexpr int kMaxBatch = 32;
struct Regions { Region at[kMaxBatch]; };

struct Rgb { int r, g, b; };

__device__ __forceinline__ int saturate(int value) { return min(max(value, 0), 255); }

// ITU-R BT.601, limited range, 20-bit fixed point, as OpenCV's color_yuv.
__device__ __forceinline__ Rgb yuv_to_rgb(int y, int u, int v) {
  const int luma = max(y - 16, 0) * 1220542;
  u -= 128;
  v -= 128;
  const int half = 1 << 19;
  return {saturate((luma + 1673527 * v + half) >> 20),
          saturate((luma - 852492 * v - 409993 * u + half) >> 20),
          saturate((luma + 2116026 * u + half) >> 20)};
}

// Bilinear demosaic of one pixel. OpenCV computes the inside and repeats it at the border.
__device__ __forceinline__ Rgb demosaic(const Region& image, int x, int y, int red_x, int red_y) {
  // Phase of the *original* position decides nothing: the border copies its inner neighbour whole.
  x = min(max(x, 1), image.width - 2);
  y = min(max(y, 1), image.height - 2);
  const uint8* at = image.pixels + (long long)y * image.step + x;
  const int step = image.step;
  const bool on_red_row = (y & 1) == red_y;
  const bool on_red_column = (x & 1) == red_x;
  const int here = __ldg(at);
  if (on_red_row == on_red_column) {  // a red or a blue cell
    const int cross = (__ldg(at - 1) + __ldg(at + 1) + __ldg(at - step) + __ldg(at + step) + 2) >> 2;
    const int corners = (__ldg(at - step - 1) + __ldg(at - step + 1) + __ldg(at + step - 1) +
                         __ldg(at + step + 1) + 2) >> 2;
    return on_red_row ? Rgb{here, cross, corners} : Rgb{corners, cross, here};
  }
  const int sides = (__ldg(at - 1) + __ldg(at + 1) + 1) >> 1;
  const int ends = (__ldg(at - step) + __ldg(at + step) + 1) >> 1;
  return on_red_row ? Rgb{sides, here, ends} : Rgb{ends, here, sides};
}

template <int kEncoding>
__device__ __forceinline__ Rgb fetch(const Region& image, int x, int y) {
  const uint8* row = image.pixels + (long long)y * image.step;
  if (kEncoding == RGB8) return {__ldg(row + 3 * x), __ldg(row + 3 * x + 1), __ldg(row + 3 * x + 2)};
  if (kEncoding == BGR8) return {__ldg(row + 3 * x + 2), __ldg(row + 3 * x + 1), __ldg(row + 3 * x)};
  if (kEncoding == RGBA8) return {__ldg(row + 4 * x), __ldg(row + 4 * x + 1), __ldg(row + 4 * x + 2)};
  if (kEncoding == BGRA8) return {__ldg(row + 4 * x + 2), __ldg(row + 4 * x + 1), __ldg(row + 4 * x)};
  if (kEncoding == MONO8) {
    const int grey = __ldg(row + x);
    return {grey, grey, grey};
  }
  if (kEncoding == NV12) {
    const uint8* chroma = image.pixels + (long long)(image.height + y / 2) * image.step + (x & ~1);
    return yuv_to_rgb(__ldg(row + x), __ldg(chroma), __ldg(chroma + 1));
  }
  const uint8* pair = row + 4 * (x >> 1);  // two pixels share their chroma
  if (kEncoding == UYVY) return yuv_to_rgb(__ldg(pair + 1 + 2 * (x & 1)), __ldg(pair), __ldg(pair + 2));
  if (kEncoding == YUYV) return yuv_to_rgb(__ldg(pair + 2 * (x & 1)), __ldg(pair + 1), __ldg(pair + 3));
  if (kEncoding == BAYER_RGGB8) return demosaic(image, x, y, 0, 0);
  if (kEncoding == BAYER_BGGR8) return demosaic(image, x, y, 1, 1);
  if (kEncoding == BAYER_GBRG8) return demosaic(image, x, y, 0, 1);
  return demosaic(image, x, y, 1, 0);  // BAYER_GRBG8
}

// Where an output coordinate falls: centre (2 * i + 1) * source / (2 * target) - 1/2, clamped.
struct Tap { int low, high; float weight; };

__device__ __forceinline__ Tap tap(int i, int source, int target) {
  const int numerator = (2 * i + 1) * source - target;
  if (numerator <= 0) return {0, 0, 0.0f};
  const unsigned denominator = 2u * target;
  const int low = (unsigned)numerator / denominator;
  if (low >= source - 1) return {source - 1, source - 1, 0.0f};
  const unsigned rest = numerator - low * denominator;
  return {low, rest ? low + 1 : low, (float)rest / (float)denominator};
}

struct Blend { float r, g, b; };

__device__ __forceinline__ Blend mix(Blend from, Rgb to, float weight) {
  return {from.r + (to.r - from.r) * weight, from.g + (to.g - from.g) * weight,
          from.b + (to.b - from.b) * weight};
}

template <int kEncoding>
__device__ __forceinline__ Blend sample(const Region& image, Tap across, Tap down) {
  const int x0 = image.crop_left + across.low, x1 = image.crop_left + across.high;
  const int y0 = image.crop_top + down.low, y1 = image.crop_top + down.high;
  const bool two_across = across.weight > 0.0f, two_down = down.weight > 0.0f;
  const Rgb first = fetch<kEncoding>(image, x0, y0);
  Blend top = {(float)first.r, (float)first.g, (float)first.b};
  if (two_across) top = mix(top, fetch<kEncoding>(image, x1, y0), across.weight);
  if (!two_down) return top;
  const Rgb second = fetch<kEncoding>(image, x0, y1);
  Blend bottom = {(float)second.r, (float)second.g, (float)second.b};
  if (two_across) bottom = mix(bottom, fetch<kEncoding>(image, x1, y1), across.weight);
  return {top.r + (bottom.r - top.r) * down.weight, top.g + (bottom.g - top.g) * down.weight,
          top.b + (bottom.b - top.b) * down.weight};
}

__device__ __forceinline__ Blend sample_any(const Region& image, Tap across, Tap down) {
  switch (image.encoding) {  // the same for a whole block, so no warp diverges
    case RGB8: return sample<RGB8>(image, across, down);
    case BGR8: return sample<BGR8>(image, across, down);
    case RGBA8: return sample<RGBA8>(image, across, down);
    case BGRA8: return sample<BGRA8>(image, across, down);
    case MONO8: return sample<MONO8>(image, across, down);
    case NV12: return sample<NV12>(image, across, down);
    case UYVY: return sample<UYVY>(image, across, down);
    case YUYV: return sample<YUYV>(image, across, down);
    case BAYER_RGGB8: return sample<BAYER_RGGB8>(image, across, down);
    case BAYER_BGGR8: return sample<BAYER_BGGR8>(image, across, down);
    case BAYER_GBRG8: return sample<BAYER_GBRG8>(image, across, down);
    default: return sample<BAYER_GRBG8>(image, across, down);
  }
}

__device__ __forceinline__ void store(const Target& target, long long index, float value) {
  if (target.dtype == FLOAT32) {
    ((float*)target.tensor)[index] = value;
  } else if (target.dtype == FLOAT16) {
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    ((unsigned short*)target.tensor)[index] = half;
  } else {
    ((uint8*)target.tensor)[index] = (uint8)saturate(__float2int_rn(value));
  }
}

extern "C" __global__ void __launch_bounds__(256)
preprocess(const __grid_constant__ Regions regions, const __grid_constant__ Target target) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  const int n = blockIdx.z;
  if (x >= target.width || y >= target.height) return;
  const Region& image = regions.at[n];

  Blend colour = {target.pad_value, target.pad_value, target.pad_value};
  const int i = x - image.pad_left, j = y - image.pad_top;
  if (i >= 0 && i < image.resized_width && j >= 0 && j < image.resized_height) {
    colour = sample_any(image, tap(i, image.crop_width, image.resized_width),
                        tap(j, image.crop_height, image.resized_height));
  }
  const float channels[3] = {target.bgr ? colour.b : colour.r, colour.g,
                             target.bgr ? colour.r : colour.b};
  const long long plane = (long long)target.height * target.width;
  const long long pixel = (long long)y * target.width + x;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const long long index = target.channels_last ? (n * plane + pixel) * 3 + c
                                                 : (n * 3LL + c) * plane + pixel;
    store(target, index, channels[c] * target.gain[c] + target.offset[c]);
  }
}
