/* The clock of deadlines and durations: CLOCK_MONOTONIC in nanoseconds, the same for all processes of a host. */

#ifndef SHMSERVE_CORE_CLOCK_H
#define SHMSERVE_CORE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
