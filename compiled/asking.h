/* What module.c needs of asking.c. */

#ifndef SHMSERVE_ASKING_H
#define SHMSERVE_ASKING_H

#include "compiled.h"

PyObject *send_plain(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *receive_plain(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif
