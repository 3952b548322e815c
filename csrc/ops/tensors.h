// Checks and dtype dispatch shared by the operators' host functions.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>

namespace megatron_aqaa {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls `function(TypeTag<T>{})` with the C++ type of `dtype`; `what` names the tensor in the error.
template <typename Function>
void dispatch_floating(ScalarType dtype, const char* what, Function&& function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(TypeTag<float>{});
    case ScalarType::Double:
      return function(TypeTag<double>{});
    case ScalarType::BFloat16:
      return function(TypeTag<c10::BFloat16>{});
    case ScalarType::Half:
      return function(TypeTag<c10::Half>{});
    default:
      STD_TORCH_CHECK(false, what, " must be float32, float64, bfloat16 or float16");
  }
}

inline void check_same_device(const Tensor& tensor, const Tensor& like, const char* what) {
  STD_TORCH_CHECK(tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(), what,
                  " lies on another device than the other tensors of this call");
}

inline void check_long(const Tensor& tensor, const char* what) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long, what, " must be int64");
}

}  // namespace megatron_aqaa
