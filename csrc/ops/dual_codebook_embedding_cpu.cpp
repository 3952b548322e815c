// Flat dual-codebook embedding on the CPU: one pass over the output, one tile of a row at a time.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "dual_codebook_embedding_host.h"
#include "rows.h"

namespace megatron_aqaa {
namespace {

void check_ids(const EmbeddingArguments& a) {
  const int64_t count = a.batch * a.length;
  const int64_t* end = a.token_ids + count;
  const int64_t* bad = std::find_if(a.token_ids, end, [&](int64_t id) { return id < 0 || id >= a.vocab_size; });
  if (bad == end) return;
  const int64_t index = bad - a.token_ids;
  STD_TORCH_CHECK(false, "token id ", *bad, " at batch ", index / a.length, ", position ", index % a.length,
                  " is outside the vocabulary [0, ", a.vocab_size, ")");
}

void check_group_positions(const EmbeddingArguments& a) {
  if (a.group_position_weight == nullptr) return;
  const int64_t* end = a.group_positions + a.batch * a.length;
  const int64_t* bad = std::find_if(a.group_positions, end, [](int64_t g) { return g < -1 || g >= kGroupSize; });
  if (bad == end) return;
  const int64_t index = bad - a.group_positions;
  STD_TORCH_CHECK(false, "group position ", *bad, " at batch ", index / a.length, ", position ", index % a.length,
                  " is outside [-1, ", kGroupSize, ")");
}

template <typename T>
const T* table_row(const void* table, int64_t row, int64_t hidden) {
  return table == nullptr || row < 0 ? nullptr : static_cast<const T*>(table) + row * hidden;
}

template <typename T>
void sum_rows(T* out, const T* word, const T* type, const T* group_position, double scale, int64_t hidden) {
  accumulate_t<T> sum[kTileColumns];
  for (int64_t begin = 0; begin < hidden; begin += kTileColumns) {
    const int64_t columns = std::min(kTileColumns, hidden - begin);
    std::fill_n(sum, columns, accumulate_t<T>(0));
    add_row(sum, word + begin, columns);
    if (type != nullptr) add_row(sum, type + begin, columns);
    if (group_position != nullptr) add_row(sum, group_position + begin, columns);
    store_row(out + begin, sum, scale, columns);
  }
}

template <typename T>
void embed_token(const EmbeddingArguments& a, int64_t batch_index, int64_t position) {
  T* out = static_cast<T*>(a.out) + (position * a.batch + batch_index) * a.hidden;
  const int64_t token = batch_index * a.length + position;
  const int64_t id = a.token_ids[token];
  const int64_t row = id - a.vocab_start;
  if (row < 0 || row >= a.rows) {
    std::memset(out, 0, a.hidden * sizeof(T));
    return;
  }
  const T* word = table_row<T>(a.weight, row, a.hidden);
  const T* type = table_row<T>(a.type_weight, modality(a, id), a.hidden);
  const T* group_position = a.group_position_weight == nullptr
                                ? nullptr
                                : table_row<T>(a.group_position_weight, a.group_positions[token], a.hidden);
  if (type == nullptr && group_position == nullptr && a.scale == 1.0) {
    std::memcpy(out, word, a.hidden * sizeof(T));
  } else {
    sum_rows(out, word, type, group_position, a.scale, a.hidden);
  }
}

void launch(const EmbeddingArguments& a, ScalarType dtype) {
  check_ids(a);
  check_group_positions(a);
  constexpr int64_t kTokensPerTask = 32;
  dispatch_floating(dtype, "weight", [&](auto tag) {
    using T = typename decltype(tag)::type;
    torch::stable::parallel_for(0, a.length * a.batch, kTokensPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) embed_token<T>(a, i % a.batch, i / a.batch);
    });
  });
}

Tensor dual_codebook_embedding_cpu(Tensor token_ids, Tensor weight, std::optional<Tensor> type_weight,
                                   std::optional<Tensor> group_position_weight, std::optional<Tensor> group_positions,
                                   int64_t vocab_start_index, int64_t vocab_size, int64_t linguistic_start,
                                   int64_t semantic_start, int64_t audio_stop, double scale) {
  const EmbeddingTensors tensors{token_ids, weight, type_weight, group_position_weight, group_positions};
  const EmbeddingLayout layout{vocab_start_index, vocab_size, linguistic_start, semantic_start, audio_stop, scale};
  return run_dual_codebook_embedding(tensors, layout, launch);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_aqaa, CPU, m) {
  m.impl("dual_codebook_embedding", TORCH_BOX(&dual_codebook_embedding_cpu));
}

}  // namespace megatron_aqaa
