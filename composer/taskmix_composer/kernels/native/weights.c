/* out += sum over parts of coefficients[column] * weights.
 *
 * Threads take blocks of 32 outputs, sum up all parts there, add the sums and round once.
 */
#include <omp.h>

#include "parts.h"
#include "rows.h"
#include "scratch.h"

typedef struct {
    tm_bench bench;
    float sums[] __attribute__((aligned(64))); /* [TM_BLOCK][width] */
} tm_merger;

/* Add what a part has in the outputs start .. start + size. */
static void add_part(tm_merger *merger, const tm_part *part, float coefficient, int32_t start,
                     int32_t size, int32_t width) {
    int32_t end = first_at(part, start + size), next;
    for (int32_t coded = first_at(part, start); coded < end; coded = next) {
        int32_t strip = coded / TM_BLOCK;
        next = smaller(end, (strip + 1) * TM_BLOCK);
        for (int32_t first = 0; first < width; first += TM_MAX_CHUNK) {
            tm_strip decoded = decode_part(&merger->bench, part, strip, first,
                                           smaller(TM_MAX_CHUNK, width - first));
            for (int32_t each = coded; each < next; each++) {
                int64_t row = output_of(part, each) - start;
                add_lane(merger->sums + row * width, &decoded, each % TM_BLOCK, coefficient);
            }
        }
    }
}

int32_t TM_ENTRY(tm_add_weights)(const tm_table *table, const float *coefficients, void *out,
                                 int64_t out_stride, int32_t out_dtype) {
    tm_matrix rows = {out, out_stride, out_dtype};
    int32_t width = padded_inputs(table->num_inputs), failed = 0;
    size_t bytes = (size_t)TM_BLOCK * width * sizeof(float);
#pragma omp parallel reduction(| : failed)
    {
        tm_merger *merger = tm_scratch(TM_OWN, sizeof *merger + bytes);
        failed = merger == NULL;
#pragma omp for schedule(dynamic, 4)
        for (int32_t start = 0; start < table->num_outputs; start += TM_BLOCK) {
            int32_t size = smaller(TM_BLOCK, table->num_outputs - start);
            if (merger == NULL) continue;
            memset(merger->sums, 0, bytes);
            for (int32_t p = 0; p < table->num_parts; p++) {
                const tm_part *part = table->parts + p;
                float coefficient = coefficients[part->column] * part->factor;
                add_part(merger, part, coefficient, start, size, width);
            }
            for (int32_t row = 0; row < size; row++)
                add_to_row(element_at(&rows, start + row, 0), out_dtype,
                           merger->sums + (int64_t)row * width, table->num_inputs);
        }
    }
    return failed;
}
