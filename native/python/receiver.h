/* What the others need of receiver.c. */

#ifndef SHMSERVE_RECEIVER_H
#define SHMSERVE_RECEIVER_H

#include "common.h"

int is_receiver(PyObject *object);

/* Bytes of payload of its structure. */
uint64_t receiver_bytes(PyObject *receiver);

/* The tree in a payload, its arrays copied into memory of their own. */
PyObject *receiver_read(PyObject *receiver, PyObject *payload);

/* The tree over the memory of these views, each array an object of the taker's own, or what `wrap` makes of the view. */
PyObject *receiver_over(PyObject *receiver, PyObject *payload, PyObject *views, PyObject *wrap);

/* Copy the payload into the arena, but for what the stager, or None, has copied of this write; how many bytes that was. */
Py_ssize_t receiver_copy(PyObject *receiver, PyObject *payload, PyObject *arena, PyObject *stager, uint64_t writing);

#endif
