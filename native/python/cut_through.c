/* Cut-through copying over arrays: CutThroughCopier (core/cut_through.h). */

#include "cut_through.h"
#include "state.h"

/* CutThroughCopier(memory, counter, payload, stride, slots, room): places in bytes; `payload` is that of the first
 * slot. */
static PyObject *copier_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *memory;
    Py_ssize_t counter, payload, stride, slots, room;
    CutThroughCopier *self = new_instance(type, keywords);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "Onnnnn", &memory, &counter, &payload, &stride, &slots, &room) ||
        PyObject_GetBuffer(memory, &self->view, PyBUF_SIMPLE) < 0)
        goto failed;
    Py_ssize_t size = self->view.len;
    if (counter < 0 || counter % WORD || counter > size - WORD * (WRITTEN_BYTES + 1) || payload < 0 || slots < 1 ||
        room < 0 || stride < room || payload > size - room ||
        (slots > 1 && stride > (size - payload - room) / (slots - 1)) || (uintptr_t)self->view.buf % WORD) {
        PyBuffer_Release(&self->view);
        PyErr_SetString(PyExc_ValueError, "these slots are not in this memory");
        goto failed;
    }
    self->copy.line = (const CounterLine *)((char *)self->view.buf + counter);
    self->copy.payloads = (char *)self->view.buf + payload;
    self->copy.stride = (size_t)stride;
    self->copy.slots = (size_t)slots;
    self->copy.room = (size_t)room;
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static void let_go(CutThroughCopier *self)
{
    if (self->copy.line != NULL && self->closed && !self->users) {
        self->copy.line = NULL;
        PyBuffer_Release(&self->view);
        Py_CLEAR(self->arena);
    }
}

static PyObject *copier_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    ((CutThroughCopier *)object)->closed = 1;
    let_go((CutThroughCopier *)object);
    Py_RETURN_NONE;
}

static void copier_dealloc(PyObject *object)
{
    CutThroughCopier *self = (CutThroughCopier *)object;
    self->closed = 1;
    let_go(self);
    Py_XDECREF(self->arena);
    free_instance(object);
}

/* set_target(arena): copy into this arena; None: stop copying */
static PyObject *copier_set_target(PyObject *object, PyObject *arena)
{
    CutThroughCopier *self = (CutThroughCopier *)object;
    if (arena != Py_None) {
        if (payload_bytes_of(arena, 0) == NULL)
            return NULL;
        if (!PyArray_ISWRITEABLE((PyArrayObject *)arena)) {
            PyErr_SetString(PyExc_ValueError, "this arena may only be read");
            return NULL;
        }
    }
    if (self->users) {
        PyErr_SetString(PyExc_RuntimeError, "a thread is polling");
        return NULL;
    }
    PyArrayObject *before = self->arena;
    self->arena = arena == Py_None || self->closed ? NULL : (PyArrayObject *)Py_NewRef(arena);
    self->copy.done = 0;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

void copier_enter(CutThroughCopier *self)
{
    Py_INCREF(self);
    self->users++;
    /* The arena may have been resized since the last time. */
    self->copy.target = self->arena == NULL ? NULL : PyArray_BYTES(self->arena);
    self->copy.target_bytes = self->arena == NULL ? 0 : (size_t)PyArray_DIM(self->arena, 0);
}

void copier_leave(CutThroughCopier *self)
{
    self->users--;
    let_go(self);
    Py_DECREF(self);
}

void copier_commit(CutThroughCopier *self, uint64_t write_id) { self->copy.committed = write_id; }

Py_ssize_t copier_take(CutThroughCopier *self, PyArrayObject *arena, uint64_t write_id)
{
    return (Py_ssize_t)cut_through_take(&self->copy, self->arena == arena ? write_id : 0);
}

/* commit(write_id): the engine has this write's request; stop copying it */
static PyObject *copier_commit_method(PyObject *object, PyObject *given)
{
    uint64_t write_id = PyLong_AsUnsignedLongLong(given);
    if (write_id == (uint64_t)-1 && PyErr_Occurred())
        return NULL;
    copier_commit((CutThroughCopier *)object, write_id);
    Py_RETURN_NONE;
}

/* bytes_in_flight(copiers): bytes that their clients have written of unpublished requests; -1 if there is no such write
 */
PyObject *bytes_in_flight(PyObject *module, PyObject *given)
{
    PyTypeObject *type = state_of(module)->types[COPIER_TYPE];
    if (!PyList_CheckExact(given)) {
        PyErr_SetString(PyExc_TypeError, "copiers are a list");
        return NULL;
    }
    int64_t bytes = -1;
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(given); index++) {
        PyObject *copier = PyList_GET_ITEM(given, index);
        uint64_t written;
        if (Py_TYPE(copier) == type && cut_through_is_due(&((CutThroughCopier *)copier)->copy, &written))
            /* Bounded for any value of the word: the sum is only compared. */
            bytes = (bytes < 0 ? 0 : bytes) + (int64_t)(written >> 8);
    }
    return PyLong_FromLongLong(bytes);
}

/* abandon(copiers): no longer wait for the writes in progress */
PyObject *abandon(PyObject *module, PyObject *given)
{
    PyTypeObject *type = state_of(module)->types[COPIER_TYPE];
    if (!PyList_CheckExact(given)) {
        PyErr_SetString(PyExc_TypeError, "copiers are a list");
        return NULL;
    }
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(given); index++)
        if (Py_TYPE(PyList_GET_ITEM(given, index)) == type)
            cut_through_abandon(&((CutThroughCopier *)PyList_GET_ITEM(given, index))->copy);
    Py_RETURN_NONE;
}

static PyMethodDef copier_methods[] = {
    {"commit", copier_commit_method, METH_O, "The engine has this write's request."},
    {"set_target", copier_set_target, METH_O, "Copy into this arena; None: stop copying."},
    {"close", copier_close, METH_NOARGS, "Release the memory once no thread polls it; may be called twice."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot copier_slots[] = {
    {Py_tp_doc, "Copies a payload while its client still writes it."},
    {Py_tp_new, copier_new},
    {Py_tp_dealloc, copier_dealloc},
    {Py_tp_methods, copier_methods},
    {0, NULL},
};

PyType_Spec copier_spec = {"shmserve._core.CutThroughCopier", sizeof(CutThroughCopier), 0, TYPE_FLAGS, copier_slots};

int is_copier(PyObject *object) { return is_of_type(object, COPIER_TYPE); }
