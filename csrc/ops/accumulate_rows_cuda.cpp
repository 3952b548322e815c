// accumulate_rows_ on a GPU: host side.

#include <torch/csrc/stable/library.h>

#include "accumulate_rows_host.h"
#include "cuda_host.h"

namespace megatron_aqaa {
namespace {

void accumulate_rows_cuda(Tensor destination, Tensor gradient, Tensor rows, Tensor order, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(destination.get_device_index());
  const auto launch = [&](const AccumulateArguments& arguments, ScalarType destination_dtype, ScalarType dtype) {
    check_launch(launch_accumulate_rows(arguments, element_of(destination_dtype), element_of(dtype),
                                        current_stream(destination)),
                 "accumulate_rows_");
  };
  run_accumulate_rows(destination, gradient, rows, order, scale, launch);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_aqaa, CUDA, m) { m.impl("accumulate_rows_", TORCH_BOX(&accumulate_rows_cuda)); }

}  // namespace megatron_aqaa
