// accumulate_rows_ on a GPU, in order: the same sum on every launch, without atomics.
//
// First a block is one place of the sorted rows and one tile of columns: where a piece begins it sums the piece, the
// others leave. Then a block is one chunk and one tile: where a run of several pieces begins it adds them up.

#include "vector.cuh"

namespace megatron_aqaa {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 1 << 20;  // further places by stride
constexpr int64_t kMaxTiles = 65535;     // the grid's second dimension

template <typename D, typename G, int kWidth>
__device__ void update_packet(const AccumulateArguments& a, int64_t row, int64_t packet,
                              const accumulate_of<G> (&sum)[kWidth]) {
  auto* destination = reinterpret_cast<Packet<D, kWidth>*>(static_cast<D*>(a.destination) + row * a.hidden) + packet;
  Packet<D, kWidth> updated = *destination;
  const auto scale = static_cast<accumulate_of<G>>(a.scale);
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    updated.values[i] = static_cast<D>(static_cast<accumulate_of<G>>(updated.values[i]) + scale * sum[i]);
  *destination = updated;
}

template <typename G>
__device__ accumulate_of<G>* partial_sums(const AccumulateArguments& a, int64_t row) {
  return static_cast<accumulate_of<G>*>(a.partial) + row * a.hidden;
}

template <typename D, typename G, int kWidth>
__device__ void sum_piece(const AccumulateArguments& a, int64_t begin, int64_t packet) {
  const int64_t row = a.rows[begin];
  const int64_t chunk_end = (begin / kChunk + 1) * kChunk;
  const int64_t stop = chunk_end < a.count ? chunk_end : a.count;
  accumulate_of<G> sum[kWidth] = {};
  int64_t i = begin;
  for (; i < stop && a.rows[i] == row; ++i)
    add_packet<kWidth>(sum, static_cast<const G*>(a.gradient) + a.order[i] * a.gradient_stride, packet);
  const int64_t slot = partial_row(a, begin, i);
  if (slot < 0) return update_packet<D, G, kWidth>(a, row, packet, sum);
  Packet<accumulate_of<G>, kWidth> stored;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) stored.values[k] = sum[k];
  reinterpret_cast<Packet<accumulate_of<G>, kWidth>*>(partial_sums<G>(a, slot))[packet] = stored;
}

template <typename D, typename G, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) sum_pieces_kernel(const AccumulateArguments a) {
  const int64_t packets = a.hidden / kWidth;
  for (int64_t i = blockIdx.x; i < a.count; i += gridDim.x) {
    const int64_t row = a.rows[i];
    if (row < 0 || row >= a.num_rows || (i % kChunk != 0 && a.rows[i - 1] == row)) continue;
    for (int64_t p = blockIdx.y * int64_t{kThreads} + threadIdx.x; p < packets; p += gridDim.y * int64_t{kThreads})
      sum_piece<D, G, kWidth>(a, i, p);
  }
}

template <typename D, typename G, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) combine_pieces_kernel(const AccumulateArguments a) {
  const int64_t packets = a.hidden / kWidth;
  for (int64_t chunk = blockIdx.x; chunk < num_chunks(a.count); chunk += gridDim.x) {
    if (!begins_long_run(a, chunk)) continue;
    for (int64_t p = blockIdx.y * int64_t{kThreads} + threadIdx.x; p < packets; p += gridDim.y * int64_t{kThreads}) {
      accumulate_of<G> sum[kWidth] = {};
      add_packet<kWidth>(sum, partial_sums<G>(a, 2 * chunk + 1), p);
      for (int64_t c = chunk + 1; reaches(a, chunk, c); ++c) add_packet<kWidth>(sum, partial_sums<G>(a, 2 * c), p);
      update_packet<D, G, kWidth>(a, a.rows[(chunk + 1) * kChunk], p, sum);
    }
  }
}

dim3 grid_of(int64_t blocks, int64_t packets) {
  const int64_t tiles = (packets + kThreads - 1) / kThreads;
  return dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks),
              static_cast<unsigned>(tiles < kMaxTiles ? tiles : kMaxTiles));
}

template <typename D, typename G, int kWidth>
int launch(const AccumulateArguments& a, cudaStream_t stream) {
  const int64_t packets = a.hidden / kWidth;
  sum_pieces_kernel<D, G, kWidth><<<grid_of(a.count, packets), kThreads, 0, stream>>>(a);
  // A run within one chunk has a single piece.
  if (a.count > kChunk)
    combine_pieces_kernel<D, G, kWidth><<<grid_of(num_chunks(a.count), packets), kThreads, 0, stream>>>(a);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_accumulate_rows(const AccumulateArguments& a, Element destination, Element gradient, void* stream) {
  return dispatch_pair(destination, gradient, [&](auto destination_kind, auto gradient_kind) {
    using D = typename decltype(destination_kind)::type;
    using G = typename decltype(gradient_kind)::type;
    constexpr int kWidth = packet_width<D, G>;
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    const bool aligned = is_aligned<G>(a.gradient, a.gradient_stride, a.hidden, kWidth) &&
                         is_aligned<D>(a.destination, a.hidden, a.hidden, kWidth);
    return aligned ? launch<D, G, kWidth>(a, cuda_stream) : launch<D, G, 1>(a, cuda_stream);
  });
}

}  // namespace megatron_aqaa
