/* Heads of one segment's slots: the four ring ends of ring.py over core/ring.h. */

#include "slots.h"
#include "state.h"

/* Slots(memory, counter, first, stride, slots): the places in words of 8 bytes. */
static PyObject *slots_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *memory;
    Py_ssize_t counter, first, stride, slots;
    Slots *self = new_instance(type, keywords);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "Onnnn", &memory, &counter, &first, &stride, &slots) ||
        PyObject_GetBuffer(memory, &self->view, PyBUF_SIMPLE) < 0)
        goto failed;
    Py_ssize_t words = self->view.len / WORD;
    if (counter < 0 || counter + PROCESSOR >= words || first < 0 || slots < 1 || stride < REPLY_WORDS ||
        slots > MAX_SLOTS || stride > (words - first) / slots || (uintptr_t)self->view.buf % WORD) {
        PyBuffer_Release(&self->view);
        PyErr_SetString(PyExc_ValueError, "these slots are not in this memory");
        goto failed;
    }
    char *bytes = self->view.buf;
    self->ring.line = (CounterLine *)(bytes + counter * WORD);
    self->ring.heads = bytes + first * WORD;
    self->ring.stride = (size_t)stride * WORD;
    self->ring.slots = (uint64_t)slots;
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static PyObject *slots_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    Slots *self = (Slots *)object;
    if (self->ring.line != NULL) {
        self->ring.line = NULL;
        PyBuffer_Release(&self->view);
    }
    Py_RETURN_NONE;
}

static void slots_dealloc(PyObject *object)
{
    Slots *self = (Slots *)object;
    if (self->ring.line != NULL)
        PyBuffer_Release(&self->view);
    free_instance(object);
}

void *head_of(Slots *self, uint64_t sequence)
{
    if (self->ring.line == NULL) {
        PyErr_SetString(PyExc_ValueError, "this segment was closed");
        return NULL;
    }
    void *head = ring_head(&self->ring, sequence);
    if (head == NULL)
        PyErr_Format(PyExc_IndexError, "slot %llu of %llu", (unsigned long long)slot_of(sequence),
                     (unsigned long long)self->ring.slots);
    return head;
}

PyObject *named(PyObject *type, const uint64_t *words, int count)
{
    if (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "expected a subclass of tuple for the head");
        return NULL;
    }
    PyObject *plain = PyTuple_New(count);
    for (int index = 0; plain != NULL && index < count; index++) {
        PyObject *number = PyLong_FromUnsignedLongLong(words[index]);
        if (number == NULL)
            Py_CLEAR(plain);
        else
            PyTuple_SET_ITEM(plain, index, number);
    }
    if (plain == NULL)
        return NULL;
    /* tuple.__new__(type, plain): a class of typing.NamedTuple has its own __new__ in Python, which is slower. */
    PyObject *head = NULL, *args = PyTuple_Pack(1, plain);
    if (args != NULL)
        head = PyTuple_Type.tp_new((PyTypeObject *)type, args, NULL);
    Py_XDECREF(args);
    Py_DECREF(plain);
    return head;
}

static PyObject *slots_publish(PyObject *object, PyObject *given)
{
    Slots *self = (Slots *)object;
    uint64_t words[REQUEST_WORDS];
    if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) != REQUEST_WORDS) {
        PyErr_Format(PyExc_TypeError, "a request's head is a tuple of %d numbers", REQUEST_WORDS);
        return NULL;
    }
    for (int index = 0; index < REQUEST_WORDS; index++)
        if (to_word(PyTuple_GET_ITEM(given, index), &words[index]) < 0)
            return NULL;
    RequestHead *head = head_of(self, words[0]);
    if (head == NULL)
        return NULL;
    if (self->view.readonly) {
        PyErr_SetString(PyExc_TypeError, "this segment is mapped for reading");
        return NULL;
    }
    ring_publish(self->ring.line, head, words);
    Py_RETURN_NONE;
}

