// accumulate_rows_ on a GPU: host side.

#include <torch/csrc/stable/library.h>

#include "accumulate_rows_host.h"
#include "cuda_host.h"

namespace megatron_aqaa {
namespace {

void accumulate_rows_cuda(Tensor destination, Tensor gradient, Tensor rows, std::optional<Tensor> order, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(destination.get_device_index());
  const ScalarType dtype = destination.scalar_type();
  STD_TORCH_CHECK(order.has_value() || dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "order is needed: there is no atomic addition to a destination below float32");
  const auto launch = [&](const AccumulateArguments& arguments, ScalarType destination_dtype,
                          ScalarType gradient_dtype) {
    const auto function = order.has_value() ? launch_accumulate_rows : launch_accumulate_rows_atomic;
    check_launch(
        function(arguments, element_of(destination_dtype), element_of(gradient_dtype), current_stream(destination)),
        "accumulate_rows_");
  };
  run_accumulate_rows(destination, gradient, rows, order, scale, launch);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_aqaa, CUDA, m) { m.impl("accumulate_rows_", TORCH_BOX(&accumulate_rows_cuda)); }

}  // namespace megatron_aqaa
