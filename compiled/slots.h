/* What the others need of slots.c. */

#ifndef SHMSERVE_SLOTS_H
#define SHMSERVE_SLOTS_H

#include "compiled.h"

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    uint64_t *words; /* NULL once closed */
    uint64_t *counter;
    uint64_t *first; /* the first slot's head */
    Py_ssize_t slots, stride; /* in words */
    uint64_t mask;
} Slots;

/* The counter's line of open slots that may be written; NULL with an exception otherwise. */
uint64_t *slots_counter(PyObject *object);

#endif
