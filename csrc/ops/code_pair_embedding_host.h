// Host function of the two-column dual-codebook embedding, the same for both devices.

#pragma once

#include <vector>

#include "code_pair_embedding.h"
#include "tensors.h"

namespace megatron_aqaa {

inline void check_code_pair(const Tensor& codes, const Tensor& linguistic, const Tensor& semantic, bool concatenate) {
  STD_TORCH_CHECK(codes.dim() >= 1 && codes.size(codes.dim() - 1) == 2, "codes must be [..., 2]: linguistic, semantic");
  check_long(codes, "codes");
  STD_TORCH_CHECK(linguistic.dim() == 2 && semantic.dim() == 2, "each table must be [rows, H]");
  STD_TORCH_CHECK(linguistic.scalar_type() == semantic.scalar_type(), "both tables must have one dtype");
  check_same_device(codes, linguistic, "codes");
  check_same_device(semantic, linguistic, "semantic_weight");
  STD_TORCH_CHECK(concatenate || linguistic.size(1) == semantic.size(1), "tables of width ", linguistic.size(1),
                  " and ", semantic.size(1), " cannot be summed: make them equal, or concatenate");
}

inline Tensor new_code_pair_output(const Tensor& codes, const Tensor& linguistic, int64_t hidden, ScalarType dtype) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i + 1 < codes.dim(); ++i) sizes.push_back(codes.size(i));
  sizes.push_back(hidden);
  return torch::stable::new_empty(linguistic, {sizes.data(), sizes.size()}, dtype);
}

// `launch(arguments, table dtype, out dtype)` fills the output.
template <typename Launch>
Tensor run_code_pair_embedding(const Tensor& given_codes, const Tensor& given_linguistic, const Tensor& given_semantic,
                               bool concatenate, double scale, std::optional<ScalarType> given_out_dtype,
                               Launch&& launch) {
  check_code_pair(given_codes, given_linguistic, given_semantic, concatenate);
  const ScalarType dtype = given_linguistic.scalar_type(), out_dtype = given_out_dtype.value_or(dtype);
  check_out_dtype(out_dtype, dtype);
  const Tensor codes = torch::stable::contiguous(given_codes);
  const Tensor linguistic = torch::stable::contiguous(given_linguistic);
  const Tensor semantic = torch::stable::contiguous(given_semantic);
  const int64_t hidden = linguistic.size(1) + (concatenate ? semantic.size(1) : 0);
  Tensor out = new_code_pair_output(codes, linguistic, hidden, out_dtype);
  if (out.numel() == 0) return out;
  launch(CodePairArguments{codes.const_data_ptr<int64_t>(), linguistic.const_data_ptr(), semantic.const_data_ptr(),
                           out.mutable_data_ptr(), codes.numel() / 2, hidden,
                           codes.dim() == 1 ? 1 : codes.size(codes.dim() - 2), linguistic.size(0), linguistic.size(1),
                           semantic.size(0), semantic.size(1), concatenate, scale},
         dtype, out_dtype);
  return out;
}

}  // namespace megatron_aqaa
