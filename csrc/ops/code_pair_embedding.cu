// Two-column dual-codebook embedding on a GPU: a block per place, 16 bytes a thread and step.

#include "embed_row.cuh"

namespace megatron_aqaa {
namespace {

constexpr int64_t kMaxBlocks = 1 << 20;  // further places by stride

template <typename T, typename O, int kWidth>
__device__ void embed_pair(const CodePairArguments& a, int64_t i) {
  O* out = static_cast<O*>(a.out) + i * a.hidden;
  const int64_t linguistic_code = a.codes[2 * i], semantic_code = a.codes[2 * i + 1];
  if (!is_code(linguistic_code, a.linguistic_rows) || !is_code(semantic_code, a.semantic_rows))
    return fill_row_with_nan<O, kWidth>(out, a.hidden);
  const T* linguistic = table_row<T>(a.linguistic, linguistic_code, a.linguistic_hidden);
  const T* semantic = table_row<T>(a.semantic, semantic_code, a.semantic_hidden);
  const T* none = nullptr;
  if (!a.concatenate) return write_row<T, O, kWidth>(out, linguistic, semantic, none, a.scale, a.hidden);
  write_row<T, O, kWidth>(out, linguistic, none, none, a.scale, a.linguistic_hidden);
  write_row<T, O, kWidth>(out + a.linguistic_hidden, semantic, none, none, a.scale, a.semantic_hidden);
}

template <typename T, typename O, int kWidth>
__global__ void __launch_bounds__(kRowThreads, kBlocksPerProcessor)
    code_pair_embedding_kernel(const CodePairArguments a) {
  for (int64_t i = blockIdx.x; i < a.count; i += gridDim.x) embed_pair<T, O, kWidth>(a, i);
}

template <typename T, typename O, int kWidth>
int launch(const CodePairArguments& a, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(a.count < kMaxBlocks ? a.count : kMaxBlocks);
  code_pair_embedding_kernel<T, O, kWidth><<<blocks, kRowThreads, 0, stream>>>(a);
  return static_cast<int>(cudaGetLastError());
}

// Whole packets to both widths, so that the second half of a concatenated row begins on one.
template <typename T, typename O>
bool all_aligned(const CodePairArguments& a, int width) {
  return is_aligned<T>(a.linguistic, a.linguistic_hidden, a.linguistic_hidden, width) &&
         is_aligned<T>(a.semantic, a.semantic_hidden, a.semantic_hidden, width) &&
         is_aligned<O>(a.out, a.hidden, a.hidden, width);
}

}  // namespace

int launch_code_pair_embedding(const CodePairArguments& a, Element table, Element out, void* stream) {
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
