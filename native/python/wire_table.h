/* Interface of wire_table.c to module.c. */

#ifndef SHMSERVE_WIRE_TABLE_H
#define SHMSERVE_WIRE_TABLE_H

#include "common.h"

PyObject *wire(PyObject *module, PyObject *unused);

#endif
