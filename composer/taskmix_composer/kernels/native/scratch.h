/* Memory of the calling thread that lasts from call to call. */
#ifndef TM_SCRATCH_H
#define TM_SCRATCH_H

#include <stddef.h>

/* Of each thread: what a call shares among its threads, and what each works in. */
enum tm_scratch_slot { TM_SHARED, TM_OWN, TM_NUM_SLOTS };

/* At least `bytes` bytes, aligned to 64, of any content; NULL if memory ran out. A slot's memory
 * is the calling thread's alone, until it asks for the same slot again. */
void *tm_scratch(enum tm_scratch_slot slot, size_t bytes);

/* `bytes` rounded up so that what follows stays aligned to 64. */
static inline size_t tm_aligned(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

#endif
