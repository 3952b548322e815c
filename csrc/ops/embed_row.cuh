// One row of an embedding's output on a GPU, whatever the form: the scaled sum of up to three rows of tables, by one
// block of threads.

#pragma once

#include "vector.cuh"

namespace megatron_aqaa {

constexpr int kRowThreads = 128;

// Row of a table, or null if there is no such table or the row is negative.
template <typename T>
__device__ const T* table_row(const void* table, int64_t row, int64_t hidden) {
  return table == nullptr || row < 0 ? nullptr : static_cast<const T*>(table) + row * hidden;
}

template <typename O, int kWidth>
__device__ void fill_row(O* out, float value, int64_t hidden) {
  Packet<O, kWidth> filled;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) filled.values[i] = static_cast<O>(value);
  for (int64_t p = threadIdx.x; p < hidden / kWidth; p += kRowThreads)
    reinterpret_cast<Packet<O, kWidth>*>(out)[p] = filled;
}

// An id or a place that no table holds must not pass for silence.
template <typename O, int kWidth>
__device__ void fill_row_with_nan(O* out, int64_t hidden) {
  fill_row<O, kWidth>(out, __int_as_float(0x7fc00000), hidden);
}

// out = scale * (sum of the rows that are not null), summed in fp32 (fp64 for fp64) and rounded once.
template <typename T, typename O, int kWidth>
__device__ void write_row(O* out, const T* first, const T* second, const T* third, double scale, int64_t hidden) {
  const auto factor = static_cast<accumulate_of<T>>(scale);
  for (int64_t p = threadIdx.x; p < hidden / kWidth; p += kRowThreads) {
    accumulate_of<T> sum[kWidth] = {};
    if (first != nullptr) add_packet<kWidth>(sum, first, p);
    if (second != nullptr) add_packet<kWidth>(sum, second, p);
    if (third != nullptr) add_packet<kWidth>(sum, third, p);
    Packet<O, kWidth> stored;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) stored.values[i] = static_cast<O>(factor * sum[i]);
    reinterpret_cast<Packet<O, kWidth>*>(out)[p] = stored;
  }
}

}  // namespace megatron_aqaa
