/* Rows of float32 inputs times a decoded strip. */
#ifndef TM_MULTIPLY_FLOAT_H
#define TM_MULTIPLY_FLOAT_H

#include "ahead.h"
#include "inputs.h"

/* Registers hold the sums of so many rows. */
#ifdef __AVX512F__
#define TM_FLOAT_ROWS 8
#define TM_VECTOR_BYTES 64
#else
#define TM_FLOAT_ROWS 4
#define TM_VECTOR_BYTES 32
#endif
#define TM_LANES (TM_VECTOR_BYTES / 4)
/* Inputs that are multiplied at a time: their strip, in float32, stays in the first cache. */
#define TM_FLOAT_CHUNK 192

typedef float tm_floats __attribute__((vector_size(TM_VECTOR_BYTES)));
typedef int32_t tm_ints __attribute__((vector_size(TM_VECTOR_BYTES)));

/* weights[input][output] = (code - zero) * scale for the inputs of a strip. */
static inline void dequantize(float (*weights)[TM_BLOCK], const tm_strip *strip,
                              tm_ahead *ahead) {
    int32_t steps = strip->span / TM_STEP;
    for (int32_t span = 0; span < strip->num_spans; span++) {
        look_ahead(ahead);
        for (int32_t step = 0; step < steps; step++) {
            int32_t at = span * steps + step;
            for (int lane = 0; lane < TM_BLOCK; lane += TM_LANES) {
                tm_ints codes;
                tm_floats zeros, scales;
                memcpy(&codes, strip->codes + at * TM_STEP_CODES + lane * TM_STEP, sizeof codes);
                memcpy(&zeros, strip->zeros[span] + lane, sizeof zeros);
                memcpy(&scales, strip->scales[span] + lane, sizeof scales);
                for (int input = 0; input < TM_STEP; input++) {
                    tm_floats values =
                        __builtin_convertvector((codes >> (8 * input)) & 255, tm_floats);
                    values = (values - zeros) * scales;
                    memcpy(weights[at * TM_STEP + input] + lane, &values, sizeof values);
                }
            }
        }
    }
}

/* totals[r] = inputs[slots[r], first .. first + count] @ weights, float32 [rows][TM_BLOCK]. */
TM_INLINE void multiply_float(float (*totals)[TM_BLOCK], float (*weights)[TM_BLOCK],
                              int32_t first, int32_t count, const tm_inputs *inputs,
                              const int32_t *slots, const int rows) {
    const float *x[TM_FLOAT_ROWS];
    TM_UNROLL
    for (int r = 0; r < rows; r++) x[r] = inputs->values + (int64_t)slots[r] * inputs->width + first;
    for (int lane = 0; lane < TM_BLOCK; lane += 2 * TM_LANES) {
        tm_floats total[TM_FLOAT_ROWS][2];
        TM_UNROLL
        for (int r = 0; r < rows; r++) total[r][0] = total[r][1] = (tm_floats){0};
        for (int32_t input = 0; input < count; input++) {
            tm_floats low, high;
            memcpy(&low, weights[input] + lane, sizeof low);
            memcpy(&high, weights[input] + lane + TM_LANES, sizeof high);
            TM_UNROLL
            for (int r = 0; r < rows; r++) {
                total[r][0] += x[r][input] * low;
                total[r][1] += x[r][input] * high;
            }
        }
        TM_UNROLL
        for (int r = 0; r < rows; r++) memcpy(totals[r] + lane, total[r], sizeof total[r]);
    }
}

static void multiply_float_rows(float (*totals)[TM_BLOCK], float (*weights)[TM_BLOCK],
                                int32_t first, int32_t count, const tm_inputs *inputs,
                                const int32_t *slots, int rows) {
#define TM_CASE(n) \
    case n: multiply_float(totals, weights, first, count, inputs, slots, n); break
    switch (rows) {
        TM_CASE(1); TM_CASE(2); TM_CASE(3); TM_CASE(4);
#if TM_FLOAT_ROWS == 8
        TM_CASE(5); TM_CASE(6); TM_CASE(7); TM_CASE(8);
#endif
    }
#undef TM_CASE
}

#endif
