/* The two ends of a cut-through copy. */

#include "cut_through.h"
#include "processor.h"

#include <string.h>

uint64_t announce_write(CounterLine *line, uint64_t slot)
{
    uint64_t write_id = sequence_of(number_of(load_relaxed(&line->write_id)) + 1, slot);
    store_relaxed(&line->written_bytes, 0);
    store_relaxed(&line->processor, processor());
    /* ORDER: the byte count of 0 before the write id; pairs with cut_through_advance, which loads them the other way
     * round and so never sees the count of an earlier write under this id. */
    store_release(&line->write_id, write_id);
    /* ORDER: the write id before any byte of the payload; pairs with the fence in cut_through_advance, which thus
     * notices that the bytes it has copied may be of this write and not of an earlier one. */
    fence_full();
    return write_id;
}

void announce_progress(CounterLine *line, uint64_t written_bytes)
{
    /* ORDER: bytes before their number; pairs with cut_through_advance. */
    store_release(&line->written_bytes, written_bytes);
}

bool cut_through_advance(CutThrough *self)
{
    if (self->target == NULL || self->line == NULL)
        return false;
    /* ORDER: the write id before the byte count; pairs with announce_write. */
    uint64_t write_id = load_acquire(&self->line->write_id);
    if (write_id == self->committed || slot_of(write_id) >= self->slots)
        return false;
    if (write_id != self->write_id) {
        self->write_id = write_id;
        self->done = 0;
    }
    /* ORDER: the byte count before the bytes; pairs with announce_progress. */
    uint64_t written = load_acquire(&self->line->written_bytes);
    size_t most = self->target_bytes < self->room ? self->target_bytes : self->room;
    size_t there = written < most ? (size_t)written : most;
    if (there <= self->done)
        return false;
    size_t size = there - self->done < CUT_THROUGH_PIECE ? there - self->done : CUT_THROUGH_PIECE;
    const char *payload = self->payloads + slot_of(write_id) * self->stride;
    memcpy(self->target + self->done, payload + self->done, size);
    /* ORDER: the bytes before the second look at the write id; pairs with the fence in announce_write. The client may
     * have begun another write into the same slot meanwhile. */
    fence_acquire();
    if (load_relaxed(&self->line->write_id) == write_id)
        self->done += size;
    else
        self->done = 0;
    return true;
}

size_t cut_through_take(CutThrough *self, uint64_t write_id)
{
    size_t done = write_id && self->write_id == write_id ? self->done : 0;
    self->write_id = 0;
    self->done = 0;
    return done;
}

bool cut_through_is_due(const CutThrough *self, uint64_t *written_bytes)
{
    /* ORDER: the write id before the byte count; pairs with announce_write. */
    if (self->line == NULL || load_acquire(&self->line->write_id) == self->committed)
        return false;
    *written_bytes = load_relaxed(&self->line->written_bytes);
    return true;
}

void cut_through_abandon(CutThrough *self)
{
    if (self->line != NULL)
        self->committed = load_relaxed(&self->line->write_id);
}
