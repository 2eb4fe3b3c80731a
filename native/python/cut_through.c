/* Cut-through copying: an idle engine copies a payload while its client still writes it.
 *
 * A switch that forwards a frame before its end has arrived is called cut-through; so is this copy. A client announces
 * each large write (tree_encoder.c): its write id, which is unique and names the slot, then the number of bytes that
 * are written. Both words are hints. The copied bytes are used only for a request whose head names the same write id;
 * the engine then copies only the rest. Otherwise it discards them. False words cost the engine copies within that
 * client's slot, between two polls of every counter, and nothing else.
 */

#include "cut_through.h"

/* CutThroughCopier(memory, counter, payload, stride, slots, room): places in bytes; `payload` is that of the first
 * slot. */
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
    if (self->words != NULL && self->closed && !self->users) {
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
    self->done = 0;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

void copier_enter(CutThroughCopier *self)
{
    Py_INCREF(self);
    self->users++;
}

void copier_leave(CutThroughCopier *self)
{
    self->users--;
    let_go(self);
    Py_DECREF(self);
}

int copier_advance(CutThroughCopier *self)
{
    if (self->arena == NULL || self->words == NULL)
        return 0;
    /* ORDER: the write id before the byte count, and the count before the bytes; pairs with begin_write and
     * copy_in_pieces. */
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
    /* The client may have begun another write into the same slot meanwhile. */
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

/* commit(write_id): the engine has this write's request; stop copying it */
static PyObject *copier_commit(PyObject *object, PyObject *given)
{
    uint64_t write_id = PyLong_AsUnsignedLongLong(given);
    if (write_id == (uint64_t)-1 && PyErr_Occurred())
        return NULL;
    ((CutThroughCopier *)object)->committed = write_id;
    Py_RETURN_NONE;
}

/* bytes_in_flight(copiers): bytes that their clients have written of unpublished requests; -1 if there is no such write
 */
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
            /* Bounded for any value of the word: the sum is only compared. */
            bytes = (bytes < 0 ? 0 : bytes) +
                    (int64_t)(__atomic_load_n(&self->words[WRITTEN_BYTES], __ATOMIC_RELAXED) >> 8);
    }
    return PyLong_FromLongLong(bytes);
}

/* abandon(copiers): no longer wait for the writes in progress */
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
    {"commit", copier_commit, METH_O, "The engine has this write's request."},
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

int is_copier(PyObject *object) { return Py_TYPE(object)->tp_dealloc == copier_dealloc; }
