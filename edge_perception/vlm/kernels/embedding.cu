// Rows of an embedding table, of 4 or 8 bits in groups or of fp16, for the tokens of a step.

struct Table {
  const uint8* codes;  // as in docs/adr/0005-packed-layout.md, or fp16
  const half_bits* scales;
  const uint8* zeros;
  int bits, columns, group_size, reserved;
};

// Grid: (rows); any number of threads.
extern "C" __global__ void embed(Table table, const long long* tokens, half_bits* out) {
  start_next_kernel();
  wait_for_last_kernel();
  const long long word = tokens[blockIdx.x], row = (long long)blockIdx.x * table.columns;
  for (int k = threadIdx.x; k < table.columns; k += blockDim.x) {
    const long long at = word * table.columns + k;
    if (table.bits == 16) {
      out[row + k] = ((const half_bits*)table.codes)[at];
      continue;
    }
    int code;
    if (table.bits == 4) {  // nibble i of eight holds k = 0, 2, 4, 6, 1, 3, 5, 7
      const unsigned octet = ((const unsigned*)table.codes)[at / 8];
      code = octet >> 4 * (k % 2 * 4 + k % 8 / 2) & 15;
    } else {
      code = table.codes[at];
    }
    const long long group = word * (table.columns / table.group_size) + k / table.group_size;
    out[row + k] = to_half((code - table.zeros[group]) * to_float(table.scales[group]));
  }
}
