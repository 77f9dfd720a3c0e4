/* Rows of int8 inputs times a strip, whose codes are unpacked on the way (AVX-512 VNNI). */
#ifndef TM_MULTIPLY_INT8_H
#define TM_MULTIPLY_INT8_H

#include "ahead.h"
#include "inputs.h"

#if TM_HAS_INT8
#define TM_INT8_ROWS 8

/* How the kernel gets at a step's two vectors of codes. */
enum tm_form { TM_AS_BYTES, TM_AS_BITS4, TM_AS_BITS2, TM_AS_BITS1, TM_AS_MASKED, TM_NUM_FORMS };

/* Inputs first .. first + num_spans * steps * TM_STEP of a strip. */
typedef struct {
    const uint8_t *codes;  /* packed or not, those of the first of the inputs */
    const uint64_t *mask;  /* likewise; of TM_AS_MASKED */
    const uint8_t *scales; /* of the whole strip */
    const uint8_t *zeros;
    int32_t group;
    int32_t zero;
    int32_t first;
    int32_t num_spans;
    int32_t steps; /* of a span */
    enum tm_form form;
} tm_operand;

static inline tm_operand operand_of(const tm_source *source, int64_t index, int32_t first,
                                    int32_t count) {
    const uint8_t *strip = strip_at(source, index);
    int32_t steps = span_of(source) / TM_STEP;
    tm_operand operand = {.codes = packed_at(source, strip, first),
                          .scales = strip + source->scales_at,
                          .zeros = strip + source->extra_at,
                          .group = source->group,
                          .zero = source->zero,
                          .first = first,
                          .num_spans = count / (steps * TM_STEP),
                          .steps = steps};
    switch (source->coding) {
    case TM_BITS1: operand.form = TM_AS_BITS1; break;
    case TM_BITS2: operand.form = TM_AS_BITS2; break;
    case TM_BITS4: operand.form = TM_AS_BITS4; break;
    default: operand.form = TM_AS_BYTES;
    }
    return operand;
}

/* The operand with its codes unpacked into `bench`. */
static inline tm_operand unpacked(tm_bench *bench, const tm_source *source, int64_t index,
                                  const tm_operand *operand) {
    tm_operand out = *operand;
    int32_t count = operand->num_spans * operand->steps * TM_STEP;
    out.codes = decode_codes(bench, source, index, operand->first, count);
    out.form = TM_AS_BYTES;
    return out;
}

/* The operand under the mask of the whole strip; its codes must be bytes. */
static inline tm_operand under_mask(const tm_operand *operand, const uint64_t *mask) {
    tm_operand out = *operand;
    out.mask = mask + operand->first / TM_STEP * 2;
    out.form = TM_AS_MASKED;
    return out;
}

/* The codes of outputs 0-15 and 16-31 at a step; `zeros` are what a mask leaves. */
TM_INLINE void read_step(__m512i codes[2], const tm_operand *operand, const __m512i zeros[2],
                         const enum tm_form form, int32_t step) {
    const __m512i low4 = _mm512_set1_epi8(15), low2 = _mm512_set1_epi8(3);
    const uint8_t *bytes = operand->codes + (int64_t)step * TM_STEP_CODES;
    if (form == TM_AS_BITS4) {
        __m512i pair = _mm512_load_si512((const void *)(operand->codes + (int64_t)step * 64));
        codes[0] = _mm512_and_si512(pair, low4);
        codes[1] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low4);
    } else if (form == TM_AS_BITS2) {
        __m512i four = _mm512_load_si512((const void *)(operand->codes + (int64_t)step / 2 * 64));
        if (step % 2) four = _mm512_srli_epi16(four, 4);
        codes[0] = _mm512_and_si512(four, low2);
        codes[1] = _mm512_and_si512(_mm512_srli_epi16(four, 2), low2);
    } else if (form == TM_AS_BITS1) {
        const uint64_t *words = (const uint64_t *)operand->codes + 2 * (int64_t)step;
        codes[0] = _mm512_maskz_set1_epi8(words[0], 2);
        codes[1] = _mm512_maskz_set1_epi8(words[1], 2);
    } else {
        codes[0] = _mm512_load_si512((const void *)bytes);
        codes[1] = _mm512_load_si512((const void *)(bytes + 64));
    }
    if (form == TM_AS_MASKED) {
        codes[0] = _mm512_mask_blend_epi8(operand->mask[2 * step], zeros[0], codes[0]);
        codes[1] = _mm512_mask_blend_epi8(operand->mask[2 * step + 1], zeros[1], codes[1]);
    }
}

/* Scales and zeros of outputs 16 * half .. of a span. */
TM_INLINE void read_scales(const tm_operand *operand, int32_t span, int half, __m512 *scales,
                           __m512i *zeros) {
    if (operand->group == 0) {
        *scales = _mm512_loadu_ps(operand->scales + 64 * half);
        *zeros = _mm512_set1_epi32(operand->zero);
        return;
    }
    int32_t group = (operand->first + span * operand->steps * TM_STEP) / operand->group;
    int64_t at = (int64_t)group * TM_BLOCK + 16 * half;
    *scales = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(operand->scales + 2 * at)));
    *zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(operand->zeros + at)));
}

