/* Interface of semaphore.c. */

#ifndef SHMSERVE_SEMAPHORE_H
#define SHMSERVE_SEMAPHORE_H

#include "common.h"

int is_semaphore(PyObject *object);

/* Leave a token, unless it was closed. */
void semaphore_try_ring(PyObject *semaphore);

/* Take a token if there is one. */
void semaphore_try_take_token(PyObject *semaphore);

/* As doorbell_wait, without the interpreter; -1 with an exception. */
int semaphore_wait_until(PyObject *semaphore, uint64_t until_ns);

#endif
