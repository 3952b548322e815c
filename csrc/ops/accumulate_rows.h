// Rows of a gradient added into the rows of a table, the backward of every embedding form.
//
// `rows` is sorted and `order` says which gradient row stands at each place, so that equal rows are neighbours: nothing
// is atomic, and the result depends on neither the number of threads nor the order in which they run.
//
// A row that occurs thousands of times (padding, a table of three rows) must not be one task. The sorted places are cut
// into chunks, and a run of equal rows at the cuts into pieces. A piece that is the whole run goes to its row at once;
// the sums of the others wait in `partial`, and the chunk in which a run begins then adds up its pieces in order.

#pragma once

#include <cstdint>

#include "host_device.h"

namespace megatron_aqaa {

constexpr int64_t kChunk = 64;

// destination[rows[i], :] += scale * gradient[order[i], :]; negative rows are skipped.
struct AccumulateArguments {
  void* destination;     // [num_rows, hidden]
  const void* gradient;  // [count, hidden], rows `gradient_stride` elements apart
  const int64_t* rows;   // [count], ascending unless `order` is null
  const int64_t* order;  // [count]; null: as they come, by atomic addition
  void* partial;         // [chunks, 2, hidden] in fp32 (fp64 for fp64): piece at a chunk's begin, piece at its end
  int64_t num_rows, hidden, count, gradient_stride;
  double scale;
};

MEGATRON_AQAA_HOST_DEVICE inline int64_t num_chunks(int64_t count) { return (count + kChunk - 1) / kChunk; }

// Whether a run of equal rows goes on from the chunk before into this one.
MEGATRON_AQAA_HOST_DEVICE inline bool is_continued(const AccumulateArguments& a, int64_t chunk) {
  const int64_t i = chunk * kChunk;
  return i > 0 && i < a.count && a.rows[i - 1] == a.rows[i];
}

// Row of `partial` (as [2 * chunks, hidden]) for the piece [begin, end), or -1 if it is a whole run.
MEGATRON_AQAA_HOST_DEVICE inline int64_t partial_row(const AccumulateArguments& a, int64_t begin, int64_t end) {
  const int64_t chunk = begin / kChunk;
  if (begin == chunk * kChunk && is_continued(a, chunk)) return 2 * chunk;
  if (end == (chunk + 1) * kChunk && is_continued(a, chunk + 1)) return 2 * chunk + 1;
  return -1;
}

// Whether a run of several pieces begins in this chunk; it is the run at the chunk's end.
MEGATRON_AQAA_HOST_DEVICE inline bool begins_long_run(const AccumulateArguments& a, int64_t chunk) {
  if (!is_continued(a, chunk + 1)) return false;
  const int64_t row = a.rows[(chunk + 1) * kChunk];
  return row >= 0 && row < a.num_rows && !(is_continued(a, chunk) && a.rows[chunk * kChunk] == row);
}

// Whether the run at the end of chunk `first` still goes on at the begin of `chunk`, a later one.
MEGATRON_AQAA_HOST_DEVICE inline bool reaches(const AccumulateArguments& a, int64_t first, int64_t chunk) {
  return chunk * kChunk < a.count && a.rows[chunk * kChunk] == a.rows[(first + 1) * kChunk];
}

}  // namespace megatron_aqaa
