#include "rows.h"

// One binary for every x86-64: the loader picks the widest form that the machine has. Elsewhere the compiler's
// baseline already has vector units.
#if defined(__x86_64__) && defined(__GNUC__)
#define MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MULTIVERSION
#endif

namespace megatron_aqaa {

#define MEGATRON_AQAA_DEFINE_ROWS(T, A)                                                                             \
  MULTIVERSION void add_row(A* __restrict__ sum, const T* __restrict__ row, int64_t num_columns) {                  \
    for (int64_t i = 0; i < num_columns; ++i) sum[i] += static_cast<A>(row[i]);                                     \
  }                                                                                                                 \
  MULTIVERSION void store_row(T* __restrict__ out, const A* __restrict__ sum, double scale, int64_t num_columns) {  \
    const A factor = static_cast<A>(scale);                                                                         \
    for (int64_t i = 0; i < num_columns; ++i) out[i] = static_cast<T>(factor * sum[i]);                             \
  }                                                                                                                 \
  MULTIVERSION void update_row(T* __restrict__ out, const A* __restrict__ sum, double scale, int64_t num_columns) { \
    const A factor = static_cast<A>(scale);                                                                         \
    for (int64_t i = 0; i < num_columns; ++i) out[i] = static_cast<T>(static_cast<A>(out[i]) + factor * sum[i]);    \
  }

MEGATRON_AQAA_DEFINE_ROWS(float, float)
MEGATRON_AQAA_DEFINE_ROWS(double, double)
MEGATRON_AQAA_DEFINE_ROWS(BFloat16, float)
MEGATRON_AQAA_DEFINE_ROWS(Half, float)

}  // namespace megatron_aqaa
