#include "rows.h"

// One binary for every x86-64: the loader picks the widest form that the machine has. Elsewhere the compiler's
// baseline already has vector units.
#if defined(__x86_64__) && defined(__GNUC__)
#define MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MULTIVERSION
#endif

namespace megatron_aqaa {

#define STORE(O, SUM) out[i] = static_cast<O>(factor * (SUM))
#define UPDATE(O, SUM) out[i] = static_cast<O>(static_cast<A>(out[i]) + factor * (SUM))

// A loop for each count, with `restrict` pointers: so the compiler vectorises it.
#define DEFINE_SUM(NAME, INTO, O, T)                                                                  \
  MULTIVERSION void NAME(O* __restrict__ out, const FewRows<T>& rows, int64_t count, double scale,    \
                         int64_t num_columns) {                                                       \
    using A = accumulate_t<T>;                                                                        \
    const A factor = static_cast<A>(scale);                                                           \
    const T* __restrict__ a = rows[0], * __restrict__ b = rows[1], * __restrict__ c = rows[2];        \
    if (count == 1) {                                                                                 \
      for (int64_t i = 0; i < num_columns; ++i) INTO(O, static_cast<A>(a[i]));                        \
    } else if (count == 2) {                                                                          \
      for (int64_t i = 0; i < num_columns; ++i) INTO(O, static_cast<A>(a[i]) + static_cast<A>(b[i])); \
    } else {                                                                                          \
      for (int64_t i = 0; i < num_columns; ++i)                                                       \
        INTO(O, static_cast<A>(a[i]) + static_cast<A>(b[i]) + static_cast<A>(c[i]));                  \
    }                                                                                                 \
  }

#define DEFINE_ROWS(O, T)             \
  DEFINE_SUM(store_rows, STORE, O, T) \
  DEFINE_SUM(update_rows, UPDATE, O, T)

MEGATRON_AQAA_FOR_EACH_PAIR(DEFINE_ROWS)

}  // namespace megatron_aqaa
