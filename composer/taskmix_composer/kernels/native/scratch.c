#include "scratch.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct {
    void *memory[TM_NUM_SLOTS];
    size_t bytes[TM_NUM_SLOTS];
} slots;

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void release(void *held) {
    slots *mine = held;
    for (int slot = 0; slot < TM_NUM_SLOTS; slot++) free(mine->memory[slot]);
    free(mine);
}

static void make_key(void) { pthread_key_create(&key, release); }

static slots *slots_of_thread(void) {
    static _Thread_local slots *mine;
    if (mine == NULL) {
        pthread_once(&once, make_key);
        mine = calloc(1, sizeof *mine);
        pthread_setspecific(key, mine);
    }
    return mine;
}

void *tm_scratch(enum tm_scratch_slot slot, size_t bytes) {
    slots *mine = slots_of_thread();
    if (mine == NULL) return NULL;
    if (mine->bytes[slot] < bytes || mine->memory[slot] == NULL) {
        free(mine->memory[slot]);
        mine->bytes[slot] = (bytes + bytes / 2 + 4095) & ~(size_t)4095;
        mine->memory[slot] = aligned_alloc(4096, mine->bytes[slot]);
        if (mine->memory[slot] == NULL) mine->bytes[slot] = 0;
    }
    return mine->memory[slot];
}
