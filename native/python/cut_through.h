/* Interface of cut_through.c. */

#ifndef SHMSERVE_CUT_THROUGH_H
#define SHMSERVE_CUT_THROUGH_H

#include "common.h"
#include "core/cut_through.h"

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    CutThrough copy;      /* its line is NULL once closed and not polled */
    PyArrayObject *arena; /* the target; NULL: none */
    int users;
    char closed;
} CutThroughCopier;

PyObject *bytes_in_flight(PyObject *module, PyObject *copiers);
PyObject *abandon(PyObject *module, PyObject *copiers);
int is_copier(PyObject *object);

/* Around polling without the interpreter: between them `copy` may be advanced. */
void copier_enter(CutThroughCopier *self);
void copier_leave(CutThroughCopier *self);

/* The engine has this write's request; stop copying it. */
void copier_commit(CutThroughCopier *self, uint64_t write_id);

/* The bytes of this write that are in this arena; a second call returns 0. */
Py_ssize_t copier_take(CutThroughCopier *self, PyArrayObject *arena, uint64_t write_id);

#endif
