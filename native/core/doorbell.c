/* Named semaphores as doorbells. */

#include "doorbell.h"
#include "clock.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>

#define SECOND_NS 1000000000u

typedef int ClockWait(sem_t *, clockid_t, const struct timespec *);

/* `sem_clockwait` of this C library, or NULL. Looked up at run time: a program that was built with a new library also
 * runs with an old one. */
static ClockWait *clock_wait(void)
{
    static _Atomic(void *) found;
    static atomic_bool looked;
    if (!atomic_load_explicit(&looked, memory_order_acquire)) {
        atomic_store_explicit(&found, dlsym(RTLD_DEFAULT, "sem_clockwait"), memory_order_relaxed);
        atomic_store_explicit(&looked, true, memory_order_release);
    }
    void *function = atomic_load_explicit(&found, memory_order_relaxed);
    ClockWait *wait;
    _Static_assert(sizeof wait == sizeof function, "POSIX: a function's address fits into an object's");
    __builtin_memcpy(&wait, &function, sizeof wait);
    return wait;
}

bool doorbell_is_monotonic(void) { return clock_wait() != NULL; }

void doorbell_ring(sem_t *bell) { (void)sem_post(bell); }

int doorbell_count(sem_t *bell)
{
    int value = 0;
    (void)sem_getvalue(bell, &value);
    return value;
}

bool doorbell_try_take(sem_t *bell) { return sem_trywait(bell) == 0; }

static struct timespec time_of(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / SECOND_NS), .tv_nsec = (long)(ns % SECOND_NS)};
}

int doorbell_wait(sem_t *bell, uint64_t until_ns)
{
    ClockWait *wait = clock_wait();
    int failed;
    if (wait != NULL) {
        struct timespec until = time_of(until_ns);
        failed = wait(bell, CLOCK_MONOTONIC, &until);
    }
    else {
        struct timespec wall;
        uint64_t now_ns = monotonic_ns(), left_ns = until_ns > now_ns ? until_ns - now_ns : 0;
        clock_gettime(CLOCK_REALTIME, &wall);
        struct timespec until = time_of((uint64_t)wall.tv_sec * SECOND_NS + (uint64_t)wall.tv_nsec + left_ns);
        failed = sem_timedwait(bell, &until);
    }
    if (!failed)
        return 1;
    return errno == ETIMEDOUT || errno == EINTR ? 0 : -1;
}
