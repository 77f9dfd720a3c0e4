/* out[row] = x[row] / rms(x[row]) * weights[variants[row]], in groups of `width` (heads). With a
 * residual, x + residual takes the place of x, and of the residual. */
#include <math.h>

#include "rows.h"
#include "scratch.h"

typedef struct {
    tm_matrix x, out;
    tm_matrix residual;      /* of x's dtype; its data may be NULL */
    const int64_t *rows;     /* those to compute; NULL: all */
    const int64_t *variants; /* of each row of x */
    const float *weights;    /* [variants][width] */
    int32_t num_groups;
    int32_t width;
    float epsilon;
} tm_norms;

static inline void store_row(void *restrict row, int32_t dtype, const float *restrict values,
                             int32_t count) {
    uint16_t *halves = row;
    if (dtype == TM_FLOAT32) {
        memcpy(row, values, (size_t)count * sizeof *values);
    } else if (dtype == TM_BFLOAT16) {
        for (int32_t i = 0; i < count; i++) halves[i] = bfloat16_rounded(values[i]);
    } else {
        for (int32_t i = 0; i < count; i++)
            halves[i] = _cvtss_sh(values[i], _MM_FROUND_TO_NEAREST_INT);
    }
}

/* values += the residual, and what it is from here on. */
static void add_residual(const tm_norms *call, float *restrict values, int64_t row,
                         int64_t column) {
    float *restrict others = values + call->width;
    void *at = element_at(&call->residual, row, column);
    load_row(others, at, call->residual.dtype, call->width);
    for (int32_t i = 0; i < call->width; i++) values[i] += others[i];
    store_row(at, call->residual.dtype, values, call->width);
}

static void norm_group(const tm_norms *call, float *values, int64_t row, int32_t group) {
    int64_t column = (int64_t)group * call->width;
    const float *weight = call->weights + call->variants[row] * call->width;
    float sum = 0;
    load_row(values, element_at(&call->x, row, column), call->x.dtype, call->width);
    if (call->residual.data != NULL) add_residual(call, values, row, column);
#pragma omp simd reduction(+ : sum)
    for (int32_t i = 0; i < call->width; i++) sum += values[i] * values[i];
    float factor = 1 / sqrtf(sum / (float)call->width + call->epsilon);
    for (int32_t i = 0; i < call->width; i++) values[i] = values[i] * factor * weight[i];
    store_row(element_at(&call->out, row, column), call->out.dtype, values, call->width);
}

int32_t TM_ENTRY(tm_scale_norms)(void *out, int64_t out_stride, int32_t out_dtype, void *x,
                                 int64_t x_stride, int32_t x_dtype, void *residual,
                                 int64_t residual_stride, const int64_t *rows, int64_t num_rows,
                                 const int64_t *variants, const float *weights,
                                 int32_t num_groups, int32_t width, float epsilon) {
    const tm_norms call = {.x = {x, x_stride, x_dtype},
                           .out = {out, out_stride, out_dtype},
                           .residual = {residual, residual_stride, x_dtype},
                           .rows = rows,
                           .variants = variants,
                           .weights = weights,
                           .num_groups = num_groups,
                           .width = width,
                           .epsilon = epsilon};
    int32_t failed = 0;
#pragma omp parallel reduction(| : failed) if (num_rows * num_groups * width > 1 << 16)
    {
        float *values = tm_scratch(TM_OWN, 2 * (size_t)width * sizeof *values);
        failed = values == NULL;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < num_rows; i++)
            for (int32_t group = 0; group < num_groups && !failed; group++)
                norm_group(&call, values, rows == NULL ? i : rows[i], group);
    }
    return failed;
}