/* totals[r] = inputs[slots[r]] @ strip.T, float32 [rows][TM_BLOCK]. */
TM_INLINE void multiply_int8(float (*totals)[TM_BLOCK], const tm_operand *operand,
                             const tm_inputs *inputs, const int32_t *slots, tm_ahead *ahead,
                             const int rows, const enum tm_form form) {
    const int8_t *x[TM_INT8_ROWS];
    const float *scales[TM_INT8_ROWS], *sums[TM_INT8_ROWS];
    __m512 total[TM_INT8_ROWS][2];
    const int32_t steps = operand->steps, is_64 = steps * TM_STEP == TM_SPAN;
    const int64_t spans = inputs->width / (steps * TM_STEP);
    TM_UNROLL
    for (int r = 0; r < rows; r++) {
        int64_t slot = slots[r];
        x[r] = inputs->codes + slot * inputs->width + operand->first;
        sums[r] = inputs->sums[is_64] + slot * spans + operand->first / (steps * TM_STEP);
        scales[r] = inputs->scales + (slot * inputs->width + operand->first) / TM_SPAN;
        total[r][0] = total[r][1] = _mm512_setzero_ps();
    }
    for (int32_t span = 0; span < operand->num_spans; span++) {
        __m512i sum[TM_INT8_ROWS][2], zeros[2], zero_codes[2];
        __m512 scale[2];
        look_ahead(ahead);
        TM_UNROLL
        for (int half = 0; half < 2; half++) {
            read_scales(operand, span, half, &scale[half], &zeros[half]);
            zero_codes[half] = _mm512_mullo_epi32(zeros[half], _mm512_set1_epi32(0x01010101));
        }
        TM_UNROLL
        for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
        for (int32_t quad = span * steps; quad < (span + 1) * steps; quad += 4)
            TM_UNROLL
            for (int step = 0; step < 4; step++) {
                __m512i codes[2];
                read_step(codes, operand, zero_codes, form, quad + step);
                TM_UNROLL
                for (int r = 0; r < rows; r++) {
                    int32_t four;
                    memcpy(&four, x[r] + (quad + step) * TM_STEP, sizeof four);
                    __m512i inputs4 = _mm512_set1_epi32(four);
                    sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], codes[0], inputs4);
                    sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], codes[1], inputs4);
                }
            }
        TM_UNROLL
        for (int half = 0; half < 2; half++) {
            __m512 zero = _mm512_cvtepi32_ps(zeros[half]);
            TM_UNROLL
            for (int r = 0; r < rows; r++) {
                /* Whole numbers below 2^24: exact. */
                __m512 off_zero = _mm512_fnmadd_ps(zero, _mm512_set1_ps(sums[r][span]),
                                                   _mm512_cvtepi32_ps(sum[r][half]));
                __m512 unit = _mm512_mul_ps(
                    scale[half], _mm512_set1_ps(scales[r][is_64 ? span : span / 2]));
                total[r][half] = _mm512_fmadd_ps(off_zero, unit, total[r][half]);
            }
        }
    }
    TM_UNROLL
    for (int r = 0; r < rows; r++) {
        _mm512_store_ps(totals[r], total[r][0]);
        _mm512_store_ps(totals[r] + 16, total[r][1]);
    }
}

typedef void tm_multiply(float (*)[TM_BLOCK], const tm_operand *, const tm_inputs *,
                         const int32_t *, tm_ahead *);

#define TM_INSTANCE(rows, form)                                                               \
    static void multiply_##rows##_##form(float(*totals)[TM_BLOCK], const tm_operand *operand, \
                                         const tm_inputs *inputs, const int32_t *slots,       \
                                         tm_ahead *ahead) {                                   \
        multiply_int8(totals, operand, inputs, slots, ahead, rows, form);                     \
    }
#define TM_INSTANCES(form)                                                            \
    TM_INSTANCE(1, form) TM_INSTANCE(2, form) TM_INSTANCE(3, form) TM_INSTANCE(4, form) \
    TM_INSTANCE(5, form) TM_INSTANCE(6, form) TM_INSTANCE(7, form) TM_INSTANCE(8, form)
TM_INSTANCES(TM_AS_BYTES)
TM_INSTANCES(TM_AS_BITS4)
TM_INSTANCES(TM_AS_BITS2)
TM_INSTANCES(TM_AS_BITS1)
TM_INSTANCES(TM_AS_MASKED)

#define TM_BY_ROWS(form)                                                                        \
    {multiply_1_##form, multiply_2_##form, multiply_3_##form, multiply_4_##form,                \
     multiply_5_##form, multiply_6_##form, multiply_7_##form, multiply_8_##form}

/* By form, and by rows less one. */
static tm_multiply *const TM_MULTIPLY[TM_NUM_FORMS][TM_INT8_ROWS] = {
    TM_BY_ROWS(TM_AS_BYTES), TM_BY_ROWS(TM_AS_BITS4), TM_BY_ROWS(TM_AS_BITS2),
    TM_BY_ROWS(TM_AS_BITS1), TM_BY_ROWS(TM_AS_MASKED)};

#endif
#endif
