/* Interface of slots.c. */

#ifndef SHMSERVE_SLOTS_H
#define SHMSERVE_SLOTS_H

#include "common.h"
#include "core/ring.h"

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    Ring ring; /* its line is NULL once closed */
} Slots;

static inline int to_word(PyObject *number, uint64_t *word)
{
    unsigned long long value = PyLong_AsUnsignedLongLong(number);
    *word = value;
    return value == (unsigned long long)-1 && PyErr_Occurred() ? -1 : 0;
}

int is_slots(PyObject *object);

/* The open, writable slots; NULL with an exception otherwise. */
Slots *writable_slots(PyObject *object);

/* The head of a sequence's slot; NULL with an exception if the slot does not exist. */
void *head_of(Slots *self, uint64_t sequence);

/* A head as a named tuple of this type. */
PyObject *named(PyObject *type, const uint64_t *words, int count);

#endif
