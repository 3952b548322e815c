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
using Terms = FewRows<T>;  // null: absent

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

// The terms from column `first` on.
template <typename T>
Terms<T> from_column(const Terms<T>& terms, int64_t count, int64_t first) {
  Terms<T> shifted{};
  for (int64_t i = 0; i < count; ++i) shifted[i] = terms[i] + first;
  return shifted;
}

// One row of the output: the scaled sum of its terms, in fp32 (fp64 for fp64) and rounded once; zeros if all are
// absent. `next` is what a coming call reads first, or null.
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
      store_rows(rounded, from_column(terms, count, first), count, scale, columns);
      copy_row(out + first, rounded, bytes, streamed);
    }
  }
}

}  // namespace megatron_aqaa
