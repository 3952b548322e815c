// Host function of the flat dual-codebook embedding, the same for both devices: checks, sizes, early return, launch.

#pragma once

#include "dual_codebook_embedding.h"
#include "tensors.h"

namespace megatron_aqaa {

struct EmbeddingTensors {
  Tensor token_ids;  // [B, S] int64
  Tensor weight;     // [rows, H]
  std::optional<Tensor> type_weight, group_position_weight, group_positions;
};

struct EmbeddingLayout {
  int64_t vocab_start, vocab_size, linguistic_start, semantic_start, audio_stop;
  double scale;
};

inline void check_table(const std::optional<Tensor>& table, const Tensor& weight, int64_t rows, const char* what) {
  if (!table.has_value()) return;
  check_same_device(*table, weight, what);
  STD_TORCH_CHECK(table->dim() == 2 && table->size(0) == rows && table->size(1) == weight.size(1), what, " must be [",
                  rows, ", ", weight.size(1), "]");
  STD_TORCH_CHECK(table->scalar_type() == weight.scalar_type(), what, " must have the dtype of weight");
}

inline void check_embedding(const EmbeddingTensors& t, const EmbeddingLayout& layout) {
  STD_TORCH_CHECK(t.token_ids.dim() == 2, "token_ids must be [B, S], not ", t.token_ids.dim(), "-dimensional");
  STD_TORCH_CHECK(t.weight.dim() == 2, "weight must be [rows, H], not ", t.weight.dim(), "-dimensional");
  check_long(t.token_ids, "token_ids");
  check_same_device(t.token_ids, t.weight, "token_ids");
  STD_TORCH_CHECK(layout.vocab_start >= 0, "vocab_start_index = ", layout.vocab_start, " is negative");
  check_table(t.type_weight, t.weight, kNumModalities, "type_weight");
  check_table(t.group_position_weight, t.weight, kGroupSize, "group_position_weight");
  STD_TORCH_CHECK(t.group_position_weight.has_value() == t.group_positions.has_value(),
                  "group_position_weight and group_positions go together");
  if (!t.group_positions.has_value()) return;
  check_long(*t.group_positions, "group_positions");
  check_same_device(*t.group_positions, t.weight, "group_positions");
  STD_TORCH_CHECK(t.group_positions->dim() == 2 && t.group_positions->size(0) == t.token_ids.size(0) &&
                      t.group_positions->size(1) == t.token_ids.size(1),
                  "group_positions must have the shape of token_ids");
}

// `launch(arguments, table dtype, out dtype)` fills the output.
template <typename Launch>
Tensor run_dual_codebook_embedding(const EmbeddingTensors& given, const EmbeddingLayout& layout,
                                   std::optional<ScalarType> given_out_dtype, Launch&& launch) {
  check_embedding(given, layout);
  const ScalarType dtype = given.weight.scalar_type(), out_dtype = given_out_dtype.value_or(dtype);
  check_out_dtype(out_dtype, dtype);
  const EmbeddingTensors t{torch::stable::contiguous(given.token_ids), torch::stable::contiguous(given.weight),
                           contiguous(given.type_weight), contiguous(given.group_position_weight),
                           contiguous(given.group_positions)};
  const int64_t batch = t.token_ids.size(0), length = t.token_ids.size(1), hidden = t.weight.size(1);
  const int64_t sizes[] = {length, batch, hidden};
  Tensor out = torch::stable::new_empty(t.weight, {sizes, 3}, out_dtype);
  if (out.numel() == 0) return out;
  launch(EmbeddingArguments{t.token_ids.const_data_ptr<int64_t>(),
                            static_cast<const int64_t*>(data_or_null(t.group_positions)), t.weight.const_data_ptr(),
                            data_or_null(t.type_weight), data_or_null(t.group_position_weight), out.mutable_data_ptr(),
                            batch, length, hidden, t.weight.size(0), layout.vocab_start, layout.vocab_size,
                            layout.linguistic_start, layout.semantic_start, layout.audio_stop, layout.scale},
         dtype, out_dtype);
  return out;
}

}  // namespace megatron_aqaa
