/* A doorbell of transport `named`: a POSIX named semaphore, which wakes the other side and carries no data.
 *
 * A token is a hint: the counters are the truth, so a lost or a spare token costs a look.
 */

#ifndef SHMSERVE_CORE_DOORBELL_H
#define SHMSERVE_CORE_DOORBELL_H

#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>

/* Leave a token and wake the listener; never blocks. At two billion tokens nothing is added. */
void doorbell_ring(sem_t *bell);

/* The tokens that wait. */
int doorbell_count(sem_t *bell);

/* Take a token if there is one. */
bool doorbell_try_take(sem_t *bell);

/* Sleep until a token came and take it (1), or until it is `until_ns` or a signal arrived (0); -1 with errno.
 *
 * CLOCK_MONOTONIC where the C library offers it (glibc 2.30), else the wall clock.
 */
int doorbell_wait(sem_t *bell, uint64_t until_ns);

/* Whether `doorbell_wait` follows CLOCK_MONOTONIC. */
bool doorbell_is_monotonic(void);

#endif
