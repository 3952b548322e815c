// Host function of accumulate_rows_, the same for both devices.

#pragma once

#include "accumulate_rows.h"
#include "tensors.h"

namespace megatron_aqaa {

inline void check_accumulate(const Tensor& destination, const Tensor& gradient, const Tensor& rows,
                             const Tensor& order) {
  STD_TORCH_CHECK(destination.dim() == 2 && destination.is_contiguous(), "destination must be [rows, H], contiguous");
  STD_TORCH_CHECK(gradient.dim() == 2 && gradient.size(1) == destination.size(1), "gradient must be [T, ",
                  destination.size(1), "]");
  STD_TORCH_CHECK(
      rows.dim() == 1 && order.dim() == 1 && rows.size(0) == gradient.size(0) && order.size(0) == gradient.size(0),
      "rows and order must be [", gradient.size(0), "]");
  check_long(rows, "rows");
  check_long(order, "order");
  check_same_device(gradient, destination, "gradient");
  check_same_device(rows, destination, "rows");
  check_same_device(order, destination, "order");
  const ScalarType dtype = destination.scalar_type();
  STD_TORCH_CHECK(
      dtype == gradient.scalar_type() || (dtype == ScalarType::Float && gradient.scalar_type() != ScalarType::Double),
      "destination must be float32 or have the dtype of gradient");
}

// `launch(arguments, destination dtype, gradient dtype)` does the sum.
template <typename Launch>
void run_accumulate_rows(Tensor& destination, const Tensor& given_gradient, const Tensor& given_rows,
                         const Tensor& given_order, double scale, Launch&& launch) {
  check_accumulate(destination, given_gradient, given_rows, given_order);
  if (given_gradient.numel() == 0) return;
  const Tensor gradient = torch::stable::contiguous(given_gradient);
  const Tensor rows = torch::stable::contiguous(given_rows);
  const Tensor order = torch::stable::contiguous(given_order);
  launch(AccumulateArguments{destination.mutable_data_ptr(), gradient.const_data_ptr(), rows.const_data_ptr<int64_t>(),
                             order.const_data_ptr<int64_t>(), destination.size(0), destination.size(1),
                             gradient.size(0), scale},
         destination.scalar_type(), gradient.scalar_type());
}

}  // namespace megatron_aqaa
