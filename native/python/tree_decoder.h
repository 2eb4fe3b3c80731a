/* Interface of tree_decoder.c. */

#ifndef SHMSERVE_TREE_DECODER_H
#define SHMSERVE_TREE_DECODER_H

#include "common.h"

int is_decoder(PyObject *object);

/* Bytes of payload of its structure. */
uint64_t decoder_bytes(PyObject *decoder);

/* The tree of a payload, its arrays copied. */
PyObject *decoder_decode(PyObject *decoder, PyObject *payload);

/* The tree over the memory of these views: each array a new view of it, or the result of `wrap`. */
PyObject *decoder_over(PyObject *decoder, PyObject *payload, PyObject *views, PyObject *wrap);

/* Copy the payload into the arena, except for the bytes of this write that the copier (or None) has copied; their
 * number. */
Py_ssize_t decoder_copy(PyObject *decoder, PyObject *payload, PyObject *arena, PyObject *copier, uint64_t write_id);

#endif
