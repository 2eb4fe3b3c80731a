/* Counting of durations. */

#include "histograms.h"

enum { FIRST_BIT = 10, SUB_BITS = 3 };

int bucket_of(uint64_t duration_ns)
{
    if (duration_ns < (uint64_t)1 << FIRST_BIT)
        return 0;
    int bits = 63 - __builtin_clzll(duration_ns) - FIRST_BIT;
    int index = 1 + (bits << SUB_BITS) + (int)((duration_ns >> (bits + FIRST_BIT - SUB_BITS)) & ((1 << SUB_BITS) - 1));
    return index < BUCKETS ? index : BUCKETS - 1;
}

static void count(Word *counts, int stage, uint64_t duration_ns)
{
    Word *bucket = &counts[stage * BUCKETS + bucket_of(duration_ns)];
    store_relaxed(bucket, load_relaxed(bucket) + 1);
}

void histograms_record(Word *counts, const uint64_t durations_ns[STAGES - 1])
{
    uint64_t total_ns = 0;
    for (int stage = 0; stage < STAGES - 1; stage++) {
        count(counts, stage, durations_ns[stage]);
        if (__builtin_add_overflow(total_ns, durations_ns[stage], &total_ns))
            total_ns = UINT64_MAX;
    }
    count(counts, STAGES - 1, total_ns);
}
