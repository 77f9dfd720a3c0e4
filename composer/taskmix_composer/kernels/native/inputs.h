/* The rows that are multiplied, made ready once a call. */
#ifndef TM_INPUTS_H
#define TM_INPUTS_H

#include <float.h>
#include <math.h>

#include "rows.h"
#include "scratch.h"
#include "strips.h"

#ifdef __AVX512VNNI__
#define TM_HAS_INT8 1
#else
#define TM_HAS_INT8 0
#endif

/* Rows padded with zeros to `width` inputs: float32 `values`, or, for products in int8, `codes`
 * in [-127, 127] with a scale per span of 64 and the sums of the codes over spans of 32 and 64. */
typedef struct {
    float *values;
    int8_t *codes;
    float *scales;
    float *sums[2];
    int32_t width;
    int32_t is_int8;
} tm_inputs;

static inline size_t inputs_bytes(int64_t rows, int32_t width, int32_t is_int8) {
    if (!is_int8) return tm_aligned(rows * width * sizeof(float));
    return tm_aligned(rows * width) + tm_aligned(rows * (width / 64) * sizeof(float)) * 2 +
           tm_aligned(rows * (width / 32) * sizeof(float));
}

static inline tm_inputs place_inputs(char *memory, int64_t rows, int32_t width, int32_t is_int8) {
    tm_inputs inputs = {.width = width, .is_int8 = is_int8};
    if (!is_int8) {
        inputs.values = (float *)memory;
        return inputs;
    }
    inputs.codes = (int8_t *)memory;
    inputs.scales = (float *)(memory += tm_aligned(rows * width));
    inputs.sums[1] = (float *)(memory += tm_aligned(rows * (width / 64) * sizeof(float)));
    inputs.sums[0] = (float *)(memory + tm_aligned(rows * (width / 64) * sizeof(float)));
    return inputs;
}

#if TM_HAS_INT8
static inline float largest_magnitude(const float *values) {
    __m512 largest = _mm512_setzero_ps();
    __mmask16 is_nan = 0;
    for (int at = 0; at < TM_SPAN; at += 16) {
        __m512 sixteen = _mm512_loadu_ps(values + at);
        is_nan |= _mm512_cmp_ps_mask(sixteen, sixteen, _CMP_UNORD_Q);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(sixteen));
    }
    return is_nan ? NAN : _mm512_reduce_max_ps(largest);
}

/* One span of a row. A NaN or an infinity makes the scale one, and so the products. */
static inline void quantize_span(const tm_inputs *inputs, const float *values, int64_t at) {
    float largest = largest_magnitude(values);
    float inverse = largest >= FLT_MIN * 127 ? 127 / largest : 0;
    inputs->scales[at] = largest / 127;
    float total = 0;
    for (int half = 0; half < 2; half++) {
        __m512i sums = _mm512_setzero_si512();
        for (int part = 0; part < 32; part += 16) {
            __m512 sixteen = _mm512_loadu_ps(values + 32 * half + part);
            __m512i codes = _mm512_cvtps_epi32(_mm512_mul_ps(sixteen, _mm512_set1_ps(inverse)));
            sums = _mm512_add_epi32(sums, codes);
            _mm_storeu_si128((__m128i *)(inputs->codes + at * TM_SPAN + 32 * half + part),
                             _mm512_cvtsepi32_epi8(codes));
        }
        float sum = (float)_mm512_reduce_add_epi32(sums);
        inputs->sums[0][2 * at + half] = sum;
        total += sum;
    }
    inputs->sums[1][at] = total;
}
#endif

/* Make row `row` of `x` ready as row `slot`. */
static inline void prepare_row(const tm_inputs *inputs, int64_t slot, const tm_matrix *x,
                               int64_t row, int32_t num_inputs) {
    for (int32_t first = 0; first < inputs->width; first += TM_SPAN) {
        float span[TM_SPAN] = {0};
        int32_t count = num_inputs - first < TM_SPAN ? num_inputs - first : TM_SPAN;
        load_row(span, element_at(x, row, first), x->dtype, count);
#if TM_HAS_INT8
        if (inputs->is_int8) {
            quantize_span(inputs, span, (slot * inputs->width + first) / TM_SPAN);
            continue;
        }
#endif
        memcpy(inputs->values + slot * inputs->width + first, span, sizeof span);
    }
}

#endif
