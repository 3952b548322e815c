// Host function of accumulate_rows_, the same for both devices.

#pragma once

#include "accumulate_rows.h"
#include "tensors.h"

namespace megatron_aqaa {

inline void check_accumulate(const Tensor& destination, const Tensor& gradient, const Tensor& rows,
                             const std::optional<Tensor>& order) {
  STD_TORCH_CHECK(destination.dim() == 2 && destination.is_contiguous(), "destination must be [rows, H], contiguous");
  STD_TORCH_CHECK(gradient.dim() == 2 && gradient.size(1) == destination.size(1), "gradient must be [T, ",
                  destination.size(1), "]");
  const auto one_for_each = [&](const Tensor& tensor) {
    return tensor.dim() == 1 && tensor.size(0) == gradient.size(0);
  };
  STD_TORCH_CHECK(one_for_each(rows) && (!order.has_value() || one_for_each(*order)), "rows and order must be [",
                  gradient.size(0), "]");
  check_long(rows, "rows");
  check_same_device(gradient, destination, "gradient");
  check_same_device(rows, destination, "rows");
  if (order.has_value()) {
    check_long(*order, "order");
    check_same_device(*order, destination, "order");
  }
  STD_TORCH_CHECK(is_pair(destination.scalar_type(), gradient.scalar_type()),
                  "destination must have the dtype of gradient, or one of the two must be float32 and the other "
                  "bfloat16 or float16");
}

// Rows may lie apart (one half of a wider gradient), but each is contiguous.
inline Tensor with_contiguous_rows(const Tensor& gradient) {
  return gradient.stride(1) == 1 ? gradient : torch::stable::contiguous(gradient);
}

inline Tensor new_partial(const Tensor& destination, int64_t count, ScalarType gradient_dtype) {
  const int64_t sizes[] = {num_chunks(count), 2, destination.size(1)};
  const bool wide = gradient_dtype == ScalarType::Double;
  return torch::stable::new_empty(destination, {sizes, 3}, wide ? ScalarType::Double : ScalarType::Float);
}

// `launch(arguments, destination dtype, gradient dtype)` does the sum.
template <typename Launch>
void run_accumulate_rows(Tensor& destination, const Tensor& given_gradient, const Tensor& given_rows,
                         const std::optional<Tensor>& given_order, double scale, Launch&& launch) {
  check_accumulate(destination, given_gradient, given_rows, given_order);
  if (given_gradient.numel() == 0) return;
  const Tensor gradient = with_contiguous_rows(given_gradient);
  const Tensor rows = torch::stable::contiguous(given_rows);
  const std::optional<Tensor> order = contiguous(given_order);
  const ScalarType dtype = gradient.scalar_type();
  Tensor partial = new_partial(destination, order.has_value() ? rows.size(0) : 0, dtype);
  launch(AccumulateArguments{destination.mutable_data_ptr(), gradient.const_data_ptr(), rows.const_data_ptr<int64_t>(),
                             static_cast<const int64_t*>(data_or_null(order)), partial.mutable_data_ptr(),
                             destination.size(0), destination.size(1), gradient.size(0), gradient.stride(0), scale},
         destination.scalar_type(), dtype);
}

}  // namespace megatron_aqaa
