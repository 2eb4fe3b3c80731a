/* Spin budget: how long to poll before sleeping, learnt from how long the last waits took (shmserve/spin.py; a test
 * compares both). */

#ifndef SHMSERVE_CORE_SPIN_BUDGET_H
#define SHMSERVE_CORE_SPIN_BUDGET_H

#include <stdint.h>

/* Above this expected wait a spin costs more processor time than the wake-up it saves. */
#define SPIN_CAP_NS 1000000

typedef struct {
    uint64_t ns; /* of the next wait */
    double average_ns;
    int is_adaptive;
} SpinBudget;

/* A fixed number of nanoseconds, or -1: learn it. */
static inline void spin_budget_begin(SpinBudget *budget, int64_t setting_ns)
{
    budget->is_adaptive = setting_ns < 0;
    budget->average_ns = 4.0 * SPIN_CAP_NS;
    budget->ns = setting_ns < 0 ? 0 : (uint64_t)setting_ns;
}

/* Learn that news came this long after the wait began. */
static inline void spin_budget_waited(SpinBudget *budget, uint64_t wait_ns)
{
    if (!budget->is_adaptive)
        return;
    double counted = wait_ns < 4 * SPIN_CAP_NS ? (double)wait_ns : 4.0 * SPIN_CAP_NS;
    budget->average_ns += (counted - budget->average_ns) * 0.25;
    uint64_t expected = (uint64_t)(budget->average_ns * 2) + 20000;
    budget->ns = budget->average_ns >= SPIN_CAP_NS ? 0 : expected < SPIN_CAP_NS ? expected : SPIN_CAP_NS;
}

#endif
