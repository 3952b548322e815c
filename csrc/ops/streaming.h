// How the CPU kernels move rows that lie far apart: fetched ahead of their use, and written past the cache.

#pragma once

#include <cstdint>

namespace megatron_aqaa {

// From this size an output would not be in the cache any more when it is read again.
constexpr int64_t kStreamedBytes = int64_t{16} << 20;

// Rows lie far apart and are short: the hardware's own prefetch comes too late.
template <typename T>
void prefetch(const T* row, int64_t num_columns) {
  constexpr int64_t kPerLine = 64 / sizeof(T);
  for (int64_t i = 0; i < num_columns; i += kPerLine) __builtin_prefetch(row + i, 0, 2);
}

// memcpy that does not first read the lines that it overwrites; `finish_streaming` must follow on the same thread.
void stream(void* out, const void* in, int64_t bytes);

// Makes streamed stores visible to other threads.
void finish_streaming();

}  // namespace megatron_aqaa
