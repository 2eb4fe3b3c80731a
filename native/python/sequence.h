/* Parts of a sequence, as in shmserve/layout.py: the number of the request, and its slot in the low six bits. */

#ifndef SHMSERVE_SEQUENCE_H
#define SHMSERVE_SEQUENCE_H

#include <stdint.h>

#define SLOT_BITS 6
#define MAX_SLOTS (1 << SLOT_BITS)

static inline uint64_t sequence_of(uint64_t number, uint64_t slot) { return number << SLOT_BITS | slot; }

static inline uint64_t number_of(uint64_t sequence) { return sequence >> SLOT_BITS; }

static inline uint64_t slot_of(uint64_t sequence) { return sequence & (MAX_SLOTS - 1); }

#endif
