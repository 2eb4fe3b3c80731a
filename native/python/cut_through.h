/* What the others need of cut_through.c, and the words that a client announces a large write with. */

#ifndef SHMSERVE_CUT_THROUGH_H
#define SHMSERVE_CUT_THROUGH_H

#include "common.h"
#include "sequence.h"

/* Payloads of fewer bytes are written before another processor has heard of it. */
#define CUT_THROUGH_BYTES (64 << 10)
#define CUT_THROUGH_PIECE (32 << 10)
/* From here on the engine is rung for when the write begins, so that it wakes up while it goes on. */
#define WAKE_BYTES (256 << 10)

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    uint64_t *words; /* the counter's line; NULL once closed and nobody looks */
    char *payloads;
    Py_ssize_t stride, slots, room;
    PyArrayObject *arena; /* NULL: nowhere to copy to */
    uint64_t write_id, committed; /* the write that is being copied, and the last one whose request came, or never will */
    Py_ssize_t done;
    int lookers;
    char closed;
} CutThroughCopier;

PyObject *bytes_in_flight(PyObject *module, PyObject *copiers);
PyObject *abandon(PyObject *module, PyObject *copiers);
int is_copier(PyObject *object);

/* Around a look without the interpreter. */
void copier_enter(CutThroughCopier *self);
void copier_leave(CutThroughCopier *self);

/* Copy a piece, if one is there; whether it was. Needs no interpreter. */
int copier_advance(CutThroughCopier *self);

/* How many bytes of this write are in this arena already; they are not counted again. */
Py_ssize_t copier_take(CutThroughCopier *self, PyArrayObject *arena, uint64_t write_id);

#endif
