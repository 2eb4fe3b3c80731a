/* Cut-through copying: an idle engine copies a payload while its client still writes it.
 *
 * A switch that forwards a frame before its end has arrived is called cut-through; so is this copy. A client announces
 * each large write: its write id, which is unique and names the slot, then the number of bytes that are written. Both
 * words are hints. The copied bytes are used only for a request whose head names the same write id; the engine then
 * copies only the rest. Otherwise it discards them. False words cost the engine copies within that client's slot,
 * between two polls of every counter, and nothing else.
 */

#ifndef SHMSERVE_CORE_CUT_THROUGH_H
#define SHMSERVE_CORE_CUT_THROUGH_H

#include "wire.h"

#include <stdbool.h>

/* A smaller payload is complete before another CPU sees its announcement. */
#define CUT_THROUGH_BYTES (64 << 10)
#define CUT_THROUGH_PIECE (32 << 10)
/* From here on the client rings when the write begins, so that the engine wakes up during the write. */
#define WAKE_BYTES (256 << 10)

/* The client's end: it announces a write into this slot and returns the write id, then the number of bytes so far. */
uint64_t announce_write(CounterLine *line, uint64_t slot);
void announce_progress(CounterLine *line, uint64_t written_bytes);

/* The engine's end, for the requests of one channel. */
typedef struct {
    const CounterLine *line; /* NULL: closed */
    const char *payloads;    /* that of the first slot */
    size_t stride, slots, room;
    char *target; /* NULL: do not copy */
    size_t target_bytes;
    uint64_t write_id, committed; /* the write in progress; the last one that was taken or abandoned */
    size_t done;
} CutThrough;

/* Copy the next piece if it is written; whether it was. */
bool cut_through_advance(CutThrough *self);

/* The bytes of this write that are in the target; a second call returns 0. */
size_t cut_through_take(CutThrough *self, uint64_t write_id);

/* Whether a write is announced that was neither taken nor abandoned, and the bytes of it that are written. */
bool cut_through_is_due(const CutThrough *self, uint64_t *written_bytes);

/* No longer wait for the write in progress. */
void cut_through_abandon(CutThrough *self);

#endif
