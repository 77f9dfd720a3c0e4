/* y[row] += sum over parts and pairs of coefficient * weights[ids[row]].
 *
 * Threads take rows. What a row looks up is decoded with the whole strip that it is in: its codes
 * lie on every cache line of the strip.
 */
#include <omp.h>

#include "parts.h"
#include "rows.h"
#include "scratch.h"

typedef struct {
    const tm_table *table;
    const tm_pairs *pairs;
    const int64_t *ids;
    float *sums; /* [num_used][width] */
    int32_t width;
} tm_lookups;

static void add_row(const tm_lookups *call, tm_bench *bench, const tm_part *part, int32_t slot,
                    float coefficient) {
    int64_t id = call->ids[call->pairs->used[slot]];
    if (id < 0 || id >= call->table->num_outputs) return;
    int32_t coded = first_at(part, (int32_t)id);
    if (coded >= part->source->num_outputs || output_of(part, coded) != id) return;
    for (int32_t first = 0; first < call->width; first += TM_MAX_CHUNK) {
        int32_t count = smaller(TM_MAX_CHUNK, call->width - first);
        tm_strip strip = decode_part(bench, part, coded / TM_BLOCK, first, count);
        add_lane(call->sums + (int64_t)slot * call->width, &strip, coded % TM_BLOCK, coefficient);
    }
}

static void add_part(const tm_lookups *call, tm_bench *bench, const tm_part *part, int32_t first,
                     int32_t end) {
    const tm_pairs *pairs = call->pairs;
    const float *coefficients = pairs->coefficients + (int64_t)part->column * pairs->num_pairs;
    for (int32_t pair = pairs->starts[part->task]; pair < pairs->starts[part->task + 1]; pair++) {
        int32_t slot = pairs->slots[pair];
        if (slot >= first && slot < end)
            add_row(call, bench, part, slot, coefficients[pair] * part->factor);
    }
}

int32_t TM_ENTRY(tm_add_lookups)(const tm_table *table, const tm_pairs *pairs, void *y,
                                 int64_t y_stride, int32_t y_dtype, const int64_t *ids) {
    tm_matrix rows = {y, y_stride, y_dtype};
    tm_lookups call = {table, pairs, ids, NULL, padded_inputs(table->num_inputs)};
    size_t bytes = (size_t)pairs->num_used * call.width * sizeof(float);
    int32_t failed = 0;
    call.sums = tm_scratch(TM_SHARED, bytes);
    if (call.sums == NULL) return 1;
#pragma omp parallel reduction(| : failed)
    {
        tm_bench *bench = tm_scratch(TM_OWN, sizeof *bench);
        int64_t num_threads = omp_get_num_threads(), thread = omp_get_thread_num();
        int32_t first = (int32_t)(pairs->num_used * thread / num_threads);
        int32_t end = (int32_t)(pairs->num_used * (thread + 1) / num_threads);
        failed = bench == NULL;
        memset(call.sums + (int64_t)first * call.width, 0,
               (size_t)(end - first) * call.width * sizeof(float));
        for (int32_t p = 0; p < table->num_parts && !failed; p++)
            add_part(&call, bench, table->parts + p, first, end);
        for (int32_t slot = first; slot < end; slot++)
            add_to_row(element_at(&rows, pairs->used[slot], 0), y_dtype,
                       call.sums + (int64_t)slot * call.width, table->num_inputs);
    }
    return failed;
}
