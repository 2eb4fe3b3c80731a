/* What the others need of stager.c, and the words that a client announces a large write with. */

#ifndef SHMSERVE_STAGER_H
#define SHMSERVE_STAGER_H

#include "common.h"
#include "sequence.h"

/* Payloads of fewer bytes are written before another processor has heard of it. */
#define ANNOUNCED_BYTES (64 << 10)
#define ANNOUNCED_PIECE (32 << 10)
/* From here on the engine is rung for when the write begins, so that it wakes up while it goes on. */
#define RUNG_BYTES (256 << 10)

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    uint64_t *words; /* the counter's line; NULL once closed and nobody looks */
    char *payloads;
    Py_ssize_t stride, slots, room;
    PyArrayObject *arena; /* NULL: nowhere to copy to */
    uint64_t write_id, came; /* the write that is being copied, and the last one whose request came, or never will */
    Py_ssize_t done;
    int lookers;
    char closed;
} Stager;

PyObject *written(PyObject *module, PyObject *stagers);
PyObject *give_up(PyObject *module, PyObject *stagers);
int is_stager(PyObject *object);

/* Around a look without the interpreter. */
void stager_enter(Stager *self);
void stager_leave(Stager *self);

/* Copy a piece, if one is there; whether it was. Needs no interpreter. */
int stager_advance(Stager *self);

/* How many bytes of this write are in this arena already; they are not counted again. */
Py_ssize_t stager_take(Stager *self, PyArrayObject *arena, uint64_t write_id);

#endif
