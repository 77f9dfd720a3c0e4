/* y += sum over parts and pairs of coefficient * (x[row] @ weights.T).
 *
 * Threads take runs of blocks of 32 outputs. For a block, each source is decoded once, a chunk of
 * inputs at a time, and multiplied with all rows that want it; the sums of all parts are added to
 * y and rounded once. A source's blocks follow each other in memory and are read in this order, so
 * that the processor sees a long stream coming; what it cannot foresee is asked for ahead.
 *
 * The outputs of a loose part lie anywhere. Its strips are multiplied when the first block that
 * they touch comes up, and held until the last one has passed.
 */
#include <omp.h>

#include "multiply_float.h"
#include "multiply_int8.h"
#include "parts.h"
#include "scratch.h"

/* One piece of work in each block of a segment: the inputs first .. first + count of a part. */
typedef struct {
    const tm_part *part;
    int32_t first;
    int32_t count;
    int32_t is_decoded;  /* by the unit before, which has the same source */
    int32_t is_unpacked; /* before they are multiplied: sparse codes, and those under a mask */
} tm_unit;

/* The most blocks whose sums a thread has at hand. */
#define TM_RUN 8

/* What all threads of a call read. */
typedef struct {
    const tm_table *table;
    const tm_pairs *pairs;
    tm_matrix y;
    tm_matrix x;
    int32_t is_exact;
    tm_inputs inputs;
    tm_unit *units;       /* segment by segment */
    int32_t *first_unit;  /* [num_segments + 1] */
    int32_t *first_block; /* [num_segments + 1] */
    int32_t *in_order;    /* 0, 1, 2, ... [num_pairs] */
    int32_t chunk;
} tm_call;

/* A loose part's products of one strip, scaled: [pairs][TM_BLOCK]. */
typedef struct {
    float (*products)[TM_BLOCK];
    int64_t strip; /* or -1 */
} tm_held;

/* What one thread works in. */
typedef struct {
    tm_bench bench;
    float weights[TM_FLOAT_CHUNK][TM_BLOCK] __attribute__((aligned(64)));
    tm_strip strip; /* what was decoded last, for products in float32 or int8 */
#if TM_HAS_INT8
    tm_operand operand;
#endif
    tm_ahead ahead;
    float (*sums)[TM_BLOCK]; /* [TM_RUN][num_used] */
    tm_held *held;           /* of the loose parts */
} tm_worker;

static int32_t pairs_of(const tm_call *call, const tm_part *part) {
    return call->pairs->starts[part->task + 1] - call->pairs->starts[part->task];
}

static int32_t blocks_of(const tm_segment *segment) {
    return (segment->size + TM_BLOCK - 1) / TM_BLOCK;
}

/* ---- What to do, listed once a call ---- */

static int32_t must_unpack(const tm_part *part) {
    return part->mask != NULL || part->source->coding == TM_SPARSE;
}

/* List the units of the parts from `part` to `end` that have one source; returns their number. */
static int32_t list_run(const tm_call *call, tm_unit *units, const tm_part *part,
                        const tm_part *end) {
    const tm_source *source = part->source;
    int32_t width = call->inputs.width, num = 0, is_unpacked = 0;
    for (const tm_part *each = part; each < end; each++) is_unpacked |= must_unpack(each);
    for (int32_t first = 0; first < width; first += call->chunk) {
        int32_t is_decoded = 0;
        for (const tm_part *each = part; each < end; each++) {
            if (each->source != source || pairs_of(call, each) == 0) continue;
            units[num++] = (tm_unit){each, first, smaller(call->chunk, width - first), is_decoded,
                                     is_unpacked};
            is_decoded = 1;
        }
    }
    return num;
}

static void list_units(tm_call *call) {
    int32_t num_units = 0, num_blocks = 0;
    for (int32_t s = 0; s < call->table->num_segments; s++) {
        const tm_segment *segment = call->table->segments + s;
        call->first_unit[s] = num_units;
        call->first_block[s] = num_blocks;
        num_blocks += blocks_of(segment);
        const tm_part *part = call->table->parts + segment->first_part;
        const tm_part *end = part + segment->num_parts;
        while (part < end) {
            const tm_part *next = part;
            while (next < end && next->source == part->source) next++;
            num_units += list_run(call, call->units + num_units, part, next);
            part = next;
        }
    }
    call->first_unit[call->table->num_segments] = num_units;
    call->first_block[call->table->num_segments] = num_blocks;
}

