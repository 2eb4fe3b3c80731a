/* Interface of tree_decoder.c. */

#ifndef SHMSERVE_TREE_DECODER_H
#define SHMSERVE_TREE_DECODER_H

#include "common.h"

int is_decoder(PyObject *object);

/* Whether every leaf of the structure is made here; none is of bfloat16, which numpy does not have. */
int decoder_is_complete(PyObject *decoder);

/* Bytes of the sizes, at the front of a payload. */
Py_ssize_t decoder_sizes_bytes(PyObject *decoder);

/* The tree of a payload, its arrays copied. */
PyObject *decoder_decode(PyObject *decoder, PyObject *payload, uint64_t payload_bytes);

/* For each leaf of kind array a view of the payload; a list. */
PyObject *decoder_views(PyObject *decoder, PyObject *payload, uint64_t payload_bytes);

/* The tree over the memory of these views: each array a new view of it, or the result of `wrap`. */
PyObject *decoder_over(PyObject *decoder, PyObject *payload, uint64_t payload_bytes, PyObject *views, PyObject *wrap);

/* Copy a payload into the arena, except for the bytes of this write that the copier (or None) has copied; their number.
 * -1 with an exception. */
Py_ssize_t stage_payload(PyObject *payload, uint64_t payload_bytes, PyObject *arena, PyObject *copier,
                         uint64_t write_id);

/* stage(payload, payload_bytes, arena, copier, write_id) */
PyObject *stage(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif
