/* Copies a payload that its client is still writing: the engine has nothing else to do while it looks for requests.
 *
 * A client announces each large write (tree_encoder.c): a number that is never used twice and names the slot, then how many
 * bytes are there. They are a hint. What was copied is used only for a request that names the same write, and then only
 * the rest is copied; otherwise it is forgotten. Whatever a client writes into these words, it costs the engine copies
 * within the client's own slot, between two looks at every counter.
 */

#include "cut_through.h"

/* CutThroughCopier(memory, counter, payload, stride, slots, room): places in bytes; `payload` is that of the first slot. */
static PyObject *copier_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *memory;
    Py_ssize_t counter, payload;
    CutThroughCopier *self = new_instance(type, keywords);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "Onnnnn", &memory, &counter, &payload, &self->stride, &self->slots, &self->room) ||
        PyObject_GetBuffer(memory, &self->view, PyBUF_SIMPLE) < 0)
        goto failed;
    Py_ssize_t size = self->view.len;
    if (counter < 0 || counter % 8 || counter > size - 8 * (WRITTEN_BYTES + 1) || payload < 0 || self->slots < 1 ||
        self->room < 0 || self->stride < self->room || payload > size - self->room ||
        (self->slots > 1 && self->stride > (size - payload - self->room) / (self->slots - 1)) ||
        (uintptr_t)self->view.buf % 8) {
        PyBuffer_Release(&self->view);
        PyErr_SetString(PyExc_ValueError, "these slots are not in this memory");
        goto failed;
    }
    self->words = (uint64_t *)((char *)self->view.buf + counter);
    self->payloads = (char *)self->view.buf + payload;
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static void let_go(CutThroughCopier *self)
{
    if (self->words != NULL && self->closed && !self->lookers) {
        self->words = NULL;
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

/* set_target(arena): where to copy to; None: nowhere */
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
    if (self->lookers) {
        PyErr_SetString(PyExc_RuntimeError, "a thread is looking");
        return NULL;
    }
    PyArrayObject *before = self->arena;
    self->arena = arena == Py_None || self->closed ? NULL : (PyArrayObject *)Py_NewRef(arena);
    self->done = 0;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

void copier_enter(CutThroughCopier *self)
{
    Py_INCREF(self);
    self->lookers++;
}

void copier_leave(CutThroughCopier *self)
{
    self->lookers--;
    let_go(self);
    Py_DECREF(self);
}

int copier_advance(CutThroughCopier *self)
{
    if (self->arena == NULL || self->words == NULL)
        return 0;
    /* ORDER: the write before its bytes, and these before what they tell of; pairs with begin_write and copy_in_pieces. */
    uint64_t write_id = __atomic_load_n(&self->words[WRITE_ID], __ATOMIC_ACQUIRE);
    if (write_id == self->committed || slot_of(write_id) >= (uint64_t)self->slots)
        return 0;
    if (write_id != self->write_id) {
        self->write_id = write_id;
        self->done = 0;
    }
    uint64_t written = __atomic_load_n(&self->words[WRITTEN_BYTES], __ATOMIC_ACQUIRE);
    Py_ssize_t most = PyArray_DIM(self->arena, 0) < self->room ? PyArray_DIM(self->arena, 0) : self->room;
    Py_ssize_t there = written < (uint64_t)most ? (Py_ssize_t)written : most;
    if (there <= self->done)
        return 0;
    Py_ssize_t size = there - self->done < CUT_THROUGH_PIECE ? there - self->done : CUT_THROUGH_PIECE;
    const char *payload = self->payloads + (Py_ssize_t)slot_of(write_id) * self->stride;
    memcpy(PyArray_BYTES(self->arena) + self->done, payload + self->done, (size_t)size);
    /* The client may have begun another write meanwhile, into the same slot. */
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (__atomic_load_n(&self->words[WRITE_ID], __ATOMIC_RELAXED) == write_id)
        self->done += size;
    else
        self->done = 0;
    return 1;
}

Py_ssize_t copier_take(CutThroughCopier *self, PyArrayObject *arena, uint64_t write_id)
{
    Py_ssize_t done = write_id && self->write_id == write_id && self->arena == arena ? self->done : 0;
    self->write_id = 0;
    self->done = 0;
    return done;
}

/* commit(write_id): the request of this write is there; there is no more to be copied ahead */
static PyObject *copier_commit(PyObject *object, PyObject *given)
{
    uint64_t write_id = PyLong_AsUnsignedLongLong(given);
    if (write_id == (uint64_t)-1 && PyErr_Occurred())
        return NULL;
    ((CutThroughCopier *)object)->committed = write_id;
    Py_RETURN_NONE;
}

/* bytes_in_flight(copiers): how many bytes their clients have written of requests that did not come yet; -1 if there are none */
PyObject *bytes_in_flight(PyObject *module, PyObject *given)
{
    (void)module;
    if (!PyList_CheckExact(given)) {
        PyErr_SetString(PyExc_TypeError, "copiers are a list");
        return NULL;
    }
    int64_t bytes = -1;
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(given); index++) {
        CutThroughCopier *self = (CutThroughCopier *)PyList_GET_ITEM(given, index);
        if (is_copier((PyObject *)self) && self->words != NULL &&
            __atomic_load_n(&self->words[WRITE_ID], __ATOMIC_ACQUIRE) != self->committed)
            /* Bounded, whatever stands there: the sum is only compared. */
            bytes = (bytes < 0 ? 0 : bytes) + (int64_t)(__atomic_load_n(&self->words[WRITTEN_BYTES], __ATOMIC_RELAXED) >> 8);
    }
    return PyLong_FromLongLong(bytes);
}

/* abandon(copiers): no longer wait for the requests of what is being written now */
PyObject *abandon(PyObject *module, PyObject *given)
{
    (void)module;
    if (!PyList_CheckExact(given)) {
        PyErr_SetString(PyExc_TypeError, "copiers are a list");
        return NULL;
    }
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(given); index++) {
        CutThroughCopier *self = (CutThroughCopier *)PyList_GET_ITEM(given, index);
        if (is_copier((PyObject *)self) && self->words != NULL)
            self->committed = __atomic_load_n(&self->words[WRITE_ID], __ATOMIC_RELAXED);
    }
    Py_RETURN_NONE;
}

static PyMethodDef copier_methods[] = {
    {"commit", copier_commit, METH_O, "The request of this write has come."},
    {"set_target", copier_set_target, METH_O, "Copy into this arena from now on; None: nowhere."},
    {"close", copier_close, METH_NOARGS, "Let go of the memory, once nobody looks any more; may be called twice."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot copier_slots[] = {
    {Py_tp_doc, "Copies a payload that its client is still writing."},
    {Py_tp_new, copier_new},
    {Py_tp_dealloc, copier_dealloc},
    {Py_tp_methods, copier_methods},
    {0, NULL},
};

PyType_Spec copier_spec = {"shmserve._core.CutThroughCopier", sizeof(CutThroughCopier), 0, TYPE_FLAGS, copier_slots};

int is_copier(PyObject *object) { return Py_TYPE(object)->tp_dealloc == copier_dealloc; }