/* ---- Reading ahead ---- */

/* What `unit` reads in strip `index`, to be asked for over `num_spans` spans. With the last of its
 * codes go the strip's scales, which are next to them. */
static tm_ahead ahead_of(const tm_unit *unit, int64_t index, int32_t num_spans) {
    const tm_source *source = unit->part->source;
    int64_t bits = source->coding == TM_SPARSE ? 1 : source->coding;
    int64_t first = unit->first * TM_BLOCK * bits / 8, bytes = unit->count * TM_BLOCK * bits / 8;
    tm_ahead ahead = {0};
    if (first + bytes == source->scales_at) bytes = source->stride - first;
    if (!unit->is_decoded)
        plan_range(&ahead, 0, strip_at(source, index) + first, bytes, num_spans);
    if (unit->part->mask != NULL)
        plan_range(&ahead, 1,
                   unit->part->mask + index * words_per_strip(source) + unit->first / 2,
                   unit->count * TM_BLOCK / 8, num_spans);
    return ahead;
}

/* The first unit after `unit` that can be run for many blocks at a time: it decodes something of
 * its own, and does not go on in a sparse strip, which must be decoded in order. */
static const tm_unit *unit_after(const tm_call *call, const tm_unit *unit) {
    const tm_unit *end = call->units + call->first_unit[call->table->num_segments];
    do unit++;
    while (unit < end && (unit->is_decoded || (unit->first > 0 &&
                                               unit->part->source->coding == TM_SPARSE)));
    return unit;
}

/* ---- Multiplying ---- */

/* Where the products of a pair go, and how much of them. */
typedef struct {
    float (*sums)[TM_BLOCK];
    const int32_t *targets; /* of each pair of the task */
    const float *coefficients;
    float factor;
} tm_sink;

static void add_scaled(const tm_sink *sink, int32_t pair, float (*totals)[TM_BLOCK],
                       int32_t rows) {
    for (int32_t r = 0; r < rows; r++) {
        float coefficient = sink->coefficients[pair + r] * sink->factor;
        float *sums = sink->sums[sink->targets[pair + r]];
        for (int lane = 0; lane < TM_BLOCK; lane++) sums[lane] += coefficient * totals[r][lane];
    }
}

/* Pairs to multiply at once, when `left` are to be shared out evenly. */
static int32_t share(int32_t left, int32_t at_most) {
    int32_t rounds = (left + at_most - 1) / at_most;
    return (left + rounds - 1) / rounds;
}

/* The products of inputs first .. first + count of strip `index` of a part, for all its pairs.
 * `is_decoded`: `worker` has their codes, if such are kept, from the call before. */
static void multiply_float_part(const tm_call *call, tm_worker *worker, const tm_unit *unit,
                                int64_t index, const tm_sink *sink) {
    float totals[TM_FLOAT_ROWS][TM_BLOCK] __attribute__((aligned(64)));
    const tm_part *part = unit->part;
    const int32_t *slots = call->pairs->slots + call->pairs->starts[part->task];
    if (!unit->is_decoded)
        worker->strip = decode(&worker->bench, part->source, index, unit->first, unit->count);
    tm_strip strip = mask_strip(&worker->bench, part, &worker->strip, index);
    dequantize(worker->weights, &strip, &worker->ahead);
    int32_t num_pairs = pairs_of(call, part), rows;
    for (int32_t pair = 0; pair < num_pairs; pair += rows) {
        rows = share(num_pairs - pair, TM_FLOAT_ROWS);
        multiply_float_rows(totals, worker->weights, unit->first, unit->count, &call->inputs,
                            slots + pair, rows);
        add_scaled(sink, pair, totals, rows);
    }
}

