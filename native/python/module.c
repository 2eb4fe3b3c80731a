/* The module shmserve._core: the hot path of a request in C.
 *
 * Each type has a counterpart of the same name in shmserve/pure/, with the same checks in the same order.
 */

#define SHMSERVE_IMPORTS_ARRAY
#include "counter_poller.h"
#include "cut_through.h"
#include "tree_decoder.h"
#include "state.h"
#include "wire_table.h"

static PyMethodDef functions[] = {
    {"poll_first", poll_first, METH_O, "The index of the first poller whose counter has moved; -1 if none has."},
    {"poll_all", poll_all, METH_O, "The indices of all pollers whose counter has moved."},
    {"same_cpu_writers", same_cpu_writers, METH_O, "The indices of the pollers whose writer last ran on this CPU."},
    {"sleeping_writers", sleeping_writers, METH_O, "The indices of the pollers whose writer sleeps."},
    {"mark_asleep", mark_asleep, METH_O, "Note beside the counters of these slots that their writer is about to sleep."},
    {"mark_awake", mark_awake, METH_O, "Note beside the counters of these slots that their writer runs on this CPU."},
    {"spin", (PyCFunction)(void (*)(void))spin, METH_FASTCALL,
     "As poll_first, until a counter has moved or this time (ns) is over."},
    {"spin_unless_blocked", (PyCFunction)(void (*)(void))spin_unless_blocked, METH_FASTCALL,
     "How long it took until a counter moved (ns); 0 if none has until this time, or its writer cannot run."},
    {"bytes_in_flight", bytes_in_flight, METH_O,
     "Bytes that clients have written of unpublished requests; -1 without such a write."},
    {"stage", (PyCFunction)(void (*)(void))stage, METH_FASTCALL,
     "Copy a payload, except for the bytes that a copier has copied already; their number."},
    {"abandon", abandon, METH_O, "No longer wait for the writes in progress."},
    {"wire", wire, METH_NOARGS,
     "The offsets, sizes and numbers of the wire, by their names in layout.py and protocol.py."},
    {NULL, NULL, 0, NULL},
};

/* In the order of the state's types. */
static PyType_Spec *const specs[TYPES] = {&encoder_spec, &decoder_spec,     &slots_spec,       &histograms_spec, &poller_spec,
                                          &copier_spec,  &server_path_spec, &client_path_spec, &semaphore_spec};

static const char *const names[NAMES] = {
    [PAYLOAD_NAME] = "payload",
    [METADATA_NAME] = "metadata",
    [WAKE_NAME] = "wake",
    [WRITTEN_SCHEMA_NAME] = "written_schema",
    [SEQUENCE_NAME] = "sequence",
    [WAIT_NAME] = "wait",
    [TRY_TAKE_NAME] = "try_take",
};

static int module_exec(PyObject *module)
{
    CoreState *state = state_of(module);
    if (import_numpy() < 0)
        return -1;
    for (int name = 0; name < NAMES; name++)
        if ((state->names[name] = PyUnicode_InternFromString(names[name])) == NULL)
            return -1;
    for (int type = 0; type < TYPES; type++) {
        state->types[type] = (PyTypeObject *)PyType_FromModuleAndSpec(module, specs[type], NULL);
        if (state->types[type] == NULL || PyModule_AddType(module, state->types[type]) < 0)
            return -1;
    }
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    CoreState *state = state_of(module);
    for (int type = 0; type < TYPES; type++)
        Py_VISIT(state->types[type]);
    return 0;
}

static int module_clear(PyObject *module)
{
    CoreState *state = state_of(module);
    for (int type = 0; type < TYPES; type++)
        Py_CLEAR(state->types[type]);
    for (int name = 0; name < NAMES; name++)
        Py_CLEAR(state->names[name]);
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}, /* nor does numpy */
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,         .m_name = "shmserve._core", .m_doc = "The hot path of a request.",
    .m_size = sizeof(CoreState),   .m_methods = functions,     .m_slots = module_slots,
    .m_traverse = module_traverse, .m_clear = module_clear,    .m_free = module_free,
};

int is_of_type(PyObject *object, int type)
{
    PyTypeObject *found = Py_TYPE(object);
    /* Every type here is a heap type of a module; most others are not. */
    if (!PyType_HasFeature(found, Py_TPFLAGS_HEAPTYPE))
        return 0;
    PyObject *module = PyType_GetModule(found);
    if (module == NULL) {
        PyErr_Clear();
        return 0;
    }
    return PyModule_GetDef(module) == &definition && state_of(module)->types[type] == found;
}

PyMODINIT_FUNC PyInit__core(void)
{
#ifdef Py_GIL_DISABLED
    /* Most objects here are protected by the lock alone. */
    PyErr_SetString(PyExc_ImportError, "shmserve._core relies on the global interpreter lock, and this Python is "
                                       "free-threaded: use a build of Python that has the lock");
    return NULL;
#else
    return PyModuleDef_Init(&definition);
#endif
}
