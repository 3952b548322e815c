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

// As unsigned numbers, whose sum and difference are defined for whatever stands in an array.
inline int64_t id_of(int64_t code, int64_t start) {
  return static_cast<int64_t>(static_cast<uint64_t>(code) + static_cast<uint64_t>(start));
}

inline int64_t code_of(int64_t id, int64_t start) {
  return static_cast<int64_t>(static_cast<uint64_t>(id) - static_cast<uint64_t>(start));
}

// A group is checked as a whole, and looked at code by code only to say which one is wrong: a branch and an error of
// its own for each code took 2.4 ms a million ids instead of 0.4.
[[noreturn, gnu::noinline, gnu::cold]] inline void refuse_code(const int64_t* codes, int64_t count, int64_t index,
                                                               int64_t size, const char* name) {
  const int64_t bad = std::find_if(codes, codes + count, [&](int64_t code) { return !in_range(code, size); }) - codes;
  const std::string what = std::string(name) + "[" + std::to_string(index + bad) + "] = " + std::to_string(codes[bad]);
  if (codes[bad] < 0) throw std::invalid_argument(what + " is negative: pass codes from 0, before any offset is added");
  throw std::invalid_argument(what + " is no code of this codebook: they end at " + std::to_string(size - 1));
}

template <int64_t kCount>
inline bool add_start(const int64_t* codes, int64_t start, int64_t size, int64_t* ids) {
  bool valid = true;
  for (int64_t i = 0; i < kCount; ++i) {
    valid &= in_range(codes[i], size);
    ids[i] = id_of(codes[i], start);
  }
  return valid;
}

inline void interleave_codes(const int64_t* linguistic, const int64_t* semantic, int64_t num_groups,
                             const AudioRange& range, int64_t* out) {
  constexpr int64_t kL = kLinguisticPerGroup, kS = kSemanticPerGroup;
  const int64_t num_linguistic = range.num_linguistic(), num_semantic = range.num_semantic();
  const int64_t linguistic_start = range.linguistic_start, semantic_start = range.semantic_start;
  for (int64_t group = 0; group < num_groups; ++group, out += kTokensPerGroup) {
    const int64_t *l = linguistic + group * kL, *s = semantic + group * kS;
    if (!add_start<kL>(l, linguistic_start, num_linguistic, out))
      refuse_code(l, kL, group * kL, num_linguistic, "linguistic");
    if (!add_start<kS>(s, semantic_start, num_semantic, out + kL))
      refuse_code(s, kS, group * kS, num_semantic, "semantic");
  }
}

[[noreturn, gnu::noinline, gnu::cold]] inline void refuse_id(const int64_t* ids, int64_t index, int64_t start,
                                                             int64_t size, const char* name) {
  int64_t bad = 0;
  while (in_range(code_of(ids[bad], start), size)) ++bad;
  throw std::invalid_argument("token " + std::to_string(ids[bad]) + " at position " + std::to_string(index + bad) +
                              " breaks the group grammar [L L S S S]: a " + name + " id is due there, " +
                              (start + size == INT64_MAX
                                   ? "from " + std::to_string(start)
                                   : std::to_string(start) + " to " + std::to_string(start + size - 1)));
}

template <int64_t kCount>
inline bool take_start(const int64_t* ids, int64_t start, int64_t size, int64_t* codes) {
  bool valid = true;
  for (int64_t i = 0; i < kCount; ++i) {
    codes[i] = code_of(ids[i], start);
    valid &= in_range(codes[i], size);
  }
  return valid;
}

inline void deinterleave_codes(const int64_t* ids, int64_t num_groups, const AudioRange& range, int64_t* linguistic,
                               int64_t* semantic) {
  constexpr int64_t kL = kLinguisticPerGroup, kS = kSemanticPerGroup;
  const int64_t num_linguistic = range.num_linguistic(), num_semantic = range.num_semantic();
  const int64_t linguistic_start = range.linguistic_start, semantic_start = range.semantic_start;
  for (int64_t index = 0; index < num_groups * kTokensPerGroup; index += kTokensPerGroup) {
    if (!take_start<kL>(ids + index, linguistic_start, num_linguistic, linguistic))
      refuse_id(ids + index, index, linguistic_start, num_linguistic, "linguistic");
    if (!take_start<kS>(ids + index + kL, semantic_start, num_semantic, semantic))
      refuse_id(ids + index + kL, index + kL, semantic_start, num_semantic, "semantic");
    linguistic += kL;
    semantic += kS;
  }
}

}  // namespace megatron_aqaa