static PyObject *slots_request(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Slots *self = (Slots *)object;
    uint64_t sequence, words[REQUEST_WORDS];
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "request(type, sequence)");
        return NULL;
    }
    if (to_word(args[1], &sequence) < 0)
        return NULL;
    if (self->ring.line != NULL && slot_of(sequence) >= self->ring.slots)
        Py_RETURN_NONE;
    const RequestHead *head = head_of(self, sequence);
    if (head == NULL)
        return NULL;
    ring_copy_request(head, words);
    if (words[0] != sequence)
        Py_RETURN_NONE;
    return named(args[0], words, REQUEST_WORDS);
}

static PyObject *slots_cancelled(PyObject *object, PyObject *given)
{
    uint64_t sequence;
    const RequestHead *head;
    if (to_word(given, &sequence) < 0 || (head = head_of((Slots *)object, sequence)) == NULL)
        return NULL;
    return PyBool_FromLong(ring_is_cancelled(head, sequence));
}

static PyObject *slots_take(PyObject *object, PyObject *given)
{
    Slots *self = (Slots *)object;
    uint64_t sequence;
    ReplyHead *head;
    if (to_word(given, &sequence) < 0 || (head = head_of(self, sequence)) == NULL)
        return NULL;
    if (self->view.readonly) {
        PyErr_SetString(PyExc_TypeError, "this segment is mapped for reading");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(ring_take(head, sequence));
}

static PyObject *slots_complete(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Slots *self = (Slots *)object;
    uint64_t words[REPLY_PUBLISHED + 1];
    if (count != REPLY_PUBLISHED + 1) {
        PyErr_Format(PyExc_TypeError, "complete(sequence, and %d words of the reply's head)", REPLY_PUBLISHED);
        return NULL;
    }
    for (int index = 0; index <= REPLY_PUBLISHED; index++)
        if (to_word(args[index], &words[index]) < 0)
            return NULL;
    ReplyHead *head = head_of(self, words[0]);
    if (head == NULL)
        return NULL;
    if (self->view.readonly) {
        PyErr_SetString(PyExc_TypeError, "this segment is mapped for reading");
        return NULL;
    }
    ring_complete(self->ring.line, head, words);
    Py_RETURN_NONE;
}

static PyObject *slots_reply(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    uint64_t sequence, words[REPLY_WORDS];
    const ReplyHead *head;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "reply(type, sequence)");
        return NULL;
    }
    if (to_word(args[1], &sequence) < 0 || (head = head_of((Slots *)object, sequence)) == NULL)
        return NULL;
    if (!ring_copy_reply(head, sequence, words))
        Py_RETURN_NONE;
    return named(args[0], words, REPLY_WORDS);
}

int is_slots(PyObject *object) { return is_of_type(object, SLOTS_TYPE); }

Slots *writable_slots(PyObject *object)
{
    if (is_slots(object) && ((Slots *)object)->ring.line != NULL && !((Slots *)object)->view.readonly)
        return (Slots *)object;
    PyErr_SetString(PyExc_TypeError, "expected open slots of a writable segment");
    return NULL;
}

static PyMethodDef slots_methods[] = {
    {"publish", slots_publish, METH_O, "RequestWriter.publish"},
    {"request", (PyCFunction)(void (*)(void))slots_request, METH_FASTCALL, "RequestReader.head, as this type"},
    {"cancelled", slots_cancelled, METH_O, "RequestReader.cancelled"},
    {"take", slots_take, METH_O, "ReplyWriter.take"},
    {"complete", (PyCFunction)(void (*)(void))slots_complete, METH_FASTCALL, "ReplyWriter.complete"},
    {"reply", (PyCFunction)(void (*)(void))slots_reply, METH_FASTCALL, "ReplyReader.try_head, as this type"},
    {"close", slots_close, METH_NOARGS, "Release the memory; may be called twice."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots_slots[] = {
    {Py_tp_doc, "The heads of one segment's slots."},
    {Py_tp_new, slots_new},
    {Py_tp_dealloc, slots_dealloc},
    {Py_tp_methods, slots_methods},
    {0, NULL},
};

PyType_Spec slots_spec = {"shmserve._core.Slots", sizeof(Slots), 0, TYPE_FLAGS, slots_slots};
