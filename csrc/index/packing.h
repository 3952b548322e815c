// Documents of given lengths into sequences of one capacity: best-fit decreasing. Plain C++, no Python.

#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace megatron_aqaa {

constexpr int64_t kLongest = int64_t{1} << 24;  // tokens of a sequence; memory grows with the capacity

struct PackingPlan {
  std::vector<int64_t> offsets;  // [bins + 1]: bin b holds order[offsets[b]:offsets[b + 1]]
  std::vector<int64_t> order;    // [items], ascending within a bin
};

inline void check_sizes(int64_t count, int64_t capacity) {
  if (count > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument(std::to_string(count) + " items are more than one plan can hold (2,147,483,647)");
  }
  if (capacity < 1) throw std::invalid_argument("capacity must be at least 1, not " + std::to_string(capacity));
  if (capacity > kLongest) {
    throw std::invalid_argument("capacity must be at most " + std::to_string(kLongest) + ", not " +
                                std::to_string(capacity));
  }
}

[[noreturn]] inline void refuse_length(int64_t item, int64_t length, int64_t capacity) {
  throw std::invalid_argument("item " + std::to_string(item) + " has length " + std::to_string(length) +
                              ": lengths must lie in [1, " + std::to_string(capacity) +
                              "]; drop empty items and split or drop longer ones first");
}

// Numbers of items and bins. Half as wide as what the plan is returned in, so that the tables by length and by room
// (32 KB each at 8,192 tokens) stay in the first-level cache.
using Number = int32_t;

// Longest first; equal lengths in order of index. Counted, not compared: lengths are small whole numbers.
inline std::vector<Number> by_decreasing_length(const int64_t* lengths, Number count, int64_t capacity) {
  std::vector<Number> next(capacity + 2, 0);  // next[length]: place of the next item of that length
  for (Number i = 0; i < count; ++i) {
    if (lengths[i] < 1 || lengths[i] > capacity) refuse_length(i, lengths[i], capacity);
    ++next[lengths[i] - 1];
  }
  for (int64_t length = capacity - 1; length >= 0; --length) next[length] += next[length + 1];
  std::vector<Number> items(count);
  for (Number i = 0; i < count; ++i) items[next[lengths[i]]++] = i;
  return items;
}

// Bins that can still take something, by the room they have left: a stack of bins for each room, and a bit for each
// stack that is not empty, with a bit for each word of bits that is not zero, so that the least sufficient room is
// found in a few steps where a search tree takes a dozen cache misses.
class OpenBins {
 public:
  explicit OpenBins(int64_t capacity)
      : top_(capacity + 1, kNone), words_(capacity / 64 + 1, 0), summary_(words_.size() / 64 + 1, 0) {}

  void push(int64_t room, Number bin) {
    if (bin >= static_cast<Number>(below_.size())) below_.resize(bin + 1);
    below_[bin] = top_[room];
    top_[room] = bin;
    words_[room / 64] |= uint64_t{1} << room % 64;
    summary_[room / 4096] |= uint64_t{1} << room / 64 % 64;
  }

  // Least room of at least `wanted`, or kNone.
  int64_t least_room(int64_t wanted) const {
    const uint64_t rest = words_[wanted / 64] >> wanted % 64;
    if (rest != 0) return wanted + std::countr_zero(rest);
    const int64_t word = next_word(wanted / 64 + 1);
    return word == kNone ? kNone : word * 64 + std::countr_zero(words_[word]);
  }

  Number pop(int64_t room) {
    const Number bin = top_[room];
    top_[room] = below_[bin];
    if (top_[room] != kNone) return bin;
    words_[room / 64] &= ~(uint64_t{1} << room % 64);
    if (words_[room / 64] == 0) summary_[room / 4096] &= ~(uint64_t{1} << room / 64 % 64);
    return bin;
  }

  static constexpr Number kNone = -1;

 private:
  // First word from `word` on that is not zero, or kNone.
  int64_t next_word(int64_t word) const {
    if (word >= static_cast<int64_t>(words_.size())) return kNone;
    uint64_t bits = summary_[word / 64] >> word % 64 << word % 64;
    int64_t place = word / 64;
    while (bits == 0 && ++place < static_cast<int64_t>(summary_.size())) bits = summary_[place];
    return bits == 0 ? kNone : place * 64 + std::countr_zero(bits);
  }

  std::vector<Number> top_, below_;        // by room; by bin
  std::vector<uint64_t> words_, summary_;  // a bit for each room; a bit for each word
};

// Bin of each item. An item goes where the least room remains, to the bin filled last if several tie.
inline std::vector<Number> assign_bins(const int64_t* lengths, Number count, int64_t capacity, Number* num_bins) {
  std::vector<Number> bin_of(count);
  OpenBins open(capacity);
  *num_bins = 0;
  const std::vector<Number> items = by_decreasing_length(lengths, count, capacity);
  const int64_t shortest = count == 0 ? 0 : lengths[items.back()];
  for (const Number item : items) {
    const int64_t found = open.least_room(lengths[item]);
    const bool fits = found != OpenBins::kNone;
    bin_of[item] = fits ? open.pop(found) : (*num_bins)++;
    const int64_t room = (fits ? found : capacity) - lengths[item];
    if (room >= shortest) open.push(room, bin_of[item]);  // a bin with less room can take nothing more
  }
  return bin_of;
}

inline PackingPlan packing_plan(const int64_t* lengths, int64_t count, int64_t capacity) {
  check_sizes(count, capacity);
  Number num_bins = 0;
  const std::vector<Number> bin_of = assign_bins(lengths, static_cast<Number>(count), capacity, &num_bins);
  PackingPlan plan{std::vector<int64_t>(num_bins + 1, 0), std::vector<int64_t>(count)};
  for (const Number bin : bin_of) ++plan.offsets[bin + 1];
  std::partial_sum(plan.offsets.begin(), plan.offsets.end(), plan.offsets.begin());
  std::vector<int64_t> next(plan.offsets.begin(), plan.offsets.end() - 1);
  for (int64_t item = 0; item < count; ++item) plan.order[next[bin_of[item]]++] = item;
  return plan;
}

}  // namespace megatron_aqaa
