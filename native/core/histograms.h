/* Histograms of durations: buckets of an eighth of a power of two, from 1,024 ns (daemon/ipc/stats.py). */

#ifndef SHMSERVE_CORE_HISTOGRAMS_H
#define SHMSERVE_CORE_HISTOGRAMS_H

#include "atomics.h"

enum { STAGES = 5, BUCKETS = 240 };

/* bucket_of in shmserve/histogram_buckets.py; a test compares them. */
int bucket_of(uint64_t duration_ns);

/* Count the durations of one request's stages, and their sum as the last stage, in STAGES histograms that lie one after
 * another and have this one writer. */
void histograms_record(Word *counts, const uint64_t durations_ns[STAGES - 1]);

#endif
