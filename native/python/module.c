/* The module shmserve._core: the hot path of a request.
 *
 * Each does what a class of Python here does, in the same order and with the same checks: TreeEncoder what StructureGuard
 * (structure_guard.py) and Encoder do, TreeDecoder what Schema.unflatten does, Slots what the ends in ring.py do, CounterPoller and
 * Histograms what loop.py and stats.py do. Where this module was not built, those do it. CutThroughCopier alone has no Python
 * beside it: there nothing is copied before its request has come. Intake and Asking put several of these steps
 * together for a plain request, which otherwise goes the long way.
 */

#define SHMSERVE_IMPORTS_ARRAY
#include "asking.h"
#include "cut_through.h"
#include "counter_poller.h"

static PyMethodDef functions[] = {
    {"poll_first", poll_first, METH_O, "The place of the first poller whose counter has moved; -1 if none has."},
    {"poll_all", poll_all, METH_O, "The places of all pollers whose counter has moved."},
    {"same_cpu_writers", same_cpu_writers, METH_O, "The places of the pollers whose writer was last seen on this processor."},
    {"spin", (PyCFunction)(void (*)(void))spin, METH_FASTCALL, "As poll_first, again and again until this time (ns)."},
    {"spin_unless_same_cpu", (PyCFunction)(void (*)(void))spin_unless_same_cpu, METH_FASTCALL,
     "When one has moved; 0 if none has until this time (ns), or its writer is on this processor."},
    {"bytes_in_flight", bytes_in_flight, METH_O, "How far the clients of these copiers are with requests that did not come yet; -1 without any."},
    {"abandon", abandon, METH_O, "No longer wait for what the clients of these copiers are writing."},
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
    if (asking_names() < 0)
        return -1;
    if (add_type(module, "TreeEncoder", &encoder_spec) < 0 || add_type(module, "TreeDecoder", &decoder_spec) < 0 ||
        add_type(module, "Histograms", &histograms_spec) < 0)
        return -1;
    if (add_type(module, "Slots", &slots_spec) < 0 || add_type(module, "CutThroughCopier", &copier_spec) < 0 ||
        add_type(module, "Intake", &intake_spec) < 0 || add_type(module, "Asking", &asking_spec) < 0)
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
    PyModuleDef_HEAD_INIT,
    .m_name = "shmserve._core",
    .m_doc = "The hot path of a request.",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
