/* Interface of counter_poller.c. */

#ifndef SHMSERVE_COUNTER_POLLER_H
#define SHMSERVE_COUNTER_POLLER_H

#include "common.h"

int is_poller(PyObject *object);

/* Whether it can still be polled. */
int poller_is_open(PyObject *poller);

/* Set the last seen value of its counter. */
void poller_note(PyObject *poller, uint64_t seen);

PyObject *poll_first(PyObject *module, PyObject *pollers);
PyObject *poll_all(PyObject *module, PyObject *pollers);
PyObject *same_cpu_writers(PyObject *module, PyObject *pollers);
PyObject *sleeping_writers(PyObject *module, PyObject *pollers);
PyObject *mark_asleep(PyObject *module, PyObject *writers);
PyObject *mark_awake(PyObject *module, PyObject *writers);
PyObject *spin(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *spin_unless_blocked(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif
