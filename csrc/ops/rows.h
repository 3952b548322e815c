// Loops over one row of a table, the only arithmetic of the CPU kernels.
//
// Arithmetic is done in `accumulate_t<T>` (fp32 for fp32, bf16 and fp16; fp64 for fp64) and rounded once.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>
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
constexpr int64_t kTileColumns = 1024;

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

// One pass for up to three rows: what is summed on the way to a result costs no store.
template <typename T>
using FewRows = std::array<const T*, 3>;

// The first `count` of `rows`, 1 to 3, summed from left to right:
//   store_rows   out[i]  = scale * (rows[0][i] + …)
//   update_rows  out[i] += scale * (rows[0][i] + …)
#define MEGATRON_AQAA_DECLARE_ROWS(O, T)                                                             \
  void store_rows(O* out, const FewRows<T>& rows, int64_t count, double scale, int64_t num_columns); \
  void update_rows(O* out, const FewRows<T>& rows, int64_t count, double scale, int64_t num_columns);

MEGATRON_AQAA_FOR_EACH_PAIR(MEGATRON_AQAA_DECLARE_ROWS)

template <typename O, typename T>
void update_row(O* out, const T* row, double scale, int64_t num_columns) {
  update_rows(out, FewRows<T>{row}, 1, scale, num_columns);
}

}  // namespace megatron_aqaa
