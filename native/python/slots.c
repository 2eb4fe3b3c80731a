/* Heads of one segment's slots: the four ring ends of ring.py, with the memory orders of C11.
 *
 * A reader copies a head once, word by word, and uses only the copy.
 */

#include "slots.h"
#include "cut_through.h"

/* Slots(memory, counter, first, stride, slots): the places in words of 8 bytes. */
static PyObject *slots_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *memory;
    Py_ssize_t counter, first;
    Slots *self = new_instance(type, keywords);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "Onnnn", &memory, &counter, &first, &self->stride, &self->slots) ||
        PyObject_GetBuffer(memory, &self->view, PyBUF_SIMPLE) < 0)
        goto failed;
    Py_ssize_t words = self->view.len / (Py_ssize_t)sizeof(uint64_t);
    if (counter < 0 || counter + PROCESSOR >= words || first < 0 || self->slots < 1 || self->stride < REPLY_WORDS ||
        self->slots > 1 << 16 || self->stride > (words - first) / self->slots ||
        (uintptr_t)self->view.buf % sizeof(uint64_t)) {
        PyBuffer_Release(&self->view);
        PyErr_SetString(PyExc_ValueError, "these slots are not in this memory");
        goto failed;
    }
    self->words = self->view.buf;
    self->counter = self->words + counter;
    self->first = self->words + first;
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static PyObject *slots_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    Slots *self = (Slots *)object;
    if (self->words != NULL) {
        self->words = NULL;
        PyBuffer_Release(&self->view);
    }
    Py_RETURN_NONE;
}

static void slots_dealloc(PyObject *object)
{
    Slots *self = (Slots *)object;
    if (self->words != NULL)
        PyBuffer_Release(&self->view);
    free_instance(object);
}

uint64_t *head_of(Slots *self, uint64_t sequence)
{
    if (self->words == NULL) {
        PyErr_SetString(PyExc_ValueError, "this segment was closed");
        return NULL;
    }
    uint64_t slot = slot_of(sequence);
    if (slot >= (uint64_t)self->slots) {
        PyErr_Format(PyExc_IndexError, "slot %llu of %zd", (unsigned long long)slot, self->slots);
        return NULL;
    }
    return self->first + slot * self->stride;
}

PyObject *named(PyObject *type, const uint64_t *words, int count)
{
    if (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "expected a subclass of tuple for the head");
        return NULL;
    }
    PyObject *head = ((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, count);
    if (head == NULL)
        return NULL;
#if PY_VERSION_HEX >= 0x030E0000
    ((PyTupleObject *)head)->ob_hash = -1; /* a tuple caches its hash; -1: not computed */
#endif
    for (int index = 0; index < count; index++) {
        PyObject *number = PyLong_FromUnsignedLongLong(words[index]);
        if (number == NULL) {
            Py_DECREF(head);
            return NULL;
        }
        PyTuple_SET_ITEM(head, index, number);
    }
    return head;
}

void publish_request(Slots *self, uint64_t *head, const uint64_t *words)
{
    for (int index = 0; index < REQUEST_WORDS; index++)
        store(&head[index], words[index]);
    store(&self->counter[PROCESSOR], processor());
    /* ORDER: payload and head before the counter; pairs with copy_request. */
    __atomic_store_n(self->counter, words[0], __ATOMIC_RELEASE);
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
    uint64_t *head = head_of(self, words[0]);
    if (head == NULL)
        return NULL;
    if (self->view.readonly) {
        PyErr_SetString(PyExc_TypeError, "this segment is mapped for reading");
        return NULL;
    }
    publish_request(self, head, words);
    Py_RETURN_NONE;
}

void copy_request(const uint64_t *head, uint64_t *words)
{
    /* ORDER: the counter before head and payload; pairs with publish_request. */
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    for (int index = 0; index < REQUEST_WORDS; index++)
        words[index] = load(&head[index]);
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
    if (self->words != NULL && slot_of(sequence) >= (uint64_t)self->slots)
        Py_RETURN_NONE;
    uint64_t *head = head_of(self, sequence);
    if (head == NULL)
        return NULL;
    copy_request(head, words);
    if (words[0] != sequence)
        Py_RETURN_NONE;
    return named(args[0], words, REQUEST_WORDS);
}

static PyObject *slots_cancelled(PyObject *object, PyObject *given)
{
    uint64_t sequence, *head;
    if (to_word(given, &sequence) < 0 || (head = head_of((Slots *)object, sequence)) == NULL)
        return NULL;
    return PyBool_FromLong(load(&head[CANCELLED]) == sequence);
}

uint64_t take_request(uint64_t *head, uint64_t sequence)
{
    uint64_t attempts = load(&head[TAKEN]) == sequence ? load(&head[ATTEMPTS]) + 1 : 1;
    store(&head[ATTEMPTS], attempts);
    __atomic_store_n(&head[TAKEN], sequence, __ATOMIC_RELEASE);
    return attempts;
}

static PyObject *slots_take(PyObject *object, PyObject *given)
{
    Slots *self = (Slots *)object;
    uint64_t sequence, *head;
    if (to_word(given, &sequence) < 0 || (head = head_of(self, sequence)) == NULL)
        return NULL;
    if (self->view.readonly) {
        PyErr_SetString(PyExc_TypeError, "this segment is mapped for reading");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(take_request(head, sequence));
}

void complete_reply(Slots *self, uint64_t *head, const uint64_t *words)
{
    /* The slot still names an earlier sequence until all else is written. */
    for (int index = 1; index <= REPLY_PUBLISHED; index++)
        store(&head[index], words[index]);
    store(&self->counter[PROCESSOR], processor());
    /* ORDER: payload and head before the sequence; pairs with copy_reply. */
    __atomic_store_n(&head[0], words[0], __ATOMIC_RELEASE);
    /* ORDER: the sequence before the counter, which a spinning client polls; pairs with has_moved.
     * Only the serving engine writes it. */
    __atomic_store_n(self->counter, load(self->counter) + 1, __ATOMIC_RELEASE);
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
    uint64_t *head = head_of(self, words[0]);
    if (head == NULL)
        return NULL;
    if (self->view.readonly) {
        PyErr_SetString(PyExc_TypeError, "this segment is mapped for reading");
        return NULL;
    }
    complete_reply(self, head, words);
    Py_RETURN_NONE;
}

int copy_reply(const uint64_t *head, uint64_t sequence, uint64_t *words)
{
    /* ORDER: the sequence before head and payload; pairs with complete_reply. */
    if (__atomic_load_n(&head[0], __ATOMIC_ACQUIRE) != sequence)
        return 0;
    words[0] = sequence;
    for (int index = 1; index < REPLY_WORDS; index++)
        words[index] = load(&head[index]);
    return 1;
}

static PyObject *slots_reply(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    uint64_t sequence, *head, words[REPLY_WORDS];
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "reply(type, sequence)");
        return NULL;
    }
    if (to_word(args[1], &sequence) < 0 || (head = head_of((Slots *)object, sequence)) == NULL)
        return NULL;
    if (!copy_reply(head, sequence, words))
        Py_RETURN_NONE;
    return named(args[0], words, REPLY_WORDS);
}

int is_slots(PyObject *object) { return Py_TYPE(object)->tp_dealloc == slots_dealloc; }

Slots *writable_slots(PyObject *object)
{
    if (is_slots(object) && ((Slots *)object)->words != NULL && !((Slots *)object)->view.readonly)
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
