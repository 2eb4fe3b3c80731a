/* One extension for numpy 1 and numpy 2, whichever of them has the headers that it is compiled with.
 *
 * numpy 2's headers give that by themselves. Those of numpy 1, which Debian 12 and Ubuntu 24.04 have, compile an import
 * that refuses numpy 2, because some functions have other places in its table and a dtype other fields. The extension
 * uses only functions and fields that both have at the same place (tests/unit/native/test_numpy_abi.py lists them), so
 * it imports the table itself. Either way numpy 3 is refused.
 */

#ifndef SHMSERVE_NUMPY_ABI_H
#define SHMSERVE_NUMPY_ABI_H

#if NPY_ABI_VERSION >= 0x02000000
#define import_numpy() _import_array()
#elif defined(SHMSERVE_IMPORTS_ARRAY)

/* Import numpy's table of functions; -1 with an exception if it is not there, or of an ABI that is not known here. */
static int import_numpy(void)
{
    PyObject *module = PyImport_ImportModule("numpy._core._multiarray_umath");
    if (module == NULL && PyErr_ExceptionMatches(PyExc_ModuleNotFoundError)) {
        PyErr_Clear();
        module = PyImport_ImportModule("numpy.core._multiarray_umath"); /* its name before numpy 2 */
    }
    PyObject *table = module != NULL ? PyObject_GetAttrString(module, "_ARRAY_API") : NULL;
    Py_XDECREF(module);
    /* numpy keeps it for as long as the process lives. */
    PyArray_API = table != NULL ? PyCapsule_GetPointer(table, NULL) : NULL;
    Py_XDECREF(table);
    if (PyArray_API == NULL)
        return -1;
    (void)_import_array; /* unused */
    unsigned abi = PyArray_GetNDArrayCVersion() >> 24, api = PyArray_GetNDArrayCFeatureVersion();
    if (abi == 1 || abi == 2) {
        if (api >= NPY_FEATURE_VERSION)
            return 0;
        PyErr_Format(PyExc_ImportError, "shmserve._core was compiled for numpy's C API 0x%x, and this numpy has 0x%x",
                     NPY_FEATURE_VERSION, api);
    }
    else
        PyErr_Format(PyExc_ImportError, "shmserve._core was compiled for numpy 1 and 2, and this numpy has ABI %u", abi);
    return -1;
}

#endif

/* Of these the two differ. */
#undef PyArray_ITEMSIZE
#undef PyArray_NBYTES
#undef PyArray_CopyInto
#undef PyArray_CopyAnyInto
#pragma GCC poison PyArray_ITEMSIZE PyArray_NBYTES PyArray_CopyInto PyArray_CopyAnyInto

#endif
