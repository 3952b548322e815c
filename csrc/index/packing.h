// Documents of given lengths into sequences of one capacity: best-fit decreasing. Plain C++, no Python.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace megatron_aqaa {

struct PackingPlan {
  std::vector<int64_t> offsets;  // [bins + 1]: bin b holds order[offsets[b]:offsets[b + 1]]
  std::vector<int64_t> order;    // [items], ascending within a bin
};

inline void check_lengths(const int64_t* lengths, int64_t count, int64_t capacity) {
  if (capacity < 1) throw std::invalid_argument("capacity must be at least 1, not " + std::to_string(capacity));
  for (int64_t i = 0; i < count; ++i) {
    if (lengths[i] >= 1 && lengths[i] <= capacity) continue;
    throw std::invalid_argument("item " + std::to_string(i) + " has length " + std::to_string(lengths[i]) +
                                ": lengths must lie in [1, " + std::to_string(capacity) +
                                "]; drop empty items and split or drop longer ones first");
  }
}

// Longest first; equal lengths in order of index.
inline std::vector<int64_t> by_decreasing_length(const int64_t* lengths, int64_t count) {
  std::vector<int64_t> items(count);
  std::iota(items.begin(), items.end(), 0);
  std::stable_sort(items.begin(), items.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  return items;
}

// Bin of each item. An item goes where the least room remains, to the bin opened first if several tie.
inline std::vector<int64_t> assign_bins(const int64_t* lengths, int64_t count, int64_t capacity, int64_t* num_bins) {
  std::vector<int64_t> bin_of(count);
  std::set<std::pair<int64_t, int64_t>> open;  // (room, bin)
  *num_bins = 0;
  const int64_t shortest = count == 0 ? 0 : *std::min_element(lengths, lengths + count);
  for (const int64_t item : by_decreasing_length(lengths, count)) {
    const auto fit = open.lower_bound({lengths[item], 0});
    const bool fits = fit != open.end();
    const int64_t room = (fits ? fit->first : capacity) - lengths[item];
    bin_of[item] = fits ? fit->second : (*num_bins)++;
    if (fits) open.erase(fit);
    if (room >= shortest) open.emplace(room, bin_of[item]);  // a bin with less room can take nothing more
  }
  return bin_of;
}

inline PackingPlan packing_plan(const int64_t* lengths, int64_t count, int64_t capacity) {
  check_lengths(lengths, count, capacity);
  int64_t num_bins = 0;
  const std::vector<int64_t> bin_of = assign_bins(lengths, count, capacity, &num_bins);
  PackingPlan plan{std::vector<int64_t>(num_bins + 1, 0), std::vector<int64_t>(count)};
  for (const int64_t bin : bin_of) ++plan.offsets[bin + 1];
  std::partial_sum(plan.offsets.begin(), plan.offsets.end(), plan.offsets.begin());
  std::vector<int64_t> next(plan.offsets.begin(), plan.offsets.end() - 1);
  for (int64_t item = 0; item < count; ++item) plan.order[next[bin_of[item]]++] = item;
  return plan;
}

}  // namespace megatron_aqaa
