// Flat dual-codebook embedding on a GPU: host side.

#include <torch/csrc/stable/library.h>

#include "cuda_host.h"
#include "dual_codebook_embedding_host.h"

namespace megatron_aqaa {
namespace {

Tensor dual_codebook_embedding_cuda(Tensor token_ids, Tensor weight, std::optional<Tensor> type_weight,
                                    std::optional<Tensor> group_position_weight, std::optional<Tensor> group_positions,
                                    int64_t vocab_start_index, int64_t vocab_size, int64_t linguistic_start,
                                    int64_t semantic_start, int64_t audio_stop, double scale,
                                    std::optional<ScalarType> out_dtype, bool /*deterministic: the backward's*/) {
  const torch::stable::accelerator::DeviceGuard guard(weight.get_device_index());
  const EmbeddingTensors tensors{token_ids, weight, type_weight, group_position_weight, group_positions};
  const EmbeddingLayout layout{vocab_start_index, vocab_size, linguistic_start, semantic_start, audio_stop, scale};
  const auto launch = [&](const EmbeddingArguments& arguments, ScalarType table, ScalarType out) {
    check_launch(launch_dual_codebook_embedding(arguments, element_of(table), element_of(out), current_stream(weight)),
                 "dual_codebook_embedding");
  };
  return run_dual_codebook_embedding(tensors, layout, out_dtype, launch);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_aqaa, CUDA, m) {
  m.impl("dual_codebook_embedding", TORCH_BOX(&dual_codebook_embedding_cuda));
}

}  // namespace megatron_aqaa
