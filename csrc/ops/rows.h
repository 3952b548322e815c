// Loops over one row of a table, the only arithmetic of the CPU kernels.
//
// Arithmetic is done in `accumulate_t<T>` (fp32 for fp32, bf16 and fp16; fp64 for fp64) and rounded once.

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

// Columns handled at a time: sums stay in the first-level cache, and while one tile is summed the next is fetched.
constexpr int64_t kTileColumns = 512;

// The pairs of `is_pair` in tensors.h.
#define MEGATRON_AQAA_FOR_EACH_PAIR(APPLY) \
  APPLY(float, float)                      \
  APPLY(double, double)                    \
  APPLY(BFloat16, BFloat16)                \
  APPLY(Half, Half)                        \
  APPLY(float, BFloat16)                   \
  APPLY(float, Half)                       \
  APPLY(BFloat16, float)                   \
  APPLY(Half, float)

//   store_row   out[i]  = scale * row[i]
//   update_row  out[i] += scale * row[i]
#define MEGATRON_AQAA_DECLARE_ROWS(O, T)                                   \
  void store_row(O* out, const T* row, double scale, int64_t num_columns); \
  void update_row(O* out, const T* row, double scale, int64_t num_columns);

MEGATRON_AQAA_FOR_EACH_PAIR(MEGATRON_AQAA_DECLARE_ROWS)

}  // namespace megatron_aqaa
