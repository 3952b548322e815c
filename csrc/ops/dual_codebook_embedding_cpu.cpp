// Flat dual-codebook embedding on the CPU: one pass over the output.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "dual_codebook_embedding_host.h"
#include "embed_row.h"

namespace megatron_aqaa {
namespace {

void check_ids(const EmbeddingArguments& a) {
  const int64_t count = a.batch * a.length;
  const int64_t* end = a.token_ids + count;
  const int64_t* bad = std::find_if(a.token_ids, end, [&](int64_t id) { return !is_token_id(a, id); });
  if (bad == end) return;
  const int64_t index = bad - a.token_ids;
  STD_TORCH_CHECK(false, "token id ", *bad, " at batch ", index / a.length, ", position ", index % a.length,
                  " is outside the vocabulary [0, ", a.vocab_size, ")");
}

void check_group_positions(const EmbeddingArguments& a) {
  if (a.group_position_weight == nullptr) return;
  const int64_t* end = a.group_positions + a.batch * a.length;
  const int64_t* bad = std::find_if(a.group_positions, end, [](int64_t g) { return !is_group_position(g); });
  if (bad == end) return;
  const int64_t index = bad - a.group_positions;
  STD_TORCH_CHECK(false, "group position ", *bad, " at batch ", index / a.length, ", position ", index % a.length,
                  " is outside [-1, ", kGroupSize, ")");
}

// Place of the i-th row of the output, [length, batch, hidden], among the ids, [batch, length].
int64_t token_of(const EmbeddingArguments& a, int64_t i) { return i % a.batch * a.length + i / a.batch; }

template <typename T>
Terms<T> terms_of(const EmbeddingArguments& a, int64_t token) {
  const int64_t id = a.token_ids[token];
  const int64_t row = id - a.vocab_start;
  if (row < 0 || row >= a.rows) return {};  // another rank's token
  const int64_t group_position = a.group_position_weight == nullptr ? -1 : a.group_positions[token];
  return {table_row<T>(a.weight, row, a.hidden), table_row<T>(a.type_weight, modality(a, id), a.hidden),
          table_row<T>(a.group_position_weight, group_position, a.hidden)};
}

template <typename T, typename O>
void embed(const EmbeddingArguments& a) {
  const int64_t count = a.length * a.batch;
  const bool streamed = count * a.hidden * static_cast<int64_t>(sizeof(O)) >= kStreamedBytes;
  constexpr int64_t kTokensPerTask = 32;
  torch::stable::parallel_for(0, count, kTokensPerTask, [&](int64_t begin, int64_t end) {
    Terms<T> terms = terms_of<T>(a, token_of(a, begin));
    for (int64_t i = begin; i < end; ++i) {
      const Terms<T> next = i + 1 < end ? terms_of<T>(a, token_of(a, i + 1)) : Terms<T>{};
      write_row<T, O>(static_cast<O*>(a.out) + i * a.hidden, terms, next[0], a.scale, a.hidden, streamed);
      terms = next;
    }
    finish_streaming();
  });
}

void launch(const EmbeddingArguments& a, ScalarType dtype, ScalarType out_dtype) {
  check_ids(a);
  check_group_positions(a);
  dispatch_pair(dtype, out_dtype, "weight",
                [&](auto table, auto out) { embed<typename decltype(table)::type, typename decltype(out)::type>(a); });
}

Tensor dual_codebook_embedding_cpu(Tensor token_ids, Tensor weight, std::optional<Tensor> type_weight,
                                   std::optional<Tensor> group_position_weight, std::optional<Tensor> group_positions,
                                   int64_t vocab_start_index, int64_t vocab_size, int64_t linguistic_start,
                                   int64_t semantic_start, int64_t audio_stop, double scale,
                                   std::optional<ScalarType> out_dtype, bool /*deterministic: the backward's*/) {
  const EmbeddingTensors tensors{token_ids, weight, type_weight, group_position_weight, group_positions};
  const EmbeddingLayout layout{vocab_start_index, vocab_size, linguistic_start, semantic_start, audio_stop, scale};
  return run_dual_codebook_embedding(tensors, layout, out_dtype, launch);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_aqaa, CPU, m) {
  m.impl("dual_codebook_embedding", TORCH_BOX(&dual_codebook_embedding_cpu));
}

}  // namespace megatron_aqaa
