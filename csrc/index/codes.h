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

// Where the ids of each codebook lie: linguistic from `linguistic_start` to `semantic_start`, semantic from there to
// `audio_stop`. With both starts 0 (plain codes) the codebooks cannot be told apart; a negative `audio_stop` is none.
struct AudioRange {
  int64_t linguistic_start, semantic_start, audio_stop;

  int64_t num_linguistic() const {
    return linguistic_start < semantic_start ? semantic_start - linguistic_start : num_semantic();
  }
  int64_t num_semantic() const { return (audio_stop < 0 ? INT64_MAX : audio_stop) - semantic_start; }
};

// As unsigned a negative number lies above every limit: one comparison for both.
inline bool in_range(int64_t code, int64_t size) { return static_cast<uint64_t>(code) < static_cast<uint64_t>(size); }

inline int64_t checked_code(const int64_t* codes, int64_t index, int64_t size, const char* name) {
  const int64_t code = codes[index];
  if (in_range(code, size)) return code;
  const std::string what = std::string(name) + "[" + std::to_string(index) + "] = " + std::to_string(code);
  if (code < 0) throw std::invalid_argument(what + " is negative: pass codes from 0, before any offset is added");
  throw std::invalid_argument(what + " is no code of this codebook: they end at " + std::to_string(size - 1));
}

inline void interleave_codes(const int64_t* linguistic, const int64_t* semantic, int64_t num_groups,
                             const AudioRange& range, int64_t* out) {
  const int64_t num_linguistic = range.num_linguistic(), num_semantic = range.num_semantic();
  for (int64_t group = 0; group < num_groups; ++group) {
    for (int64_t i = 0; i < kLinguisticPerGroup; ++i)
      *out++ = range.linguistic_start +
               checked_code(linguistic, group * kLinguisticPerGroup + i, num_linguistic, "linguistic");
    for (int64_t i = 0; i < kSemanticPerGroup; ++i)
      *out++ = range.semantic_start + checked_code(semantic, group * kSemanticPerGroup + i, num_semantic, "semantic");
  }
}

inline int64_t checked_id(const int64_t* ids, int64_t index, int64_t start, int64_t size, const char* name) {
  const auto code = static_cast<int64_t>(static_cast<uint64_t>(ids[index]) - static_cast<uint64_t>(start));
  if (in_range(code, size)) return code;
  throw std::invalid_argument("token " + std::to_string(ids[index]) + " at position " + std::to_string(index) +
                              " breaks the group grammar [L L S S S]: a " + name + " id is due there, " +
                              (start + size == INT64_MAX
                                   ? "from " + std::to_string(start)
                                   : std::to_string(start) + " to " + std::to_string(start + size - 1)));
}

inline void deinterleave_codes(const int64_t* ids, int64_t num_groups, const AudioRange& range, int64_t* linguistic,
                               int64_t* semantic) {
  const int64_t num_linguistic = range.num_linguistic(), num_semantic = range.num_semantic();
  for (int64_t index = 0; index < num_groups * kTokensPerGroup;) {
    for (int64_t i = 0; i < kLinguisticPerGroup; ++i, ++index)
      *linguistic++ = checked_id(ids, index, range.linguistic_start, num_linguistic, "linguistic");
    for (int64_t i = 0; i < kSemanticPerGroup; ++i, ++index)
      *semantic++ = checked_id(ids, index, range.semantic_start, num_semantic, "semantic");
  }
}

}  // namespace megatron_aqaa