#if TM_HAS_INT8
static void multiply_int8_part(const tm_call *call, tm_worker *worker, const tm_unit *unit,
                               int64_t index, const tm_sink *sink) {
    float totals[TM_INT8_ROWS][TM_BLOCK] __attribute__((aligned(64)));
    const tm_part *part = unit->part;
    const tm_source *source = part->source;
    const int32_t *slots = call->pairs->slots + call->pairs->starts[part->task];
    if (!unit->is_decoded) {
        worker->operand = operand_of(source, index, unit->first, unit->count);
        if (unit->is_unpacked)
            worker->operand = unpacked(&worker->bench, source, index, &worker->operand);
    }
    tm_operand operand = worker->operand;
    if (part->mask != NULL)
        operand = under_mask(&operand, part->mask + index * words_per_strip(source));
    int32_t num_pairs = pairs_of(call, part), rows;
    for (int32_t pair = 0; pair < num_pairs; pair += rows) {
        rows = share(num_pairs - pair, TM_INT8_ROWS);
        TM_MULTIPLY[operand.form][rows - 1](totals, &operand, &call->inputs, slots + pair,
                                            &worker->ahead);
        worker->ahead = (tm_ahead){0};
        add_scaled(sink, pair, totals, rows);
    }
}
#endif

/* The products of a unit in strip `index`, for all pairs of its task. */
static void multiply_unit(const tm_call *call, tm_worker *worker, const tm_unit *unit,
                          int64_t index, const tm_sink *sink) {
#if TM_HAS_INT8
    if (call->inputs.is_int8) {
        multiply_int8_part(call, worker, unit, index, sink);
        return;
    }
#endif
    multiply_float_part(call, worker, unit, index, sink);
}

static tm_sink sink_of(const tm_call *call, const tm_part *part, float (*sums)[TM_BLOCK],
                       const int32_t *targets) {
    const tm_pairs *pairs = call->pairs;
    int64_t first = (int64_t)part->column * pairs->num_pairs + pairs->starts[part->task];
    return (tm_sink){sums, targets, pairs->coefficients + first, part->factor};
}

/* The units from `unit` to `unit_after` it, in one block. `next` is what comes after them, in block
 * `next_block`. */
static void multiply_shared(const tm_call *call, tm_worker *worker, const tm_unit *unit,
                            const tm_unit *next, int32_t block, int32_t next_block,
                            float (*sums)[TM_BLOCK]) {
    for (const tm_unit *end = unit_after(call, unit); unit < end; unit++) {
        int32_t num_spans = unit->count / span_of(unit->part->source);
        worker->ahead = (tm_ahead){0};
        if (unit + 1 < end)
            worker->ahead = ahead_of(unit + 1, block, num_spans);
        else if (next != NULL)
            worker->ahead = ahead_of(next, next_block, num_spans);
        const int32_t *slots = call->pairs->slots + call->pairs->starts[unit->part->task];
        tm_sink sink = sink_of(call, unit->part, sums, slots);
        multiply_unit(call, worker, unit, block, &sink);
    }
}

/* Blocks first .. first + count of a segment, source by source. */
static void multiply_segment(const tm_call *call, tm_worker *worker, int32_t segment,
                             int32_t first, int32_t count) {
    const tm_unit *unit = call->units + call->first_unit[segment];
    const tm_unit *end = call->units + call->first_unit[segment + 1];
    while (unit < end) {
        const tm_unit *after = unit_after(call, unit);
        for (int32_t i = 0; i < count; i++) {
            const tm_unit *next = i + 1 < count ? unit : after < end ? after : NULL;
            int32_t next_block = i + 1 < count ? first + i + 1 : first;
            multiply_shared(call, worker, unit, next, first + i, next_block,
                            worker->sums + (int64_t)i * call->pairs->num_used);
        }
        unit = after;
    }
}

/* ---- Loose parts ---- */

