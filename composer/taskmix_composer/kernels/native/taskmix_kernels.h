/* What the callers and the kernels agree on: coded weights, parts, pairs, and the entry points.
 *
 * A weight is (code - zero) * scale, with codes of at most 8 bits. A source holds them in strips
 * of TM_BLOCK outputs. Within a strip, codes go in steps of TM_STEP inputs, each step being two
 * vectors of 64 codes: outputs 0-15, then 16-31, and of each output its four inputs. Inputs are
 * padded to a multiple of TM_SPAN and outputs to one of TM_BLOCK; what pads does not matter for
 * outputs, and meets inputs that are 0.
 */
#ifndef TASKMIX_KERNELS_H
#define TASKMIX_KERNELS_H

#include <stdint.h>

#define TM_BLOCK 32
#define TM_STEP 4
#define TM_SPAN 64
#define TM_STEP_CODES (TM_BLOCK * TM_STEP)

/* How a strip stores its vectors of 64 codes, v0 v1 v2 ... */
enum tm_coding {
    TM_BITS1 = 1,  /* a word of 64 bits for each vector; a set bit is the code 2, another is 0 */
    TM_BITS2 = 2,  /* 64 bytes hold four vectors, the first in the lowest bits */
    TM_BITS4 = 4,  /* 64 bytes hold two vectors, the first in the lower half */
    TM_BITS8 = 8,  /* as they are */
    TM_SPARSE = 16 /* a word for each vector, its set bits being the weights that are kept; then
                      planes of one bit for each kept weight, in order: its sign (1: positive),
                      and the bits of its level; the code is zero +- (1 + level) */
};

enum tm_dtype { TM_FLOAT32 = 0, TM_BFLOAT16 = 1, TM_FLOAT16 = 2 };

typedef struct {
    const uint8_t *data;   /* aligned to 64 bytes, like every strip */
    int64_t stride;        /* bytes from one strip to the next */
    int64_t scales_at;     /* where in a strip its scales start */
    int64_t extra_at;      /* where its zeros (grouped) or its planes (sparse) start */
    int64_t plane_bytes;   /* of each plane of a sparse strip */
    int32_t num_outputs;
    int32_t num_inputs;
    int32_t coding;        /* tm_coding */
    int32_t num_planes;    /* of a sparse strip */
    int32_t group;         /* inputs that share float16 scales [groups][32] and uint8 zeros
                              [groups][32], a multiple of 32; 0: float32 scales [32] */
    int32_t zero;          /* the zero of all codes where `group` is 0 */
} tm_source;

typedef struct {
    const tm_source *source;
    const uint64_t *mask;  /* 1 where a weight counts, [strips][vectors]; NULL: all do */
    const int32_t *rows;   /* which output each coded one is, ascending; NULL: they run on */
    float factor;          /* of the whole part */
    int32_t task;
    int32_t start;         /* the output at which the coded ones start */
    int32_t column;        /* of the coefficients */
} tm_part;

/* Parts first_part .. first_part + num_parts all give the outputs start .. start + size. */
typedef struct {
    int32_t start;
    int32_t size;
    int32_t first_part;
    int32_t num_parts;
} tm_segment;

typedef struct {
    const tm_part *parts;        /* segment by segment, then those in no segment */
    const tm_segment *segments;  /* disjoint, and all of [0, num_outputs) if any part is loose */
    int32_t num_parts;
    int32_t num_segments;
    int32_t first_loose;
    int32_t num_outputs;
    int32_t num_inputs;
} tm_table;

/* Task t contributes to the pairs starts[t] .. starts[t + 1]. */
typedef struct {
    const int32_t *starts;      /* [num_tasks + 1] */
    const int32_t *slots;       /* [num_pairs], which of `used` a pair's row is */
    const int32_t *used;        /* [num_used], the rows that occur, ascending */
    const float *coefficients;  /* [columns, num_pairs] */
    int32_t num_tasks;
    int32_t num_pairs;
    int32_t num_used;
} tm_pairs;

/* The instruction set to use on this machine: 2 (AVX-512), 1 (AVX2) or 0 (none that will do). */
int32_t tm_level(void);

/* Each is there once per instruction set; the return value is 0, or 1 if memory ran out. A matrix
 * is its address, the elements from one row to the next, and its tm_dtype. `is_exact`: products in
 * float32 even where those in int8 are faster. */
#define TM_DECLARE(level)                                                                        \
    int32_t tm_add_products_##level(const tm_table *, const tm_pairs *, void *y,                 \
                                    int64_t y_stride, int32_t y_dtype, void *x,                  \
                                    int64_t x_stride, int32_t x_dtype, int32_t is_exact);        \
    int32_t tm_add_lookups_##level(const tm_table *, const tm_pairs *, void *y,                  \
                                   int64_t y_stride, int32_t y_dtype, const int64_t *ids);       \
    int32_t tm_add_weights_##level(const tm_table *, const float *coefficients, void *out,       \
                                   int64_t out_stride, int32_t out_dtype);                       \
    int32_t tm_scale_norms_##level(void *out, int64_t out_stride, int32_t out_dtype, void *x,    \
                                   int64_t x_stride, int32_t x_dtype, void *residual,            \
                                   int64_t residual_stride, const int64_t *rows,                 \
                                   int64_t num_rows, const int64_t *variants,                    \
                                   const float *weights, int32_t num_groups, int32_t width,      \
                                   float epsilon);

TM_DECLARE(avx2)
TM_DECLARE(avx512)

#define TM_JOIN_(name, level) name##_##level
#define TM_JOIN(name, level) TM_JOIN_(name, level)
/* The name of an entry point in the object being compiled, whose level is TM_LEVEL. */
#define TM_ENTRY(name) TM_JOIN(name, TM_LEVEL)

#endif
