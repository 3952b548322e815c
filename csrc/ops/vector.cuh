// Device-side pieces that the kernels share: 16-byte packets of a row and the arithmetic type of an element.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

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

constexpr int kAccessBytes = 16;  // the widest load of every architecture that is built for; wider packets take two

// Blocks of 128 threads for which a kernel must leave registers. Without a number ptxas reaches for the next step of
// occupancy and pays with a spill.
constexpr int kBlocksPerProcessor = 8;

// Elements a thread handles at a time where rows of both types are moved: one access of the narrower.
template <typename A, typename B>
constexpr int packet_width = kAccessBytes / (sizeof(A) < sizeof(B) ? sizeof(A) : sizeof(B));

constexpr int packet_alignment(size_t bytes) { return bytes < kAccessBytes ? static_cast<int>(bytes) : kAccessBytes; }

template <typename T, int kWidth>
struct alignas(packet_alignment(sizeof(T) * kWidth)) Packet {
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

// Calls `function(Kind<A>{}, Kind<B>{})` for the pairs that `is_pair` of tensors.h names; the host has checked.
template <typename Function>
int dispatch_pair(Element a, Element b, Function&& function) {
  return dispatch_element(a, [&](auto kind) {
    using A = typename decltype(kind)::type;
    if (a == b) return function(kind, kind);
    if constexpr (std::is_same_v<A, float>) {
      if (b == Element::kBFloat16) return function(kind, Kind<__nv_bfloat16>{});
      return function(kind, Kind<__half>{});
    } else if constexpr (!std::is_same_v<A, double>) {
      return function(kind, Kind<float>{});
    }
    return static_cast<int>(cudaErrorInvalidValue);
  });
}

// Rows can be moved in packets of `width` elements if every row begins on a packet's boundary and is whole packets
// long. A null table counts as aligned.
template <typename T>
bool is_aligned(const void* rows, int64_t stride, int64_t hidden, int width) {
  const int64_t bytes = packet_alignment(sizeof(T) * width);
  return hidden % width == 0 && stride * static_cast<int64_t>(sizeof(T)) % bytes == 0 &&
         reinterpret_cast<uintptr_t>(rows) % bytes == 0;
}

template <int kWidth, typename T>
__device__ void add_packet(accumulate_of<T> (&sum)[kWidth], const T* row, int64_t packet) {
  const Packet<T, kWidth> loaded = reinterpret_cast<const Packet<T, kWidth>*>(row)[packet];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sum[i] += static_cast<accumulate_of<T>>(loaded.values[i]);
}

}  // namespace megatron_aqaa
