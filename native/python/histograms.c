/* Histograms of an engine's stages: Stats.record (daemon/ipc/stats.py). */

#include "common.h"

enum { STAGES = 5, BUCKETS = 240, FIRST_BIT = 10, SUB_BITS = 3 };

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    uint64_t *counts; /* NULL once closed */
} Histograms;

/* bucket_of in daemon/ipc/stats.py; a test compares them */
static int bucket_of(uint64_t duration_ns)
{
    if (duration_ns < (uint64_t)1 << FIRST_BIT)
        return 0;
    int bits = 63 - __builtin_clzll(duration_ns) - FIRST_BIT;
    int index = 1 + (bits << SUB_BITS) + (int)((duration_ns >> (bits + FIRST_BIT - SUB_BITS)) & 7);
    return index < BUCKETS ? index : BUCKETS - 1;
}

/* Histograms(memory, place of the first in words of 8 bytes) */
static PyObject *histograms_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *memory;
    Py_ssize_t place;
    Histograms *self = new_instance(type, keywords);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "On", &memory, &place) || PyObject_GetBuffer(memory, &self->view, PyBUF_WRITABLE) < 0)
        goto failed;
    if (place < 0 || place > self->view.len / (Py_ssize_t)sizeof(uint64_t) - STAGES * BUCKETS ||
        (uintptr_t)self->view.buf % sizeof(uint64_t)) {
        PyBuffer_Release(&self->view);
        PyErr_SetString(PyExc_ValueError, "the histograms are not in this memory");
        goto failed;
    }
    self->counts = (uint64_t *)self->view.buf + place;
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static PyObject *histograms_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    Histograms *self = (Histograms *)object;
    if (self->counts != NULL) {
        self->counts = NULL;
        PyBuffer_Release(&self->view);
    }
    Py_RETURN_NONE;
}

static void histograms_dealloc(PyObject *object)
{
    if (((Histograms *)object)->counts != NULL)
        PyBuffer_Release(&((Histograms *)object)->view);
    free_instance(object);
}

static PyObject *histograms_record(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Histograms *self = (Histograms *)object;
    uint64_t total = 0;
    if (count != STAGES - 1) {
        PyErr_SetString(PyExc_TypeError, "record(queued_ns, staged_ns, infer_ns, copied_ns)");
        return NULL;
    }
    if (self->counts == NULL) {
        PyErr_SetString(PyExc_ValueError, "these histograms were closed");
        return NULL;
    }
    uint64_t durations[STAGES];
    for (int stage = 0; stage < STAGES - 1; stage++) {
        durations[stage] = PyLong_AsUnsignedLongLong(args[stage]);
        if (durations[stage] == (uint64_t)-1 && PyErr_Occurred())
            return NULL;
        if (__builtin_add_overflow(total, durations[stage], &total))
            total = UINT64_MAX;
    }
    durations[STAGES - 1] = total;
    for (int stage = 0; stage < STAGES; stage++)
        self->counts[stage * BUCKETS + bucket_of(durations[stage])]++;
    Py_RETURN_NONE;
}

static PyMethodDef histograms_methods[] = {
    {"record", (PyCFunction)(void (*)(void))histograms_record, METH_FASTCALL, "Stats.record"},
    {"close", histograms_close, METH_NOARGS, "Release the memory; may be called twice."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot histograms_slots[] = {
    {Py_tp_doc, "The histograms of an engine's stages."},
    {Py_tp_new, histograms_new},
    {Py_tp_dealloc, histograms_dealloc},
    {Py_tp_methods, histograms_methods},
    {0, NULL},
};

PyType_Spec histograms_spec = {"shmserve._core.Histograms", sizeof(Histograms), 0, TYPE_FLAGS, histograms_slots};
