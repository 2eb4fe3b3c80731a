/* Loads, stores and fences of the words that two processes share.
 *
 * Every access names its order. A pair of release and acquire has an ORDER comment at both ends, each naming the other.
 */

#ifndef SHMSERVE_CORE_ATOMICS_H
#define SHMSERVE_CORE_ATOMICS_H

#include <stdatomic.h>
#include <stdint.h>

/* A word of shared memory: 8 bytes, read and written at once. */
typedef _Atomic uint64_t Word;

_Static_assert(sizeof(Word) == 8 && _Alignof(Word) == 8, "a shared word is 8 bytes on an 8-byte boundary");
_Static_assert((sizeof(long) == 8 ? ATOMIC_LONG_LOCK_FREE : ATOMIC_LLONG_LOCK_FREE) == 2,
               "a lock of one process does not protect memory that two processes share");

static inline uint64_t load_relaxed(const Word *word) { return atomic_load_explicit(word, memory_order_relaxed); }

static inline uint64_t load_acquire(const Word *word) { return atomic_load_explicit(word, memory_order_acquire); }

static inline void store_relaxed(Word *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

static inline void store_release(Word *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

/* What was loaded before stays before what is loaded or stored after. */
static inline void fence_acquire(void) { atomic_thread_fence(memory_order_acquire); }

/* What was stored before stays before what is stored after, and both stay in the one order that all threads see. */
static inline void fence_full(void) { atomic_thread_fence(memory_order_seq_cst); }

#endif
