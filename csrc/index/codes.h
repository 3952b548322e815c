// Order of the two codebooks in one stream: groups [L L S S S] of 120 ms. Plain C++, no Python.

#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace megatron_aqaa {

constexpr int64_t kLinguisticPerGroup = 2;
constexpr int64_t kSemanticPerGroup = 3;
constexpr int64_t kTokensPerGroup = kLinguisticPerGroup + kSemanticPerGroup;

inline int64_t count_groups(int64_t num_linguistic, int64_t num_semantic) {
  return std::min(num_linguistic / kLinguisticPerGroup, num_semantic / kSemanticPerGroup);
}

inline int64_t checked_code(const int64_t* codes, int64_t index, const char* name) {
  if (codes[index] >= 0) return codes[index];
  throw std::invalid_argument(std::string(name) + "[" + std::to_string(index) + "] = " + std::to_string(codes[index]) +
                              " is negative: pass codes from 0, before any offset is added");
}

inline void interleave_codes(const int64_t* linguistic, const int64_t* semantic, int64_t num_groups,
                             int64_t linguistic_start, int64_t semantic_start, int64_t* out) {
  for (int64_t group = 0; group < num_groups; ++group) {
    for (int64_t i = 0; i < kLinguisticPerGroup; ++i)
      *out++ = linguistic_start + checked_code(linguistic, group * kLinguisticPerGroup + i, "linguistic");
    for (int64_t i = 0; i < kSemanticPerGroup; ++i)
      *out++ = semantic_start + checked_code(semantic, group * kSemanticPerGroup + i, "semantic");
  }
}

// A linguistic id lies in [linguistic_start, semantic_start) and a semantic one at or above semantic_start; with both
// starts 0 (plain codes) the two cannot be told apart and only negative values are refused.
inline int64_t checked_id(const int64_t* ids, int64_t index, int64_t start, int64_t stop, const char* name) {
  if (ids[index] >= start && ids[index] < stop) return ids[index] - start;
  throw std::invalid_argument("token " + std::to_string(ids[index]) + " at position " + std::to_string(index) +
                              " breaks the group grammar [L L S S S]: a " + name + " id is due there");
}

inline void deinterleave_codes(const int64_t* ids, int64_t num_groups, int64_t linguistic_start, int64_t semantic_start,
                               int64_t* linguistic, int64_t* semantic) {
  const int64_t no_limit = INT64_MAX;
  const int64_t linguistic_stop = linguistic_start < semantic_start ? semantic_start : no_limit;
  for (int64_t index = 0; index < num_groups * kTokensPerGroup;) {
    for (int64_t i = 0; i < kLinguisticPerGroup; ++i, ++index)
      *linguistic++ = checked_id(ids, index, linguistic_start, linguistic_stop, "linguistic");
    for (int64_t i = 0; i < kSemanticPerGroup; ++i, ++index)
      *semantic++ = checked_id(ids, index, semantic_start, no_limit, "semantic");
  }
}

}  // namespace megatron_aqaa
