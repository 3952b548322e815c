// Flat dual-codebook embedding on a GPU: a block per token, 16 bytes a thread and step.

#include "embed_row.cuh"

namespace megatron_aqaa {
namespace {

// The grid is (position, batch), which spares every thread a 64-bit division; what exceeds it goes by stride.
constexpr int64_t kMaxPositions = 1 << 20;
constexpr int64_t kMaxBatch = 65535;

template <typename T, typename O, int kWidth>
__device__ void embed_token(const EmbeddingArguments& a, int64_t batch_index, int64_t position) {
  O* out = static_cast<O*>(a.out) + (position * a.batch + batch_index) * a.hidden;
  const int64_t token = batch_index * a.length + position;
  const int64_t id = a.token_ids[token];
  const int64_t row = id - a.vocab_start;
  const int64_t group_position = a.group_position_weight == nullptr ? -1 : a.group_positions[token];
  if (!is_token_id(a, id) || !is_group_position(group_position)) return fill_row_with_nan<O, kWidth>(out, a.hidden);
  if (row < 0 || row >= a.rows) return fill_row<O, kWidth>(out, 0.0f, a.hidden);  // another rank's token
  write_row<T, O, kWidth>(out, table_row<T>(a.weight, row, a.hidden),
                          table_row<T>(a.type_weight, modality(a, id), a.hidden),
                          table_row<T>(a.group_position_weight, group_position, a.hidden), a.scale, a.hidden);
}

template <typename T, typename O, int kWidth>
__global__ void __launch_bounds__(kRowThreads, kBlocksPerProcessor)
    dual_codebook_embedding_kernel(const EmbeddingArguments a) {
  for (int64_t batch_index = blockIdx.y; batch_index < a.batch; batch_index += gridDim.y)
    for (int64_t position = blockIdx.x; position < a.length; position += gridDim.x)
      embed_token<T, O, kWidth>(a, batch_index, position);
}

template <typename T, typename O, int kWidth>
int launch(const EmbeddingArguments& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(a.length < kMaxPositions ? a.length : kMaxPositions),
                  static_cast<unsigned>(a.batch < kMaxBatch ? a.batch : kMaxBatch));
  dual_codebook_embedding_kernel<T, O, kWidth><<<grid, kRowThreads, 0, stream>>>(a);
  return static_cast<int>(cudaGetLastError());
}

template <typename T, typename O>
bool all_aligned(const EmbeddingArguments& a, int width) {
  return is_aligned<T>(a.weight, a.hidden, a.hidden, width) &&
         is_aligned<T>(a.type_weight, a.hidden, a.hidden, width) &&
         is_aligned<T>(a.group_position_weight, a.hidden, a.hidden, width) &&
         is_aligned<O>(a.out, a.hidden, a.hidden, width);
}

}  // namespace

int launch_dual_codebook_embedding(const EmbeddingArguments& a, Element table, Element out, void* stream) {
  return dispatch_pair(table, out, [&](auto table_kind, auto out_kind) {
    using T = typename decltype(table_kind)::type;
    using O = typename decltype(out_kind)::type;
    constexpr int kWidth = packet_width<T, O>;
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    if (all_aligned<T, O>(a, kWidth)) return launch<T, O, kWidth>(a, cuda_stream);
    return launch<T, O, 1>(a, cuda_stream);
  });
}

}  // namespace megatron_aqaa
