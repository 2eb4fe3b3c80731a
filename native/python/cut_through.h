/* Interface of cut_through.c, and the sizes from which a client announces a write. */

#ifndef SHMSERVE_CUT_THROUGH_H
#define SHMSERVE_CUT_THROUGH_H

#include "common.h"
#include "sequence.h"

/* A smaller payload is complete before another CPU sees its announcement. */
#define CUT_THROUGH_BYTES (64 << 10)
#define CUT_THROUGH_PIECE (32 << 10)
/* From here on the client rings when the write begins, so that the engine wakes up during the write. */
#define WAKE_BYTES (256 << 10)

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    uint64_t *words; /* the counter's line; NULL once closed and not polled */
    char *payloads;
    Py_ssize_t stride, slots, room;
    PyArrayObject *arena;         /* the target; NULL: none */
    uint64_t write_id, committed; /* the write in progress; the last one that was taken or abandoned */
    Py_ssize_t done;
    int users;
    char closed;
} CutThroughCopier;

PyObject *bytes_in_flight(PyObject *module, PyObject *copiers);
PyObject *abandon(PyObject *module, PyObject *copiers);
int is_copier(PyObject *object);

/* Around polling without the interpreter. */
void copier_enter(CutThroughCopier *self);
void copier_leave(CutThroughCopier *self);

/* Copy the next piece if it is written; whether it was. Needs no interpreter. */
int copier_advance(CutThroughCopier *self);

/* The bytes of this write that are in this arena; a second call returns 0. */
Py_ssize_t copier_take(CutThroughCopier *self, PyArrayObject *arena, uint64_t write_id);

#endif
