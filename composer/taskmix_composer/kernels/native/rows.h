/* Rows of matrices in any of the dtypes, from and to float32. */
#ifndef TM_ROWS_H
#define TM_ROWS_H

#include <immintrin.h>
#include <string.h>

#include "taskmix_kernels.h"

typedef struct {
    void *data;
    int64_t stride; /* elements from one row to the next */
    int32_t dtype;  /* tm_dtype */
} tm_matrix;

static inline float bfloat16_value(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Rounded to nearest, ties to even; a NaN stays one. */
static inline uint16_t bfloat16_rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    uint32_t quiet = bits >> 16 | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

static inline int64_t bytes_per_element(int32_t dtype) { return dtype == TM_FLOAT32 ? 4 : 2; }

/* The address of element [row, column]. */
static inline void *element_at(const tm_matrix *matrix, int64_t row, int64_t column) {
    int64_t at = row * matrix->stride + column;
    return (char *)matrix->data + at * bytes_per_element(matrix->dtype);
}

/* `count` elements as float32. */
static inline void load_row(float *restrict values, const void *restrict row, int32_t dtype,
                            int32_t count) {
    const uint16_t *halves = row;
    if (dtype == TM_FLOAT32) {
        memcpy(values, row, (size_t)count * sizeof *values);
    } else if (dtype == TM_BFLOAT16) {
        for (int32_t i = 0; i < count; i++) values[i] = bfloat16_value(halves[i]);
    } else {
        for (int32_t i = 0; i < count; i++) values[i] = _cvtsh_ss(halves[i]);
    }
}

/* row += values, rounded once. Adding 0 leaves every bit, those of -0 included. */
static inline void add_to_row(void *restrict row, int32_t dtype, const float *restrict values,
                              int32_t count) {
    float *floats = row;
    uint16_t *halves = row;
    if (dtype == TM_FLOAT32) {
        for (int32_t i = 0; i < count; i++)
            floats[i] = values[i] == 0 ? floats[i] : floats[i] + values[i];
    } else if (dtype == TM_BFLOAT16) {
        for (int32_t i = 0; i < count; i++) {
            uint16_t sum = bfloat16_rounded(bfloat16_value(halves[i]) + values[i]);
            halves[i] = values[i] == 0 ? halves[i] : sum;
        }
    } else {
        for (int32_t i = 0; i < count; i++) {
            uint16_t sum = _cvtss_sh(_cvtsh_ss(halves[i]) + values[i], _MM_FROUND_TO_NEAREST_INT);
            halves[i] = values[i] == 0 ? halves[i] : sum;
        }
    }
}

#endif
