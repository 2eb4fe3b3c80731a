/* The module shmserve._core: the hot path of a request in C.
 *
 * Each type has a counterpart in Python with the same checks in the same order, which serves where this module was not
 * built: TreeEncoder for StructureGuard.flatten (structure_guard.py) and Encoder, TreeDecoder for Schema.unflatten,
 * Slots for the ring ends of ring.py, CounterPoller for counter_poller.py, Histograms for stats.py. CutThroughCopier
 * and the two halves of the fast path exist in C alone: pure Python copies a payload after its publication and has only
 * the slow path.
 */

#define SHMSERVE_IMPORTS_ARRAY
#include "client_fast_path.h"
#include "counter_poller.h"
#include "cut_through.h"

static PyMethodDef functions[] = {
    {"poll_first", poll_first, METH_O, "The index of the first poller whose counter has moved; -1 if none has."},
    {"poll_all", poll_all, METH_O, "The indices of all pollers whose counter has moved."},
    {"same_cpu_writers", same_cpu_writers, METH_O, "The indices of the pollers whose writer last ran on this CPU."},
    {"spin", (PyCFunction)(void (*)(void))spin, METH_FASTCALL,
     "As poll_first, until a counter has moved or this time (ns) is over."},
    {"spin_unless_same_cpu", (PyCFunction)(void (*)(void))spin_unless_same_cpu, METH_FASTCALL,
     "The time of the first move; 0 if none has until this time (ns), or its writer last ran on this CPU."},
    {"bytes_in_flight", bytes_in_flight, METH_O,
     "Bytes that clients have written of unpublished requests; -1 without such a write."},
    {"abandon", abandon, METH_O, "No longer wait for the writes in progress."},
    {NULL, NULL, 0, NULL},
};

static int add_type(PyObject *module, const char *name, PyType_Spec *spec)
{
    PyObject *type = PyType_FromSpec(spec);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, name, type);
    Py_DECREF(type);
    return failed;
}

static int module_exec(PyObject *module)
{
    import_array1(-1);
    if (client_path_names() < 0)
        return -1;
    if (add_type(module, "TreeEncoder", &encoder_spec) < 0 || add_type(module, "TreeDecoder", &decoder_spec) < 0 ||
        add_type(module, "Histograms", &histograms_spec) < 0)
        return -1;
    if (add_type(module, "Slots", &slots_spec) < 0 || add_type(module, "CutThroughCopier", &copier_spec) < 0 ||
        add_type(module, "ServerFastPath", &server_path_spec) < 0 ||
        add_type(module, "ClientFastPath", &client_path_spec) < 0)
        return -1;
    return add_type(module, "CounterPoller", &poller_spec);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}, /* nor does numpy */
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,  .m_name = "shmserve._core", .m_doc = "The hot path of a request.",
    .m_methods = functions, .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
