// The seam between the host functions (C++, torch's stable ABI) and the kernels (nvcc, the CUDA runtime alone).

#pragma once

#include <cstdint>

#include "accumulate_rows.h"
#include "code_pair_embedding.h"
#include "dual_codebook_embedding.h"

namespace megatron_aqaa {

enum class Element : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Each enqueues on `stream` (a cudaStream_t) and returns the cudaError_t of the launch.
int launch_dual_codebook_embedding(const EmbeddingArguments& arguments, Element table, Element out, void* stream);
int launch_code_pair_embedding(const CodePairArguments& arguments, Element table, Element out, void* stream);
int launch_accumulate_rows(const AccumulateArguments& arguments, Element destination, Element gradient, void* stream);
int launch_accumulate_rows_atomic(const AccumulateArguments& arguments, Element destination, Element gradient,
                                  void* stream);

}  // namespace megatron_aqaa
