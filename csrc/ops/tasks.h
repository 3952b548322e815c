// Tasks of unequal cost on the CPU.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace megatron_aqaa {

// Calls `function(i)` for i in [0, count), each thread taking the next when it is free.
template <typename Function>
void for_each_task(int64_t count, const Function& function) {
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  std::atomic<int64_t> next = 0;
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) function(i);
  });
}

}  // namespace megatron_aqaa
