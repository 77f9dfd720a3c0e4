/* Asking for memory before it is needed. */
#ifndef TM_AHEAD_H
#define TM_AHEAD_H

#include <immintrin.h>
#include <stdint.h>

/* Unrolled before anything else, a loop leaves its arrays in registers. */
#define TM_UNROLL _Pragma("GCC unroll 16")
#define TM_INLINE static inline __attribute__((always_inline))

/* Two ranges, of which so many cache lines are asked for at each span of what is multiplied. */
typedef struct {
    const char *at[2];
    int32_t lines[2];
} tm_ahead;

static inline void plan_range(tm_ahead *ahead, int index, const void *at, int64_t bytes,
                              int32_t num_spans) {
    ahead->at[index] = at;
    ahead->lines[index] = (int32_t)((bytes + 63) / 64 + num_spans - 1) / num_spans;
}

/* Ask for the next lines; at the end of a range for some past it, which does no harm. */
TM_INLINE void look_ahead(tm_ahead *ahead) {
    for (int range = 0; range < 2; range++) {
        const char *at = ahead->at[range];
        for (int32_t line = 0; line < ahead->lines[range]; line++)
            _mm_prefetch(at + 64 * line, _MM_HINT_T1);
        ahead->at[range] = at + 64 * ahead->lines[range];
    }
}

#endif
