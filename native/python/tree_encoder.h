/* Interface of tree_encoder.c. */

#ifndef SHMSERVE_TREE_ENCODER_H
#define SHMSERVE_TREE_ENCODER_H

#include "common.h"

/* Result of encoder_put; -1 with an exception. */
enum {
    OTHER = 0,      /* the tree holds a value that has no safe form or needs the slow path, or it changed meanwhile */
    WRITTEN = 1,    /* the slot holds the tree */
    TOO_LARGE = 2,  /* the slot is too small for these lengths */
    UNKNOWN = 3,    /* the structure is new: `remember` it first */
    UNEXPECTED = 4, /* the sizes are not those that were declared */
};

/* A slot's contents, as its head describes them. */
typedef struct {
    uint64_t schema, metadata_bytes, payload_bytes, write_id;
} Encoded;

int is_encoder(PyObject *object);

/* Write a tree into a SlotMemory (codec.py). `slots`, or None: the segment whose words announce a large write into `slot`.
 * `examined`: whatever the sizes are. `encoded` is set for WRITTEN and TOO_LARGE, `metadata` to the structure's for UNKNOWN and
 * UNEXPECTED. Without `metadata` (NULL) it is a fast path, which a tree with leaves in GPU memory cannot take. */
int encoder_put(PyObject *encoder, PyObject *tree, PyObject *memory, PyObject *slots, uint64_t slot, int examined,
                Encoded *encoded, PyObject **metadata);

/* Read what the encoder keeps of the structure that was sent last, so that it lies in the cache. */
void encoder_touch(PyObject *encoder);

#endif