/* The products of strip `index` of a loose part, for all its pairs. */
static void hold(const tm_call *call, tm_worker *worker, const tm_part *part, tm_held *held,
                 int64_t index) {
    int32_t width = call->inputs.width;
    tm_sink sink = sink_of(call, part, held->products, call->in_order);
    memset(held->products, 0, pairs_of(call, part) * sizeof *held->products);
    worker->ahead = (tm_ahead){0};
    for (int32_t first = 0; first < width; first += call->chunk) {
        tm_unit unit = {part, first, smaller(call->chunk, width - first), 0, must_unpack(part)};
        multiply_unit(call, worker, &unit, index, &sink);
    }
    held->strip = index;
}

static void add_loose(const tm_call *call, tm_worker *worker, const tm_part *part, tm_held *held,
                      int32_t start, int32_t size, float (*sums)[TM_BLOCK]) {
    const int32_t *slots = call->pairs->slots + call->pairs->starts[part->task];
    int32_t num_pairs = pairs_of(call, part), end = first_at(part, start + size);
    if (num_pairs == 0) return;
    for (int32_t coded = first_at(part, start); coded < end; coded++) {
        if (held->strip != coded / TM_BLOCK) hold(call, worker, part, held, coded / TM_BLOCK);
        int32_t lane = output_of(part, coded) - start;
        for (int32_t pair = 0; pair < num_pairs; pair++)
            sums[slots[pair]][lane] += held->products[pair][coded % TM_BLOCK];
    }
}

/* ---- Blocks, and the call ---- */

/* Ask for what blocks first .. first + count of a segment will be added to. Always inline: to GCC
 * a function that only prefetches has no effect, and a call of it is dropped. */
TM_INLINE void ask_for_rows(const tm_call *call, const tm_segment *segment, int32_t first,
                            int32_t count) {
    for (int32_t slot = 0; slot < call->pairs->num_used; slot++)
        for (int32_t block = first; block < first + count; block++)
            __builtin_prefetch(element_at(&call->y, call->pairs->used[slot],
                                          segment->start + block * TM_BLOCK), 1, 2);
}

/* Blocks first .. first + count of a segment, at most TM_RUN. */
static void run_blocks(const tm_call *call, tm_worker *worker, int32_t s, int32_t first,
                       int32_t count) {
    const tm_table *table = call->table;
    const tm_segment *segment = table->segments + s;
    const tm_pairs *pairs = call->pairs;
    int has_units = call->first_unit[s] < call->first_unit[s + 1];
    if (!has_units && table->first_loose == table->num_parts) return;
    memset(worker->sums, 0, (size_t)count * pairs->num_used * sizeof *worker->sums);
    ask_for_rows(call, segment, first, count);
    multiply_segment(call, worker, s, first, count);
    for (int32_t i = 0; i < count; i++) {
        float(*sums)[TM_BLOCK] = worker->sums + (int64_t)i * pairs->num_used;
        int32_t at = (first + i) * TM_BLOCK, size = smaller(TM_BLOCK, segment->size - at);
        for (int32_t p = table->first_loose; p < table->num_parts; p++)
            add_loose(call, worker, table->parts + p, worker->held + p - table->first_loose,
                      segment->start + at, size, sums);
        for (int32_t slot = 0; slot < pairs->num_used; slot++)
            add_to_row(element_at(&call->y, pairs->used[slot], segment->start + at), call->y.dtype,
                       sums[slot], size);
    }
}

/* The blocks from `block` on, of all segments, that are in its segment and before `end`. */
static int32_t run_at(const tm_call *call, tm_worker *worker, int32_t block, int32_t end) {
    int32_t s = 0;
    while (block >= call->first_block[s + 1]) s++;
    int32_t count = smaller(smaller(end, call->first_block[s + 1]) - block, TM_RUN);
    run_blocks(call, worker, s, block - call->first_block[s], count);
    return count;
}

static size_t worker_bytes(const tm_call *call) {
    const tm_table *table = call->table;
    size_t held = (table->num_parts - table->first_loose) * sizeof(tm_held);
    size_t rows = (size_t)TM_RUN * call->pairs->num_used;
    for (int32_t p = table->first_loose; p < table->num_parts; p++)
        rows += pairs_of(call, table->parts + p);
    return tm_aligned(sizeof(tm_worker)) + tm_aligned(held) + rows * TM_BLOCK * sizeof(float);
}

