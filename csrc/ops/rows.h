// Loops over one row of a table, the only arithmetic of the CPU kernels.
//
// Sums are kept in `accumulate_t<T>` (fp32 for fp32, bf16 and fp16; fp64 for fp64) and rounded once.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace megatron_aqaa {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using accumulate_t = typename Accumulate<T>::type;

// Columns handled at a time: the fp32 sums (4 KiB) stay in the first-level cache beside the row that is read.
constexpr int64_t kTileColumns = 1024;

// For each T, A = accumulate_t<T>:
//   add_row     sum[i] += row[i]
//   store_row   out[i]  = scale * sum[i]
//   update_row  out[i] += scale * sum[i]   (out may be fp32 beside a lower-precision gradient)
#define MEGATRON_AQAA_DECLARE_ROWS(T, A)                                   \
  void add_row(A* sum, const T* row, int64_t num_columns);                 \
  void store_row(T* out, const A* sum, double scale, int64_t num_columns); \
  void update_row(T* out, const A* sum, double scale, int64_t num_columns);

MEGATRON_AQAA_DECLARE_ROWS(float, float)
MEGATRON_AQAA_DECLARE_ROWS(double, double)
MEGATRON_AQAA_DECLARE_ROWS(BFloat16, float)
MEGATRON_AQAA_DECLARE_ROWS(Half, float)

}  // namespace megatron_aqaa
