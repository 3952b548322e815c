// Flat dual-codebook embedding on a GPU: a block per token, 16 bytes a thread and step.

#include "vector.cuh"

namespace megatron_aqaa {
namespace {

constexpr int kThreads = 128;
// The grid is (position, batch), which spares every thread a 64-bit division; what exceeds it goes by stride.
constexpr int64_t kMaxPositions = 1 << 20;
constexpr int64_t kMaxBatch = 65535;

template <typename T, int kWidth>
__device__ void fill_row(T* out, int64_t packets, float value) {
  Packet<T, kWidth> filled;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) filled.values[i] = static_cast<T>(value);
  for (int64_t p = threadIdx.x; p < packets; p += kThreads) reinterpret_cast<Packet<T, kWidth>*>(out)[p] = filled;
}

template <typename T>
__device__ const T* table_row(const void* table, int64_t row, int64_t hidden) {
  return table == nullptr || row < 0 ? nullptr : static_cast<const T*>(table) + row * hidden;
}

template <typename T, int kWidth>
__device__ void embed_token(const EmbeddingArguments& a, int64_t batch_index, int64_t position) {
  T* out = static_cast<T*>(a.out) + (position * a.batch + batch_index) * a.hidden;
  const int64_t packets = a.hidden / kWidth;
  const int64_t token = batch_index * a.length + position;
  const int64_t id = a.token_ids[token];
  const int64_t row = id - a.vocab_start;
  if (row < 0 || row >= a.rows) {
    // Another rank's token, or an id that no rank holds: that one must not pass for silence.
    const bool outside = id < 0 || id >= a.vocab_size;
    return fill_row<T, kWidth>(out, packets, outside ? __int_as_float(0x7fc00000) : 0.0f);
  }
  const T* word = table_row<T>(a.weight, row, a.hidden);
  const T* type = table_row<T>(a.type_weight, modality(a, id), a.hidden);
  const T* group_position = a.group_position_weight == nullptr
                                ? nullptr
                                : table_row<T>(a.group_position_weight, a.group_positions[token], a.hidden);
  const auto scale = static_cast<accumulate_of<T>>(a.scale);
  for (int64_t p = threadIdx.x; p < packets; p += kThreads) {
    accumulate_of<T> sum[kWidth] = {};
    add_packet<kWidth>(sum, word, p);
    if (type != nullptr) add_packet<kWidth>(sum, type, p);
    if (group_position != nullptr) add_packet<kWidth>(sum, group_position, p);
    Packet<T, kWidth> stored;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) stored.values[i] = static_cast<T>(scale * sum[i]);
    reinterpret_cast<Packet<T, kWidth>*>(out)[p] = stored;
  }
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) dual_codebook_embedding_kernel(const EmbeddingArguments a) {
  for (int64_t batch_index = blockIdx.y; batch_index < a.batch; batch_index += gridDim.y)
    for (int64_t position = blockIdx.x; position < a.length; position += gridDim.x)
      embed_token<T, kWidth>(a, batch_index, position);
}

template <typename T, int kWidth>
int launch(const EmbeddingArguments& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(a.length < kMaxPositions ? a.length : kMaxPositions),
                  static_cast<unsigned>(a.batch < kMaxBatch ? a.batch : kMaxBatch));
  dual_codebook_embedding_kernel<T, kWidth><<<grid, kThreads, 0, stream>>>(a);
  return static_cast<int>(cudaGetLastError());
}

bool tables_aligned(const EmbeddingArguments& a, int64_t row_bytes) {
  const void* tables[] = {a.weight, a.type_weight, a.group_position_weight, a.out};  // null counts as aligned
  for (const void* table : tables)
    if (!is_aligned(table, row_bytes, 16)) return false;
  return true;
}

}  // namespace

int launch_dual_codebook_embedding(const EmbeddingArguments& a, Element dtype, void* stream) {
  return dispatch_element(dtype, [&](auto kind) {
    using T = typename decltype(kind)::type;
    constexpr int kWidth = 16 / sizeof(T);
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    if (tables_aligned(a, a.hidden * static_cast<int64_t>(sizeof(T)))) return launch<T, kWidth>(a, cuda_stream);
    return launch<T, 1>(a, cuda_stream);
  });
}

}  // namespace megatron_aqaa
