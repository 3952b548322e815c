// One row of an embedding's output on the CPU, whatever the form: the scaled sum of up to three rows of tables.

#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "rows.h"
#include "streaming.h"

namespace megatron_aqaa {

template <typename T>
using Terms = std::array<const T*, 3>;  // null: absent

// Row of a table, or null if there is no such table or the row is negative.
template <typename T>
const T* table_row(const void* table, int64_t row, int64_t hidden) {
  return table == nullptr || row < 0 ? nullptr : static_cast<const T*>(table) + row * hidden;
}

// `streamed`: written past the cache.
inline void copy_row(void* out, const void* row, int64_t bytes, bool streamed) {
  if (streamed) return stream(out, row, bytes);
  std::memcpy(out, row, bytes);
}

// out = scale * (sum of `count` terms from column `first` on), summed in fp32 (fp64 for fp64) and rounded once.
template <typename T, typename O>
void sum_tile(O* out, const Terms<T>& terms, int64_t count, double scale, int64_t first, int64_t columns) {
  if (count == 1) return store_row(out, terms[0] + first, scale, columns);
  accumulate_t<T> sum[kTileColumns];
  store_row(sum, terms[0] + first, 1.0, columns);
  for (int64_t i = 1; i < count; ++i) update_row(sum, terms[i] + first, 1.0, columns);
  store_row(out, sum, scale, columns);
}

// One row of the output; zeros if all terms are absent. `next` is what a coming call reads first, or null.
template <typename T, typename O>
void write_row(O* out, Terms<T> terms, const T* next, double scale, int64_t hidden, bool streamed) {
  const int64_t count = std::remove(terms.begin(), terms.end(), nullptr) - terms.begin();
  const bool copied = std::is_same_v<T, O> && count == 1 && scale == 1.0;
  for (int64_t first = 0; first < hidden; first += kTileColumns) {
    const int64_t columns = std::min(kTileColumns, hidden - first);
    const int64_t bytes = columns * static_cast<int64_t>(sizeof(O));
    if (next != nullptr) prefetch(next + first, columns);
    if (count == 0) {
      std::memset(static_cast<void*>(out + first), 0, bytes);
    } else if (copied) {
      copy_row(out + first, terms[0] + first, bytes, streamed);
    } else {
      O rounded[kTileColumns];
      sum_tile(rounded, terms, count, scale, first, columns);
      copy_row(out + first, rounded, bytes, streamed);
    }
  }
}

}  // namespace megatron_aqaa
