/* What the others need of tree_decoder.c. */

#ifndef SHMSERVE_TREE_DECODER_H
#define SHMSERVE_TREE_DECODER_H

#include "common.h"

int is_decoder(PyObject *object);

/* Bytes of payload of its structure. */
uint64_t decoder_bytes(PyObject *decoder);

/* The tree in a payload, its arrays copied into memory of their own. */
PyObject *decoder_decode(PyObject *decoder, PyObject *payload);

/* The tree over the memory of these views, each array an object of the taker's own, or what `wrap` makes of the view. */
PyObject *decoder_over(PyObject *decoder, PyObject *payload, PyObject *views, PyObject *wrap);

/* Copy the payload into the arena, but for what the copier, or None, has copied of this write; how many bytes that was. */
Py_ssize_t decoder_copy(PyObject *decoder, PyObject *payload, PyObject *arena, PyObject *copier, uint64_t write_id);

#endif
