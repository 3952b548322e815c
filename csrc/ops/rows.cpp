#include "rows.h"

// One binary for every x86-64: the loader picks the widest form that the machine has. Elsewhere the compiler's
// baseline already has vector units.
#if defined(__x86_64__) && defined(__GNUC__)
#define MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MULTIVERSION
#endif

namespace megatron_aqaa {

#define MEGATRON_AQAA_DEFINE_ROWS(O, T)                                                                             \
  MULTIVERSION void store_row(O* __restrict__ out, const T* __restrict__ row, double scale, int64_t num_columns) {  \
    using A = accumulate_t<T>;                                                                                      \
    const A factor = static_cast<A>(scale);                                                                         \
    for (int64_t i = 0; i < num_columns; ++i) out[i] = static_cast<O>(factor * static_cast<A>(row[i]));             \
  }                                                                                                                 \
  MULTIVERSION void update_row(O* __restrict__ out, const T* __restrict__ row, double scale, int64_t num_columns) { \
    using A = accumulate_t<T>;                                                                                      \
    const A factor = static_cast<A>(scale);                                                                         \
    for (int64_t i = 0; i < num_columns; ++i)                                                                       \
      out[i] = static_cast<O>(static_cast<A>(out[i]) + factor * static_cast<A>(row[i]));                            \
  }

MEGATRON_AQAA_FOR_EACH_PAIR(MEGATRON_AQAA_DEFINE_ROWS)

}  // namespace megatron_aqaa
