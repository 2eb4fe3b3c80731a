/* Histograms of an engine's stages: Stats.record (daemon/ipc/stats.py). */

#include "core/histograms.h"
#include "common.h"

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    Word *counts; /* NULL once closed */
} Histograms;

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
    self->counts = (Word *)self->view.buf + place;
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

static PyObject *histograms_record_method(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Histograms *self = (Histograms *)object;
    if (count != STAGES - 1) {
        PyErr_SetString(PyExc_TypeError, "record(queued_ns, staged_ns, infer_ns, copied_ns)");
        return NULL;
    }
    if (self->counts == NULL) {
        PyErr_SetString(PyExc_ValueError, "these histograms were closed");
        return NULL;
    }
    uint64_t durations[STAGES - 1];
    for (int stage = 0; stage < STAGES - 1; stage++) {
        durations[stage] = PyLong_AsUnsignedLongLong(args[stage]);
        if (durations[stage] == (uint64_t)-1 && PyErr_Occurred())
            return NULL;
    }
    histograms_record(self->counts, durations);
    Py_RETURN_NONE;
}

static PyMethodDef histograms_methods[] = {
    {"record", (PyCFunction)(void (*)(void))histograms_record_method, METH_FASTCALL, "Stats.record"},
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
