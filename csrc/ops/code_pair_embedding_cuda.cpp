// Two-column dual-codebook embedding on a GPU: host side.

#include <torch/csrc/stable/library.h>

#include "code_pair_embedding_host.h"
#include "cuda_host.h"

namespace megatron_aqaa {
namespace {

Tensor code_pair_embedding_cuda(Tensor codes, Tensor linguistic, Tensor semantic, bool concatenate, double scale,
                                std::optional<ScalarType> out_dtype, bool /*deterministic: the backward's*/) {
  const torch::stable::accelerator::DeviceGuard guard(linguistic.get_device_index());
  const auto launch = [&](const CodePairArguments& arguments, ScalarType table, ScalarType out) {
    check_launch(launch_code_pair_embedding(arguments, element_of(table), element_of(out), current_stream(linguistic)),
                 "code_pair_embedding");
  };
  return run_code_pair_embedding(codes, linguistic, semantic, concatenate, scale, out_dtype, launch);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_aqaa, CUDA, m) {
  m.impl("code_pair_embedding", TORCH_BOX(&code_pair_embedding_cuda));
}

}  // namespace megatron_aqaa
