// accumulate_rows_ on a GPU: a block is one place in the sorted rows and one tile of columns; the block at which a run
// of equal rows begins sums the run, the others leave. No atomics: the same sum on every launch.
//
// A run is walked by one block, so a row that occurs thousands of times (padding, the three rows of a type table) is
// the slowest part. Splitting long runs belongs to the fast mode that is still to come.

#include "vector.cuh"

namespace megatron_aqaa {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 1 << 20;  // further places by stride
constexpr int64_t kMaxTiles = 65535;     // the grid's second dimension

template <typename D, typename G, int kWidth>
__device__ void sum_run(const AccumulateArguments& a, int64_t begin, int64_t packet) {
  const int64_t row = a.rows[begin];
  const G* gradient = static_cast<const G*>(a.gradient);
  accumulate_of<G> sum[kWidth] = {};
  for (int64_t i = begin; i < a.count && a.rows[i] == row; ++i)
    add_packet<kWidth>(sum, gradient + a.order[i] * a.hidden, packet);
  auto* destination = reinterpret_cast<Packet<D, kWidth>*>(static_cast<D*>(a.destination) + row * a.hidden) + packet;
  Packet<D, kWidth> updated = *destination;
  const auto scale = static_cast<accumulate_of<G>>(a.scale);
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    updated.values[i] = static_cast<D>(static_cast<accumulate_of<G>>(updated.values[i]) + scale * sum[i]);
  *destination = updated;
}

template <typename D, typename G, int kWidth>
__global__ void __launch_bounds__(kThreads) accumulate_rows_kernel(const AccumulateArguments a) {
  const int64_t packets = a.hidden / kWidth;
  for (int64_t i = blockIdx.x; i < a.count; i += gridDim.x) {
    const int64_t row = a.rows[i];
    if (row < 0 || row >= a.num_rows || (i > 0 && a.rows[i - 1] == row)) continue;
    for (int64_t p = blockIdx.y * int64_t{kThreads} + threadIdx.x; p < packets; p += gridDim.y * int64_t{kThreads})
      sum_run<D, G, kWidth>(a, i, p);
  }
}

template <typename D, typename G, int kWidth>
int launch(const AccumulateArguments& a, cudaStream_t stream) {
  const int64_t tiles = (a.hidden / kWidth + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(a.count < kMaxBlocks ? a.count : kMaxBlocks),
                  static_cast<unsigned>(tiles < kMaxTiles ? tiles : kMaxTiles));
  accumulate_rows_kernel<D, G, kWidth><<<grid, kThreads, 0, stream>>>(a);
  return static_cast<int>(cudaGetLastError());
}

template <typename D, typename G>
int launch_aligned(const AccumulateArguments& a, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(G);  // a packet of an fp32 destination beside bf16 is 32 bytes: two accesses
  const bool aligned = is_aligned(a.gradient, a.hidden * int64_t{sizeof(G)}, sizeof(Packet<G, kWidth>)) &&
                       is_aligned(a.destination, a.hidden * int64_t{sizeof(D)}, sizeof(Packet<D, kWidth>));
  return aligned ? launch<D, G, kWidth>(a, stream) : launch<D, G, 1>(a, stream);
}

}  // namespace

int launch_accumulate_rows(const AccumulateArguments& a, Element destination, Element gradient, void* stream) {
  return dispatch_element(gradient, [&](auto kind) {
    using G = typename decltype(kind)::type;
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    if (destination == gradient) return launch_aligned<G, G>(a, cuda_stream);
    return launch_aligned<float, G>(a, cuda_stream);
  });
}

}  // namespace megatron_aqaa
