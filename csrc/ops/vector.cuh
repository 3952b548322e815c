// Device-side pieces that the kernels share: 16-byte packets of a row and the arithmetic type of an element.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda_launch.h"

namespace megatron_aqaa {

template <typename T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <typename T>
using accumulate_of = typename AccumulateOf<T>::type;

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Packet {
  T values[kWidth];
};

template <typename T>
struct Kind {
  using type = T;
};

// Calls `function(Kind<T>{})` with the device type of `element`.
template <typename Function>
int dispatch_element(Element element, Function&& function) {
  switch (element) {
    case Element::kFloat32:
      return function(Kind<float>{});
    case Element::kFloat64:
      return function(Kind<double>{});
    case Element::kBFloat16:
      return function(Kind<__nv_bfloat16>{});
    case Element::kFloat16:
      return function(Kind<__half>{});
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

// Rows can be read in packets if every row begins on a packet's boundary.
inline bool is_aligned(const void* pointer, int64_t row_bytes, int64_t packet_bytes) {
  return row_bytes % packet_bytes == 0 && reinterpret_cast<uintptr_t>(pointer) % packet_bytes == 0;
}

template <int kWidth, typename T>
__device__ void add_packet(accumulate_of<T> (&sum)[kWidth], const T* row, int64_t packet) {
  const Packet<T, kWidth> loaded = reinterpret_cast<const Packet<T, kWidth>*>(row)[packet];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sum[i] += static_cast<accumulate_of<T>>(loaded.values[i]);
}

}  // namespace megatron_aqaa
