// accumulate_rows_ on a GPU as the rows come, without sorting them: atomic addition into fp32 or fp64. The order of the
// sums, and so their last bits, changes from launch to launch.

#include "vector.cuh"

namespace megatron_aqaa {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 1 << 20;  // further places by stride

// `out` is aligned to a packet of kWidth. From sm_90 on four floats make one atomic addition.
template <typename D, int kWidth>
__device__ void add_atomically(D* out, const D (&values)[kWidth]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kFours = std::is_same_v<D, float> && kWidth % 4 == 0;
#else
  constexpr bool kFours = false;
#endif
  if constexpr (kFours) {
#pragma unroll
    for (int i = 0; i < kWidth; i += 4)
      atomicAdd(reinterpret_cast<float4*>(out + i),
                make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]));
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) atomicAdd(out + i, values[i]);
  }
}

template <typename D, typename G, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) add_rows_kernel(const AccumulateArguments a) {
  const D scale = static_cast<D>(a.scale);
  for (int64_t i = blockIdx.x; i < a.count; i += gridDim.x) {
    const int64_t row = a.rows[i];
    if (row < 0 || row >= a.num_rows) continue;
    const G* gradient = static_cast<const G*>(a.gradient) + i * a.gradient_stride;
    D* destination = static_cast<D*>(a.destination) + row * a.hidden;
    for (int64_t p = threadIdx.x; p < a.hidden / kWidth; p += kThreads) {
      accumulate_of<G> values[kWidth] = {};
      add_packet<kWidth>(values, gradient, p);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) values[k] *= scale;
      add_atomically<D, kWidth>(destination + p * kWidth, values);
    }
  }
}

template <typename D, typename G, int kWidth>
int launch(const AccumulateArguments& a, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(a.count < kMaxBlocks ? a.count : kMaxBlocks);
  add_rows_kernel<D, G, kWidth><<<blocks, kThreads, 0, stream>>>(a);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_accumulate_rows_atomic(const AccumulateArguments& a, Element destination, Element gradient, void* stream) {
  if (destination != Element::kFloat32 && destination != Element::kFloat64)
    return static_cast<int>(cudaErrorInvalidValue);
  return dispatch_element(gradient, [&](auto kind) {
    using G = typename decltype(kind)::type;
    using D = accumulate_of<G>;  // what is_pair leaves beside fp32 and fp64 destinations
    constexpr int kWidth = packet_width<D, G>;
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    const bool aligned = is_aligned<G>(a.gradient, a.gradient_stride, a.hidden, kWidth) &&
                         is_aligned<D>(a.destination, a.hidden, a.hidden, kWidth);
    return aligned ? launch<D, G, kWidth>(a, cuda_stream) : launch<D, G, 1>(a, cuda_stream);
  });
}

}  // namespace megatron_aqaa
