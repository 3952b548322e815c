// Flat dual-codebook embedding: what both kernels are handed after the checks.
//
// No torch header here: the CUDA translation unit sees only the CUDA runtime.

#pragma once

#include <cstdint>

#include "host_device.h"

namespace megatron_aqaa {

constexpr int64_t kGroupSize = 5;      // [L L S S S], 120 ms
constexpr int64_t kNumModalities = 3;  // text, linguistic, semantic

// out[s, b, :] = scale * (weight[id - vocab_start] + type_weight[modality(id)] + group_position_weight[g[b, s]])
// for an id of this rank; 0 for another rank's. Table pointers may be null.
struct EmbeddingArguments {
  const int64_t* token_ids;           // [batch, length]
  const int64_t* group_positions;     // [batch, length], -1 = not in a group; null without a position table
  const void* weight;                 // [rows, hidden]
  const void* type_weight;            // [3, hidden]: text, linguistic, semantic
  const void* group_position_weight;  // [5, hidden]
  void* out;                          // [length, batch, hidden]
  int64_t batch, length, hidden, rows;
  int64_t vocab_start, vocab_size;
  int64_t linguistic_start, semantic_start, audio_stop;
  double scale;
};

// Row of `type_weight`: markers and padding, wherever they lie, count as text.
MEGATRON_AQAA_HOST_DEVICE inline int64_t modality(const EmbeddingArguments& a, int64_t id) {
  if (id < a.linguistic_start || id >= a.audio_stop) return 0;
  return id < a.semantic_start ? 1 : 2;
}

MEGATRON_AQAA_HOST_DEVICE inline bool is_token_id(const EmbeddingArguments& a, int64_t id) {
  return id >= 0 && id < a.vocab_size;
}

MEGATRON_AQAA_HOST_DEVICE inline bool is_group_position(int64_t g) { return g >= -1 && g < kGroupSize; }

}  // namespace megatron_aqaa
