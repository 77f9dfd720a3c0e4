/* Where the outputs of a part land, and its weights as floats. */
#ifndef TM_PARTS_H
#define TM_PARTS_H

#include "strips.h"

static inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

/* The output that a coded one is. */
static inline int32_t output_of(const tm_part *part, int32_t coded) {
    return part->start + (part->rows == NULL ? coded : part->rows[coded]);
}

/* The first coded output of a part that lands at `output` or later. */
static inline int32_t first_at(const tm_part *part, int32_t output) {
    int32_t low = 0, high = part->source->num_outputs, wanted = output - part->start;
    if (part->rows == NULL) return wanted < 0 ? 0 : smaller(wanted, high);
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (part->rows[middle] < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* A decoded strip of a part's source, with the part's mask applied. */
static inline tm_strip mask_strip(tm_bench *bench, const tm_part *part, const tm_strip *strip,
                                  int64_t index) {
    if (part->mask == NULL) return *strip;
    return masked(bench, strip, part->mask + index * words_per_strip(part->source));
}

/* Inputs first .. first + count of strip `index` of a part, its mask applied. */
static inline tm_strip decode_part(tm_bench *bench, const tm_part *part, int64_t index,
                                   int32_t first, int32_t count) {
    tm_strip strip = decode(bench, part->source, index, first, count);
    return mask_strip(bench, part, &strip, index);
}

/* sums[input] += coefficient * weight[lane][input] for the inputs of a strip; `sums` is of the
 * whole row, padded. */
static inline void add_lane(float *restrict sums, const tm_strip *strip, int32_t lane,
                            float coefficient) {
    uint8_t codes[TM_MAX_CHUNK];
    int32_t count = strip->num_spans * strip->span;
    for (int32_t step = 0; step < count / TM_STEP; step++)
        memcpy(codes + TM_STEP * step,
               strip->codes + step * TM_STEP_CODES + lane * TM_STEP, TM_STEP);
    sums += strip->first;
    for (int32_t span = 0; span < strip->num_spans; span++) {
        float scale = strip->scales[span][lane], zero = strip->zeros[span][lane];
        for (int32_t i = span * strip->span; i < (span + 1) * strip->span; i++)
            sums[i] += coefficient * (((float)codes[i] - zero) * scale);
    }
}

#endif
