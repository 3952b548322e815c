// Rows of a gradient added into the rows of a table, the backward of every embedding form.
//
// `rows` is sorted and `order` says which gradient row stands at each place, so that equal rows are neighbours: one
// task owns one destination row, nothing is atomic, and the result does not depend on the number of threads.

#pragma once

#include <cstdint>

namespace megatron_aqaa {

// destination[rows[i], :] += scale * gradient[order[i], :]; negative rows are skipped.
struct AccumulateArguments {
  void* destination;     // [num_rows, hidden], fp32 or the gradient's dtype
  const void* gradient;  // [count, hidden]
  const int64_t* rows;   // [count], ascending
  const int64_t* order;  // [count]
  int64_t num_rows, hidden, count;
  double scale;
};

}  // namespace megatron_aqaa
