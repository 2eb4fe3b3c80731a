/* State of one module object: its types, and the names of attributes that it uses. */

#ifndef SHMSERVE_STATE_H
#define SHMSERVE_STATE_H

#include "common.h"

enum {
    ENCODER_TYPE,
    DECODER_TYPE,
    SLOTS_TYPE,
    HISTOGRAMS_TYPE,
    POLLER_TYPE,
    COPIER_TYPE,
    SERVER_PATH_TYPE,
    CLIENT_PATH_TYPE,
    SEMAPHORE_TYPE,
    TYPES
};

/* Attributes of SlotMemory (codec.py), Pending (pending.py) and Listener (doorbell.py). */
enum { PAYLOAD_NAME, METADATA_NAME, WAKE_NAME, WRITTEN_SCHEMA_NAME, SEQUENCE_NAME, WAIT_NAME, TRY_TAKE_NAME, NAMES };

typedef struct {
    PyTypeObject *types[TYPES];
    PyObject *names[NAMES];
} CoreState;

/* The state of this module, for its functions. */
static inline CoreState *state_of(PyObject *module) { return PyModule_GetState(module); }

/* A name, borrowed, for an instance of one of the module's types. */
static inline PyObject *name_for(PyObject *self, int name)
{
    return ((CoreState *)PyType_GetModuleState(Py_TYPE(self)))->names[name];
}

/* Whether an object has this type of its own module. For a caller that has the module, `state_of` is quicker. */
int is_of_type(PyObject *object, int type);

#endif
