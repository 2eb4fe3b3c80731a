/* What the others need of watch.c. */

#ifndef SHMSERVE_WATCH_H
#define SHMSERVE_WATCH_H

#include "common.h"

int is_watch(PyObject *object);

/* Its counter, as its owner has seen it. */
void watch_note(PyObject *watch, uint64_t seen);

PyObject *moved(PyObject *module, PyObject *watches);
PyObject *all_moved(PyObject *module, PyObject *watches);
PyObject *beside(PyObject *module, PyObject *watches);
PyObject *spin(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *spin_apart(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif
