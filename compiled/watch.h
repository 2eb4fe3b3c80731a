/* What module.c needs of watch.c. */

#ifndef SHMSERVE_WATCH_H
#define SHMSERVE_WATCH_H

#include "compiled.h"

PyObject *moved(PyObject *module, PyObject *watches);
PyObject *all_moved(PyObject *module, PyObject *watches);
PyObject *beside(PyObject *module, PyObject *watches);
PyObject *spin(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif
