// Two-column dual-codebook embedding: what both kernels are handed after the checks.

#pragma once

#include <cstdint>

#include "host_device.h"

namespace megatron_aqaa {

// Summed: out[i, :] = scale * (linguistic[codes[i, 0]] + semantic[codes[i, 1]]). Concatenated: the two terms stand side
// by side. A code of -1 gives a term of zeros.
struct CodePairArguments {
  const int64_t* codes;    // [count, 2]
  const void* linguistic;  // [linguistic_rows, linguistic_hidden]
  const void* semantic;    // [semantic_rows, semantic_hidden]
  void* out;               // [count, hidden]
  int64_t count, hidden;
  int64_t length;  // places of a sequence, for naming one in an error
  int64_t linguistic_rows, linguistic_hidden;
  int64_t semantic_rows, semantic_hidden;
  bool concatenate;
  double scale;
};

MEGATRON_AQAA_HOST_DEVICE inline bool is_code(int64_t code, int64_t rows) { return code >= -1 && code < rows; }

}  // namespace megatron_aqaa