static tm_worker *place_worker(const tm_call *call) {
    const tm_table *table = call->table;
    int32_t num_loose = table->num_parts - table->first_loose;
    char *memory = tm_scratch(TM_OWN, worker_bytes(call));
    if (memory == NULL) return NULL;
    tm_worker *worker = (tm_worker *)memory;
    worker->held = (tm_held *)(memory += tm_aligned(sizeof *worker));
    worker->sums = (float(*)[TM_BLOCK])(memory + tm_aligned(num_loose * sizeof(tm_held)));
    float(*products)[TM_BLOCK] = worker->sums + (int64_t)TM_RUN * call->pairs->num_used;
    for (int32_t p = 0; p < num_loose; p++) {
        worker->held[p] = (tm_held){products, -1};
        products += pairs_of(call, table->parts + table->first_loose + p);
    }
    return worker;
}

/* Lay out what the threads share; the return value is 0 if memory ran out. */
static int place_call(tm_call *call) {
    const tm_table *table = call->table;
    int32_t width = padded_inputs(table->num_inputs);
    int32_t is_int8 = TM_HAS_INT8 && !call->is_exact && call->x.dtype != TM_FLOAT32;
    call->chunk = is_int8 ? TM_MAX_CHUNK : TM_FLOAT_CHUNK;
    size_t rows = inputs_bytes(call->pairs->num_used, width, is_int8);
    size_t units = tm_aligned(table->num_parts * ((width + call->chunk - 1) / call->chunk) *
                              sizeof(tm_unit));
    size_t firsts = tm_aligned((table->num_segments + 1) * sizeof(int32_t));
    size_t order = tm_aligned(call->pairs->num_pairs * sizeof(int32_t));
    char *memory = tm_scratch(TM_SHARED, rows + units + 2 * firsts + order);
    if (memory == NULL) return 0;
    call->inputs = place_inputs(memory, call->pairs->num_used, width, is_int8);
    call->units = (tm_unit *)(memory += rows);
    call->first_unit = (int32_t *)(memory += units);
    call->first_block = (int32_t *)(memory += firsts);
    call->in_order = (int32_t *)(memory + firsts);
    for (int32_t pair = 0; pair < call->pairs->num_pairs; pair++) call->in_order[pair] = pair;
    list_units(call);
    return 1;
}

/* Runs of as equal a length as can be, at least two a thread and as many for each. */
static int32_t runs_of(int32_t num_blocks, int32_t num_threads) {
    int32_t rounds = (num_blocks + TM_RUN * num_threads - 1) / (TM_RUN * num_threads);
    return num_threads * (rounds < 2 ? 2 : rounds);
}

int32_t TM_ENTRY(tm_add_products)(const tm_table *table, const tm_pairs *pairs, void *y,
                                  int64_t y_stride, int32_t y_dtype, void *x, int64_t x_stride,
                                  int32_t x_dtype, int32_t is_exact) {
    tm_call call = {.table = table,
                    .pairs = pairs,
                    .y = {y, y_stride, y_dtype},
                    .x = {x, x_stride, x_dtype},
                    .is_exact = is_exact};
    if (pairs->num_pairs == 0) return 0;
    if (!place_call(&call)) return 1;
    int32_t num_blocks = call.first_block[table->num_segments], failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        tm_worker *worker = place_worker(&call);
        failed = worker == NULL;
#pragma omp for schedule(static)
        for (int32_t slot = 0; slot < pairs->num_used; slot++)
            prepare_row(&call.inputs, slot, &call.x, pairs->used[slot], table->num_inputs);
        int32_t num_runs = runs_of(num_blocks, omp_get_num_threads());
#pragma omp for schedule(dynamic) nowait
        for (int32_t run = 0; run < num_runs; run++) {
            int32_t block = num_blocks * run / num_runs, end = num_blocks * (run + 1) / num_runs;
            while (block < end && worker != NULL) block += run_at(&call, worker, block, end);
        }
    }
    return failed;
}
