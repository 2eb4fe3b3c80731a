/* What the others need of sender.c. */

#ifndef SHMSERVE_SENDER_H
#define SHMSERVE_SENDER_H

#include "common.h"

enum { OTHER = 0, WRITTEN = 1, TOO_LARGE = 2 };

int is_sender(PyObject *object);

/* Bytes of payload of its structure. */
uint64_t sender_bytes(PyObject *sender);

/* What `Sender.write` does, -1 with an exception; `slots` and `ring` may be None. `writing` is the announced write, or 0. */
int sender_put(PyObject *sender, PyObject *tree, PyObject *payload, PyObject *slots, uint64_t slot, PyObject *ring,
               uint64_t *writing);

#endif
