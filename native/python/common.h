/* Declarations that the files of the extension share. */

#ifndef SHMSERVE_COMMON_H
#define SHMSERVE_COMMON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL shmserve_core_array_api
#ifndef SHMSERVE_IMPORTS_ARRAY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>
#include "numpy_abi.h"

#include "core/clock.h"
#include "core/processor.h"
#include "core/wire.h"

#include <string.h>

/* The words of a segment are 8 bytes, each read and written at once; a processor of 32 bits has no such load. */
_Static_assert(sizeof(void *) == 8, "the native core is for processors of 64 bits; elsewhere pure Python is used");

/* A copy of fewer bytes ends before another thread could have taken the interpreter. */
#define RELEASING_BYTES (32 << 10)

extern PyType_Spec encoder_spec, decoder_spec, slots_spec, histograms_spec, poller_spec, copier_spec, semaphore_spec,
    server_path_spec, client_path_spec;

/* `__new__` makes complete instances: an `__init__` could be called twice or never. The types take no part in garbage
 * collection, because the strings, dtypes, types and arrays that they hold never refer back to them. */
#define TYPE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE)

/* A zeroed instance. */
static inline void *new_instance(PyTypeObject *type, PyObject *keywords)
{
    if (keywords != NULL && PyDict_GET_SIZE(keywords)) {
        PyErr_Format(PyExc_TypeError, "%s takes no keywords", type->tp_name);
        return NULL;
    }
    return type->tp_alloc(type, 0);
}

/* Free an instance of one of these heap types. */
static inline void free_instance(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The bytes of a one-dimensional uint8 array; NULL with an exception for anything else, or for fewer bytes. */
static inline char *payload_bytes_of(PyObject *payload, Py_ssize_t least)
{
    if (!PyArray_CheckExact(payload)) {
        PyErr_SetString(PyExc_TypeError, "a payload is an array of uint8");
        return NULL;
    }
    PyArrayObject *array = (PyArrayObject *)payload;
    if (PyArray_TYPE(array) != NPY_UINT8 || PyArray_NDIM(array) != 1 || !PyArray_IS_C_CONTIGUOUS(array)) {
        PyErr_SetString(PyExc_TypeError, "a payload is a contiguous array of uint8");
        return NULL;
    }
    if (PyArray_DIM(array, 0) < least) {
        PyErr_Format(PyExc_ValueError, "a payload of %zd bytes where %zd are needed", (Py_ssize_t)PyArray_DIM(array, 0),
                     least);
        return NULL;
    }
    return PyArray_BYTES(array);
}

/* Read a byte of each cache line, so that they lie in the cache. */
static inline void touch(const void *memory, size_t bytes)
{
    const volatile char *lines = memory;
    for (size_t at = 0; at < bytes; at += CACHE_LINE)
        (void)lines[at];
}

#endif
