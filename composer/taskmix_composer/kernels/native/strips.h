/* Decoding: inputs first .. first + count of one strip, as bytes in the order of the steps. */
#ifndef TM_STRIPS_H
#define TM_STRIPS_H

#include <immintrin.h>
#include <string.h>

#include "taskmix_kernels.h"

/* The most inputs that are decoded at a time: with them a strip and what it is multiplied with
 * stay in a core's first cache. A multiple of TM_SPAN. */
#define TM_MAX_CHUNK 768
#define TM_MIN_GROUP 32
#define TM_MAX_SPANS (TM_MAX_CHUNK / TM_MIN_GROUP)

/* Memory for decoding, one for each thread. */
typedef struct {
    uint8_t codes[TM_MAX_CHUNK * TM_BLOCK] __attribute__((aligned(64)));
    uint8_t masked[TM_MAX_CHUNK * TM_BLOCK] __attribute__((aligned(64)));
    uint8_t zero_codes[TM_MAX_SPANS][TM_STEP_CODES] __attribute__((aligned(64)));
    float scales[TM_MAX_SPANS][TM_BLOCK] __attribute__((aligned(64)));
    float zeros[TM_MAX_SPANS][TM_BLOCK] __attribute__((aligned(64)));
    uint64_t num_kept; /* weights of a sparse strip that were decoded */
} tm_bench;

/* Decoded inputs of a strip. A span of inputs shares scales and zeros, [num_spans][TM_BLOCK]. */
typedef struct {
    const uint8_t *codes; /* [inputs / TM_STEP][TM_STEP_CODES] */
    const float (*scales)[TM_BLOCK];
    const float (*zeros)[TM_BLOCK];
    int32_t first;
    int32_t num_spans;
    int32_t span; /* 64, or 32 */
} tm_strip;

static inline int32_t padded_inputs(int32_t num_inputs) {
    return (num_inputs + TM_SPAN - 1) / TM_SPAN * TM_SPAN;
}

/* Words of 64 bits that a mask has for each strip. */
static inline int64_t words_per_strip(const tm_source *source) {
    return padded_inputs(source->num_inputs) / TM_STEP * (TM_STEP_CODES / 64);
}

static inline const uint8_t *strip_at(const tm_source *source, int64_t index) {
    return source->data + index * source->stride;
}

/* 64 bytes that are `value` where a bit is set, and else 0. */
static inline void bytes_where(uint8_t *bytes, uint64_t bits, uint8_t value) {
#ifdef __AVX512BW__
    _mm512_store_si512((void *)bytes, _mm512_maskz_set1_epi8(bits, (char)value));
#else
    for (int octet = 0; octet < 8; octet++) {
        uint64_t lanes = _pdep_u64(bits >> (8 * octet), 0x0101010101010101u) * value;
        memcpy(bytes + 8 * octet, &lanes, 8);
    }
#endif
}

/* 64 bytes: those of `codes` where a bit is set, and else those of `zeros`. */
static inline void bytes_or(uint8_t *bytes, uint64_t bits, const uint8_t *codes,
                            const uint8_t *zeros) {
#ifdef __AVX512BW__
    __m512i kept = _mm512_load_si512((const void *)codes);
    __m512i other = _mm512_load_si512((const void *)zeros);
    _mm512_store_si512((void *)bytes, _mm512_mask_blend_epi8(bits, other, kept));
#else
    for (int octet = 0; octet < 8; octet++) {
        uint64_t select = _pdep_u64(bits >> (8 * octet), 0x0101010101010101u) * 255;
        uint64_t kept, other;
        memcpy(&kept, codes + 8 * octet, 8);
        memcpy(&other, zeros + 8 * octet, 8);
        kept = (kept & select) | (other & ~select);
        memcpy(bytes + 8 * octet, &kept, 8);
    }
#endif
}

static inline void decode_bits4(uint8_t *restrict codes, const uint8_t *restrict packed,
                                int32_t count) {
    for (int32_t step = 0; step < count / TM_STEP; step++, packed += 64, codes += 128)
        for (int lane = 0; lane < 64; lane++) {
            codes[lane] = packed[lane] & 15;
            codes[64 + lane] = packed[lane] >> 4;
        }
}

static inline void decode_bits2(uint8_t *restrict codes, const uint8_t *restrict packed,
                                int32_t count) {
    for (int32_t pair = 0; pair < count / (2 * TM_STEP); pair++, packed += 64, codes += 256)
        for (int lane = 0; lane < 64; lane++) {
            codes[lane] = packed[lane] & 3;
            codes[64 + lane] = packed[lane] >> 2 & 3;
            codes[128 + lane] = packed[lane] >> 4 & 3;
            codes[192 + lane] = packed[lane] >> 6;
        }
}

static inline void decode_bits1(uint8_t *codes, const uint64_t *words, int32_t count) {
    for (int32_t word = 0; word < count / TM_STEP * 2; word++)
        bytes_where(codes + 64 * word, words[word], 2);
}

/* The next 64 bits of a plane, at any bit. */
static inline uint64_t bits_at(const uint8_t *plane, uint64_t bit) {
    uint64_t low, high;
    memcpy(&low, plane + bit / 8, 8);
    memcpy(&high, plane + bit / 8 + 8, 8);
    return low >> bit % 8 | high << 1 << (63 - bit % 8);
}

/* The codes of a word whose kept weights are one off zero. */
static inline void decode_units(uint8_t *codes, int32_t zero, uint64_t kept, uint64_t positive) {
#ifdef __AVX512BW__
    __m512i values = _mm512_set1_epi8((char)zero);
    values = _mm512_mask_mov_epi8(values, kept, _mm512_set1_epi8((char)(zero - 1)));
    values = _mm512_mask_mov_epi8(values, positive, _mm512_set1_epi8((char)(zero + 1)));
    _mm512_store_si512((void *)codes, values);
#else
    uint8_t off[64];
    bytes_where(codes, kept, 1);
    bytes_where(off, positive, 2);
    for (int lane = 0; lane < 64; lane++) codes[lane] = (uint8_t)(zero - codes[lane] + off[lane]);
#endif
}

/* The codes of a word whose kept weights, from the one at `at` on, have levels. */
static inline void decode_levels(uint8_t *codes, const tm_source *source, const uint8_t *planes,
                                 uint64_t at, uint64_t kept, uint64_t positive) {
    uint8_t off[64] __attribute__((aligned(64))), level[64] __attribute__((aligned(64)));
    uint8_t minus[64] __attribute__((aligned(64)));
    bytes_where(off, kept, 1);
    for (int32_t plane = 1; plane < source->num_planes; plane++) {
        uint64_t bits = bits_at(planes + plane * source->plane_bytes, at);
        bytes_where(level, _pdep_u64(bits, kept), (uint8_t)(1 << (plane - 1)));
        for (int lane = 0; lane < 64; lane++) off[lane] += level[lane];
    }
    for (int lane = 0; lane < 64; lane++) {
        minus[lane] = (uint8_t)(source->zero - off[lane]);
        off[lane] = (uint8_t)(source->zero + off[lane]);
    }
    bytes_or(codes, positive, off, minus);
}

static inline void decode_sparse(tm_bench *bench, const tm_source *source, const uint8_t *strip,
                                 int32_t first, int32_t count) {
    const uint64_t *kept = (const uint64_t *)strip + first / TM_STEP * 2;
    const uint8_t *planes = strip + source->extra_at;
    uint64_t at = first ? bench->num_kept : 0;
    for (int32_t word = 0; word < count / TM_STEP * 2; word++) {
        uint64_t positive = _pdep_u64(bits_at(planes, at), kept[word]);
        if (source->num_planes == 1)
            decode_units(bench->codes + 64 * word, source->zero, kept[word], positive);
        else
            decode_levels(bench->codes + 64 * word, source, planes, at, kept[word], positive);
        at += (uint64_t)__builtin_popcountll(kept[word]);
    }
    bench->num_kept = at;
}

