/* Waiting for counters that other processes advance: polling, and spinning that knows processors.
 *
 * A spin is worth its time only while the writer runs on another CPU. Beside its counter each writer notes its CPU, and
 * that it sleeps: the kernel may place a writer that is being woken on any CPU, also on that of the spinning thread,
 * where it would wait for the spin to end. So a spin yields its CPU between polls until the writer says that it runs on
 * another one.
 */

#ifndef SHMSERVE_CORE_WAITING_H
#define SHMSERVE_CORE_WAITING_H

#include "clock.h"
#include "cut_through.h"

/* Counters of one set; a service has no more clients. */
#define MOST_WATCHED 256
/* Time of spinning between two looks at the writers' CPUs, and of a caller's between two checks for signals. */
#define SPIN_SLICE_NS 50000

/* A writer that was woken on another CPU has noted it by then. */
#define WAKING_NS 100000
/* No poll takes this long: another program, or another virtual machine, had the CPU meanwhile. */
#define LONGEST_POLL_NS 50000

/* No counter has moved. */
enum { NONE_MOVED = -1 };

/* A counter and the value that its reader has seen last. */
typedef struct {
    const CounterLine *line;
    uint64_t last_seen;
} Watch;

/* Private copies: the owner of a watch may set `last_seen` while another thread spins. */
typedef struct {
    int count, copiers_count;
    Watch watches[MOST_WATCHED];
    CutThrough *copiers[MOST_WATCHED]; /* these copy while a thread spins */
} WatchSet;

/* ORDER: the counter before the head and payload that it publishes; pairs with the stores that end ring_publish and
 * ring_complete. */
static inline bool has_moved(const Watch *watch) { return load_acquire(&watch->line->counter) != watch->last_seen; }

/* The clock of a spin: its last reading, and the time during which the thread did not run. News that came then says
 * nothing of the writer. */
typedef struct {
    uint64_t now_ns, lost_ns;
} SpinClock;

/* Read the clock. */
static inline void tick(SpinClock *clock)
{
    uint64_t now_ns = monotonic_ns();
    if (now_ns - clock->now_ns > LONGEST_POLL_NS)
        clock->lost_ns += now_ns - clock->now_ns;
    clock->now_ns = now_ns;
}

/* The index of the first that has moved, or NONE_MOVED once it is `until_ns` (CLOCK_MONOTONIC); polls at least once. It
 * yields the CPU between polls to a writer that sleeps, or ran here last; with `yields` always, for a thread that may be in the
 * way of others. */
int spin_until(const WatchSet *set, uint64_t until_ns, SpinClock *clock, bool yields);

/* Whether its writer runs on this CPU, which is `here`, and does not sleep; 0: unknown. */
static inline bool is_same_cpu(const Watch *watch, uint64_t here)
{
    return here && load_relaxed(&watch->line->processor) == here;
}

/* Whether its writer sleeps, or has not run since it was rung. */
static inline bool is_asleep(const Watch *watch) { return load_relaxed(&watch->line->processor) & ASLEEP; }

/* Whether a writer cannot run while this thread spins, which rang it `rung_ns` ago: it runs on this CPU, or it has not
 * woken up in the time that this takes. */
bool has_blocked_writer(const WatchSet *set, uint64_t rung_ns);

/* One slice of a spin that began at `began_ns`, at most SPIN_SLICE_NS: the index of the first that has moved, NONE_MOVED if it may
 * go on, or SPIN_ENDED once it is `until_ns` or a writer cannot run meanwhile. With `yields` other threads of this CPU run between
 * two polls, and the spin ends once one of them has kept it: it would again. Between two slices a caller checks for signals. */
enum { SPIN_ENDED = -2 };
int spin_slice(const WatchSet *set, uint64_t began_ns, uint64_t until_ns, SpinClock *clock, bool yields);

/* How long a spin took until a counter was seen to have moved: at least 1 ns, and without the time during which the thread did not
 * run. */
uint64_t spun_ns(const SpinClock *clock, uint64_t began_ns);

/* Note that the writer of this line is about to sleep, or has woken up. */
void note_asleep(CounterLine *line);
void note_awake(CounterLine *line);

#endif
