// What the host functions of the CUDA half share: element kinds and the current stream.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda_launch.h"
#include "tensors.h"

// Weak: CPU torch has no such symbol, and there the module must load all the same. aoti_torch_* streams are declared
// only where torch was built with CUDA, so the declaration stands here.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace megatron_aqaa {

inline Element element_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return Element::kFloat32;
    case ScalarType::Double:
      return Element::kFloat64;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Half:
      return Element::kFloat16;
    default:
      STD_TORCH_CHECK(false, "tables must be float32, float64, bfloat16 or float16");
  }
}

inline void* current_stream(const Tensor& tensor) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

inline void check_launch(int error, const char* name) {
  STD_TORCH_CHECK(error == 0, name, ": the kernel was not launched, CUDA error ", error);
}

}  // namespace megatron_aqaa
