// accumulate_rows_ on the CPU: a task is one chunk of the sorted places.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "accumulate_rows_host.h"
#include "rows.h"
#include "streaming.h"
#include "tasks.h"

namespace megatron_aqaa {
namespace {

// The only look at the values before they become addresses.
void check_values(const AccumulateArguments& a) {
  STD_TORCH_CHECK(a.order != nullptr, "order is needed: on the CPU rows are added in order");
  for (int64_t i = 0; i < a.count; ++i) {
    STD_TORCH_CHECK(a.order[i] >= 0 && a.order[i] < a.count, "order[", i, "] = ", a.order[i], " is outside [0, ",
                    a.count, ")");
    STD_TORCH_CHECK(a.rows[i] < a.num_rows, "rows[", i, "] = ", a.rows[i], " is outside the table of ", a.num_rows,
                    " rows");
    STD_TORCH_CHECK(i == 0 || a.rows[i - 1] <= a.rows[i], "rows must be ascending, but rows[", i, "] = ", a.rows[i],
                    " follows ", i == 0 ? 0 : a.rows[i - 1]);
  }
}

// Columns [first, first + count) of a row.
struct Tile {
  int64_t first, count;
};

template <typename D, typename G>
struct Rows {
  using A = accumulate_t<G>;
  const AccumulateArguments& a;

  D* destination(int64_t i, Tile t) const { return static_cast<D*>(a.destination) + a.rows[i] * a.hidden + t.first; }
  A* partial(int64_t row, Tile t) const { return static_cast<A*>(a.partial) + row * a.hidden + t.first; }
  const G* gradient(int64_t i, Tile t) const {
    return static_cast<const G*>(a.gradient) + a.order[i] * a.gradient_stride + t.first;
  }
};

Tile tile_at(const AccumulateArguments& a, int64_t first) { return {first, std::min(kTileColumns, a.hidden - first)}; }

// Gradients that are fetched ahead.
constexpr int64_t kAhead = 4;

// One tile of the piece [begin, end).
template <typename D, typename G>
void sum_tile(const Rows<D, G>& rows, int64_t begin, int64_t end, int64_t slot, Tile t) {
  const int64_t few = std::min<int64_t>(end - begin, std::tuple_size_v<FewRows<G>>);
  FewRows<G> first{};
  for (int64_t i = 0; i < few; ++i) first[i] = rows.gradient(begin + i, t);
  if (slot < 0 && end - begin == few) return update_rows(rows.destination(begin, t), first, few, rows.a.scale, t.count);
  accumulate_t<G> on_stack[kTileColumns];
  accumulate_t<G>* sum = slot < 0 ? on_stack : rows.partial(slot, t);
  store_rows(sum, first, few, 1.0, t.count);
  for (int64_t i = begin + few; i < end; ++i) {
    if (i + kAhead < end) prefetch(rows.gradient(i + kAhead, t), t.count);
    update_row(sum, rows.gradient(i, t), 1.0, t.count);
  }
  if (slot < 0) update_row(rows.destination(begin, t), sum, rows.a.scale, t.count);
}

// Fetches a tile of the piece that begins at `begin`: its sum, and as many of its gradients as lie before `stop`.
template <typename D, typename G>
void fetch(const Rows<D, G>& rows, int64_t begin, int64_t stop, Tile t) {
  if (begin < stop) prefetch(rows.destination(begin, t), t.count);
  for (int64_t i = begin; i < stop && rows.a.rows[i] == rows.a.rows[begin]; ++i) prefetch(rows.gradient(i, t), t.count);
}

// The piece that begins at `begin`, tile by tile; returns its end. `stop` is the end of the chunk.
template <typename D, typename G>
int64_t sum_piece(const Rows<D, G>& rows, int64_t begin, int64_t stop) {
  const AccumulateArguments& a = rows.a;
  const int64_t end = std::upper_bound(a.rows + begin, a.rows + stop, a.rows[begin]) - a.rows;
  const int64_t slot = partial_row(a, begin, end);
  const int64_t next_end = std::min(end + kAhead, stop);
  for (int64_t first = 0; first < a.hidden; first += kTileColumns) {
    if (first + kTileColumns < a.hidden) {
      fetch(rows, begin, std::min(begin + kAhead, end), tile_at(a, first + kTileColumns));
    } else {
      fetch(rows, end, next_end, tile_at(a, 0));
    }
    sum_tile(rows, begin, end, slot, tile_at(a, first));
  }
  return end;
}

template <typename D, typename G>
void sum_chunk(const Rows<D, G>& rows, int64_t chunk) {
  const AccumulateArguments& a = rows.a;
  const int64_t begin = chunk * kChunk, stop = std::min(begin + kChunk, a.count);
  int64_t i = std::lower_bound(a.rows + begin, a.rows + stop, 0) - a.rows;  // negative rows are skipped
  while (i < stop) i = sum_piece(rows, i, stop);
}

// Adds up the pieces of the long run that begins in `chunk`, if one does.
template <typename D, typename G>
void combine_pieces(const Rows<D, G>& rows, int64_t chunk) {
  const AccumulateArguments& a = rows.a;
  if (!begins_long_run(a, chunk)) return;
  const Tile whole = {0, a.hidden};
  accumulate_t<G>* sum = rows.partial(2 * chunk + 1, whole);
  for (int64_t c = chunk + 1; reaches(a, chunk, c); ++c) update_row(sum, rows.partial(2 * c, whole), 1.0, a.hidden);
  update_row(rows.destination((chunk + 1) * kChunk, whole), sum, a.scale, a.hidden);
}

template <typename D, typename G>
void accumulate(const AccumulateArguments& a) {
  const Rows<D, G> rows{a};
  for_each_task(num_chunks(a.count), [&](int64_t chunk) { sum_chunk(rows, chunk); });
  for_each_task(num_chunks(a.count), [&](int64_t chunk) { combine_pieces(rows, chunk); });
}

void launch(const AccumulateArguments& a, ScalarType destination_dtype, ScalarType gradient_dtype) {
  check_values(a);
  dispatch_pair(destination_dtype, gradient_dtype, "destination", [&](auto destination, auto gradient) {
    accumulate<typename decltype(destination)::type, typename decltype(gradient)::type>(a);
  });
}

void accumulate_rows_cpu(Tensor destination, Tensor gradient, Tensor rows, std::optional<Tensor> order, double scale) {
  run_accumulate_rows(destination, gradient, rows, order, scale, launch);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_aqaa, CPU, m) { m.impl("accumulate_rows_", TORCH_BOX(&accumulate_rows_cpu)); }

}  // namespace megatron_aqaa
