// Checks and dtype dispatch shared by the operators' host functions.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <type_traits>

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

// The pairs of dtypes that kernels are built for: equal ones, and float32 beside bfloat16 or float16 on either side.
inline bool is_pair(ScalarType a, ScalarType b) {
  const auto low = [](ScalarType dtype) { return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half; };
  return a == b || (a == ScalarType::Float && low(b)) || (low(a) && b == ScalarType::Float);
}

// Calls `function(TypeTag<A>{}, TypeTag<B>{})` with the C++ types of such a pair.
template <typename Function>
void dispatch_pair(ScalarType a, ScalarType b, const char* what, Function&& function) {
  dispatch_floating(a, what, [&](auto tag) {
    using A = typename decltype(tag)::type;
    if (a == b) return function(tag, tag);
    if constexpr (std::is_same_v<A, float>) {
      if (b == ScalarType::BFloat16) return function(tag, TypeTag<c10::BFloat16>{});
      return function(tag, TypeTag<c10::Half>{});
    } else if constexpr (!std::is_same_v<A, double>) {
      return function(tag, TypeTag<float>{});
    }
  });
}

inline void check_out_dtype(ScalarType out, ScalarType table) {
  STD_TORCH_CHECK(is_pair(table, out),
                  "out_dtype must be the dtype of the tables; float32 tables also give bfloat16 or float16, and those "
                  "also give float32");
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

inline const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

inline void check_same_device(const Tensor& tensor, const Tensor& like, const char* what) {
  STD_TORCH_CHECK(tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(), what,
                  " lies on another device than the other tensors of this call");
}

inline void check_long(const Tensor& tensor, const char* what) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long, what, " must be int64");
}

}  // namespace megatron_aqaa
