// What W8A8 needs around a product of whole numbers: rows to 8 bits before it, scales after it.

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

template <class Join>
__device__ __forceinline__ float over_block(float value, Join join) {
  __shared__ float of_warp[kWarps];
  for (int distance = 16; distance; distance /= 2)
    value = join(value, __shfl_xor_sync(0xffffffffu, value, distance));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) value = i ? join(value, of_warp[i]) : of_warp[0];
  __syncthreads();
  return value;
}

// An input after RMSNorm, rounded where the oracle rounds; as it is where there is no norm.
__device__ __forceinline__ float input_at(const Inputs& in, const half_bits* row, int k,
                                          float factor) {
  const float value = to_float(row[k]);
  if (!in.norm) return value;
  return to_float(to_half(to_float(to_half(value * factor)) * to_float(in.norm[k])));
}

// Grid: (rows). Codes of x, or of RMSNorm(x), as int8 or as whole numbers in fp16.
template <class Code, class Convert>
__device__ __forceinline__ void quantise(const Inputs& in, int columns, Code* codes, float* scales,
                                         Convert convert) {
  start_next_kernel();
  wait_for_last_kernel();
  const half_bits* row = in.x + (long long)blockIdx.x * columns;
  float factor = 1.0f, largest = 0.0f;
  if (in.norm) {
    float squares = 0.0f;
    for (int k = threadIdx.x; k < columns; k += kThreads)
      squares += to_float(row[k]) * to_float(row[k]);
    squares = over_block(squares, [](float a, float b) { return a + b; });
    factor = rsqrtf(squares / columns + in.norm_eps);
  }
  for (int k = threadIdx.x; k < columns; k += kThreads)
    largest = fmaxf(largest, fabsf(input_at(in, row, k, factor)));
  largest = over_block(largest, [](float a, float b) { return fmaxf(a, b); });
  const float scale = fmaxf(largest, 1e-5f) / 127.0f;
  for (int k = threadIdx.x; k < columns; k += kThreads)
    codes[(long long)blockIdx.x * columns + k] = convert(rintf(input_at(in, row, k, factor) / scale));
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

extern "C" __global__ void __launch_bounds__(kThreads)
quantise_i8(Inputs in, int columns, signed char* codes, float* scales) {
  quantise(in, columns, codes, scales, [](float code) { return (signed char)code; });
}

extern "C" __global__ void __launch_bounds__(kThreads)
quantise_f16(Inputs in, int columns, half_bits* codes, float* scales) {
  quantise(in, columns, codes, scales, [](float code) { return to_half(code); });
}

__device__ __forceinline__ float scaled(const int* sums, const Matrix& w, const Inputs& in, int row,
                                        int channel) {
  const float sum = sums[(long long)row * w.channels + channel];
  const float result = sum * in.row_scales[row] * to_float(w.scales[channel]);
  return w.bias ? result + to_float(w.bias[channel]) : result;
}

// Grid: (outputs / (4 kThreads), rows). ``sums``: [rows, channels] of whole numbers.
template <bool kGateUp>
__device__ __forceinline__ void finish(const int* sums, const Matrix& w, const Inputs& in) {
  start_next_kernel();
  wait_for_last_kernel();
  const int outputs = kGateUp ? w.channels / 2 : w.channels, row = blockIdx.y;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int output = (blockIdx.x * 4 + i) * kThreads + threadIdx.x;
    if (output >= outputs) return;
    float result = scaled(sums, w, in, row, output);
    if (kGateUp)
      result = result / (1.0f + __expf(-result)) * scaled(sums, w, in, row, output + outputs);
    const long long at = (long long)row * outputs + output;
    if (in.residual) result += to_float(in.residual[at]);
    in.y[at] = to_half(result);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads)
scale_sums(const int* sums, Matrix w, Inputs in) {
  finish<false>(sums, w, in);
}

extern "C" __global__ void __launch_bounds__(kThreads)
gate_sums(const int* sums, Matrix w, Inputs in) {
  finish<true>(sums, w, in);
}
