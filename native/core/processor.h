/* The processor that a thread runs on. */

#ifndef SHMSERVE_CORE_PROCESSOR_H
#define SHMSERVE_CORE_PROCESSOR_H

#include <sched.h>
#include <stdint.h>

/* The CPU of this thread, plus 1; 0 where it is unknown. */
static inline uint64_t processor(void) { return (uint64_t)(sched_getcpu() + 1); }

/* Give the other hyperthread of this core its turn for some cycles. */
static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
