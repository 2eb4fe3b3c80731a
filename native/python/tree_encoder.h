/* Interface of tree_encoder.c. */

#ifndef SHMSERVE_TREE_ENCODER_H
#define SHMSERVE_TREE_ENCODER_H

#include "common.h"

enum { OTHER = 0, WRITTEN = 1, TOO_LARGE = 2 };

int is_encoder(PyObject *object);

/* Bytes of payload of its structure. */
uint64_t encoder_bytes(PyObject *encoder);

/* As `TreeEncoder.encode_into`; -1 with an exception. `slots` and `wake` may be None. `write_id`: the announced write,
 * or 0. */
int encoder_put(PyObject *encoder, PyObject *tree, PyObject *payload, PyObject *slots, uint64_t slot, PyObject *wake,
                uint64_t *write_id);

#endif