/* Scales and zeros of each span, as float32. */
static inline void decode_scales(tm_bench *bench, const tm_source *source, const uint8_t *strip,
                                 const tm_strip *out) {
    for (int32_t span = 0; span < out->num_spans; span++) {
        float *scales = bench->scales[span], *zeros = bench->zeros[span];
        if (source->group == 0) {
            memcpy(scales, strip + source->scales_at, sizeof bench->scales[0]);
            for (int lane = 0; lane < TM_BLOCK; lane++) zeros[lane] = (float)source->zero;
            continue;
        }
        int64_t group = (out->first + span * out->span) / source->group;
        const uint8_t *halves = strip + source->scales_at + group * TM_BLOCK * 2;
        const uint8_t *codes = strip + source->extra_at + group * TM_BLOCK;
        for (int lane = 0; lane < TM_BLOCK; lane += 8) {
            __m128i eight = _mm_loadu_si128((const __m128i *)(halves + 2 * lane));
            _mm256_storeu_ps(scales + lane, _mm256_cvtph_ps(eight));
        }
        for (int lane = 0; lane < TM_BLOCK; lane++) zeros[lane] = (float)codes[lane];
    }
}

/* Inputs that share scales, and at most TM_SPAN. */
static inline int32_t span_of(const tm_source *source) {
    return source->group % TM_SPAN ? TM_MIN_GROUP : TM_SPAN;
}

/* Where the codes from input `first` on are, in all but sparse strips. */
static inline const uint8_t *packed_at(const tm_source *source, const uint8_t *strip,
                                       int32_t first) {
    return strip + (int64_t)first * TM_BLOCK * source->coding / 8;
}

/* The codes of inputs first .. first + count of a strip. Both are multiples of TM_SPAN; those of
 * a sparse strip must be asked for in order, from the first on. */
static inline const uint8_t *decode_codes(tm_bench *bench, const tm_source *source, int64_t index,
                                          int32_t first, int32_t count) {
    const uint8_t *strip = strip_at(source, index);
    const uint8_t *packed = packed_at(source, strip, first);
    switch (source->coding) {
    case TM_BITS1: decode_bits1(bench->codes, (const uint64_t *)packed, count); break;
    case TM_BITS2: decode_bits2(bench->codes, packed, count); break;
    case TM_BITS4: decode_bits4(bench->codes, packed, count); break;
    case TM_BITS8: return packed;
    default: decode_sparse(bench, source, strip, first, count);
    }
    return bench->codes;
}

/* The same inputs with their scales and zeros. */
static inline tm_strip decode(tm_bench *bench, const tm_source *source, int64_t index,
                              int32_t first, int32_t count) {
    int32_t span = span_of(source);
    tm_strip out = {decode_codes(bench, source, index, first, count),
                    bench->scales, bench->zeros, first, count / span, span};
    decode_scales(bench, source, strip_at(source, index), &out);
    return out;
}

/* The same inputs, zero where the mask is. `mask`: the words of the whole strip. */
static inline tm_strip masked(tm_bench *bench, const tm_strip *strip, const uint64_t *mask) {
    tm_strip out = *strip;
    int32_t steps = strip->span / TM_STEP;
    const uint64_t *words = mask + strip->first / TM_STEP * 2;
    for (int32_t span = 0; span < strip->num_spans; span++) {
        uint8_t *zeros = bench->zero_codes[span];
        for (int lane = 0; lane < TM_STEP_CODES; lane++)
            zeros[lane] = (uint8_t)strip->zeros[span][lane / TM_STEP];
        for (int32_t word = 0; word < 2 * steps; word++) {
            int64_t at = (int64_t)(span * 2 * steps + word);
            bytes_or(bench->masked + 64 * at, words[at], strip->codes + 64 * at,
                     zeros + 64 * (word % 2));
        }
    }
    out.codes = bench->masked;
    return out;
}

#endif
