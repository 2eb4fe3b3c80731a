/* Spinning over a set of counters. */

#include "waiting.h"
#include "processor.h"

#include <sched.h>

#define POLLS_PER_CLOCK 16

/* Whether a writer may need this CPU, which is `here`, to go on: it ran here last, or it may wake up here. */
static bool may_need(const WatchSet *set, uint64_t here)
{
    for (int index = 0; index < set->count; index++)
        if (is_asleep(&set->watches[index]) || is_same_cpu(&set->watches[index], here))
            return true;
    return false;
}

int spin_until(const WatchSet *set, uint64_t until_ns, SpinClock *clock, bool yields)
{
    do {
        if (yields || may_need(set, processor()))
            (void)sched_yield();
        for (int poll = 0; poll < POLLS_PER_CLOCK; poll++) {
            bool copied = false;
            for (int index = 0; index < set->count; index++)
                if (has_moved(&set->watches[index])) {
                    tick(clock);
                    return index;
                }
            for (int index = 0; index < set->copiers_count; index++)
                copied |= cut_through_advance(set->copiers[index]);
            if (copied)
                break; /* a copy takes as long as many polls */
            relax();
        }
        tick(clock);
    } while (clock->now_ns < until_ns);
    return NONE_MOVED;
}

bool has_blocked_writer(const WatchSet *set, uint64_t rung_ns)
{
    uint64_t here = processor();
    for (int index = 0; index < set->count; index++)
        if (is_asleep(&set->watches[index]) ? rung_ns > WAKING_NS : is_same_cpu(&set->watches[index], here))
            return true;
    return false;
}

int spin_slice(const WatchSet *set, uint64_t began_ns, uint64_t until_ns, SpinClock *clock, bool yields)
{
    if (clock->now_ns >= until_ns || (yields && clock->lost_ns) || has_blocked_writer(set, clock->now_ns - began_ns))
        return SPIN_ENDED;
    uint64_t pause_ns = clock->now_ns + SPIN_SLICE_NS < until_ns ? clock->now_ns + SPIN_SLICE_NS : until_ns;
    return spin_until(set, pause_ns, clock, yields);
}

uint64_t spun_ns(const SpinClock *clock, uint64_t began_ns)
{
    uint64_t took_ns = clock->now_ns - began_ns - clock->lost_ns;
    return took_ns ? took_ns : 1;
}

void note_asleep(CounterLine *line) { store_relaxed(&line->processor, processor() | ASLEEP); }

void note_awake(CounterLine *line)
{
    uint64_t here = processor();
    if (load_relaxed(&line->processor) != here) /* the other side polls this cache line */
        store_relaxed(&line->processor, here);
}
