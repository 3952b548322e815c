// Two-column dual-codebook embedding on the CPU: one pass over the output, both tables read in it.

#include <torch/csrc/stable/library.h>

#include "code_pair_embedding_host.h"
#include "embed_row.h"

namespace megatron_aqaa {
namespace {

void check_codes(const CodePairArguments& a) {
  for (int64_t i = 0; i < 2 * a.count; ++i) {
    const bool semantic = i % 2;
    const int64_t rows = semantic ? a.semantic_rows : a.linguistic_rows;
    STD_TORCH_CHECK(is_code(a.codes[i], rows), semantic ? "semantic" : "linguistic", " code ", a.codes[i], " at batch ",
                    i / 2 / a.length, ", position ", i / 2 % a.length, " is outside [-1, ", rows, ")");
  }
}

// Nothing is fetched ahead: tables of one codebook each stay in the cache.
template <typename T, typename O>
void embed_pair(const CodePairArguments& a, int64_t i, bool streamed) {
  O* out = static_cast<O*>(a.out) + i * a.hidden;
  const T* linguistic = table_row<T>(a.linguistic, a.codes[2 * i], a.linguistic_hidden);
  const T* semantic = table_row<T>(a.semantic, a.codes[2 * i + 1], a.semantic_hidden);
  const T* none = nullptr;
  if (!a.concatenate) return write_row<T, O>(out, {linguistic, semantic}, none, a.scale, a.hidden, streamed);
  write_row<T, O>(out, {linguistic}, none, a.scale, a.linguistic_hidden, streamed);
  write_row<T, O>(out + a.linguistic_hidden, {semantic}, none, a.scale, a.semantic_hidden, streamed);
}

template <typename T, typename O>
void embed(const CodePairArguments& a) {
  const bool streamed = a.count * a.hidden * static_cast<int64_t>(sizeof(O)) >= kStreamedBytes;
  constexpr int64_t kPlacesPerTask = 64;
  torch::stable::parallel_for(0, a.count, kPlacesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) embed_pair<T, O>(a, i, streamed);
    finish_streaming();
  });
}

void launch(const CodePairArguments& a, ScalarType dtype, ScalarType out_dtype) {
  check_codes(a);
  dispatch_pair(dtype, out_dtype, "a table",
                [&](auto table, auto out) { embed<typename decltype(table)::type, typename decltype(out)::type>(a); });
}

Tensor code_pair_embedding_cpu(Tensor codes, Tensor linguistic, Tensor semantic, bool concatenate, double scale,
                               std::optional<ScalarType> out_dtype, bool /*deterministic: the backward's*/) {
  return run_code_pair_embedding(codes, linguistic, semantic, concatenate, scale, out_dtype, launch);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_aqaa, CPU, m) { m.impl("code_pair_embedding", TORCH_BOX(&code_pair_embedding_cpu)); }

}  // namespace megatron_aqaa
