/* Client half of the fast path: try_send takes a tree to the published counter, try_receive takes a reply to its tree.
 *
 * Both are specialized for one structure of requests and one of replies, like an inline cache. A request is eligible if
 * no other request of its client is in flight, its tree has the specialized structure, and its slot holds that
 * structure's metadata. try_send publishes no other request: the slow path (codec.py and the client's request pipeline)
 * takes it.
 */

#include "client_fast_path.h"
#include "counter_poller.h"
#include "cut_through.h"
#include "slots.h"
#include "tree_decoder.h"
#include "tree_encoder.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    Slots *requests, *replies;
    PyObject *poller; /* of the replies */
    PyObject *request_memories, *reply_memories;
    Py_ssize_t rotating_slots;
    /* Of the last specialize; NULL before. */
    PyObject *encoder, *decoder;
    uint64_t schema, metadata_bytes, reply_schema;
    /* Of the request that was sent last. */
    unsigned long long sequence;
} ClientFastPath;

/* The names of attributes of SlotMemory (codec.py) and Pending (pending.py). */
static PyObject *payload_name, *wake_name, *written_name, *sequence_name;

int client_path_names(void)
{
    return (payload_name = PyUnicode_InternFromString("payload")) == NULL ||
                   (wake_name = PyUnicode_InternFromString("wake")) == NULL ||
                   (written_name = PyUnicode_InternFromString("written_schema")) == NULL ||
                   (sequence_name = PyUnicode_InternFromString("sequence")) == NULL
               ? -1
               : 0;
}

/* ClientFastPath(requests, request_memories, rotating_slots, replies, reply_memories, poller) */
static PyObject *client_path_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *requests, *replies, *request_memories, *reply_memories, *poller;
    Py_ssize_t rotating_slots;
    ClientFastPath *self = new_instance(type, keywords);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "OO!nOO!O", &requests, &PyList_Type, &request_memories, &rotating_slots, &replies,
                          &PyList_Type, &reply_memories, &poller))
        goto failed;
    if (!is_slots(requests) || !is_slots(replies) || !is_poller(poller)) {
        PyErr_SetString(PyExc_TypeError, "slots of both directions, and the poller of the replies");
        goto failed;
    }
    if (rotating_slots < 1) {
        PyErr_SetString(PyExc_ValueError, "expected at least one rotating slot");
        goto failed;
    }
    self->requests = (Slots *)Py_NewRef(requests);
    self->replies = (Slots *)Py_NewRef(replies);
    self->poller = Py_NewRef(poller);
    self->request_memories = Py_NewRef(request_memories);
    self->reply_memories = Py_NewRef(reply_memories);
    self->rotating_slots = rotating_slots;
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static void client_path_dealloc(PyObject *object)
{
    ClientFastPath *self = (ClientFastPath *)object;
    Py_XDECREF(self->requests);
    Py_XDECREF(self->replies);
    Py_XDECREF(self->poller);
    Py_XDECREF(self->request_memories);
    Py_XDECREF(self->reply_memories);
    Py_XDECREF(self->encoder);
    Py_XDECREF(self->decoder);
    free_instance(object);
}

/* specialize(encoder, schema, metadata_bytes, decoder, reply_schema): requests and results of these structures take the
 * fast path */
static PyObject *client_path_specialize(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    ClientFastPath *self = (ClientFastPath *)object;
    uint64_t schema, metadata, reply_schema;
    if (count != 5 || !is_encoder(args[0]) || !is_decoder(args[3])) {
        PyErr_SetString(PyExc_TypeError, "specialize(encoder, schema, metadata_bytes, decoder, reply_schema)");
        return NULL;
    }
    if (to_word(args[1], &schema) < 0 || to_word(args[2], &metadata) < 0 || to_word(args[4], &reply_schema) < 0)
        return NULL;
    Py_XSETREF(self->encoder, Py_NewRef(args[0]));
    Py_XSETREF(self->decoder, Py_NewRef(args[3]));
    self->schema = schema;
    self->metadata_bytes = metadata;
    self->reply_schema = reply_schema;
    Py_RETURN_NONE;
}

/* The memory of a slot, a new reference; NULL with an exception if there is none. */
static PyObject *memory_of(PyObject *memories, uint64_t slot)
{
    if (slot >= (uint64_t)PyList_GET_SIZE(memories)) {
        PyErr_SetString(PyExc_ValueError, "this segment was closed");
        return NULL;
    }
    return Py_NewRef(PyList_GET_ITEM(memories, slot));
}

/* Whether this slot holds the metadata of the specialized structure; -1 with an exception. */
static int is_described(const ClientFastPath *self, PyObject *memory)
{
    PyObject *written = PyObject_GetAttr(memory, written_name);
    int same = written == NULL ? -1 : 0;
    if (written != NULL && PyLong_CheckExact(written)) {
        uint64_t schema;
        same = to_word(written, &schema) < 0 ? -1 : schema == self->schema;
    }
    Py_XDECREF(written);
    return same;
}

/* As encoder_put, into this slot. */
static int put(ClientFastPath *self, PyObject *tree, PyObject *memory, uint64_t slot, uint64_t *write_id)
{
    int found = -1;
    /* Code that runs for the tree may specialize anew. */
    PyObject *encoder = Py_NewRef(self->encoder), *payload = PyObject_GetAttr(memory, payload_name);
    PyObject *wake = payload == NULL ? NULL : PyObject_GetAttr(memory, wake_name);
    if (wake != NULL)
        found = encoder_put(encoder, tree, payload, (PyObject *)self->requests, slot, wake, write_id);
    Py_XDECREF(wake);
    Py_XDECREF(payload);
    Py_DECREF(encoder);
    return found;
}

/* The sequence of the next request; 0 with an exception if its channel was closed. */
static uint64_t next_sequence(const ClientFastPath *self)
{
    if (writable_slots((PyObject *)self->requests) == NULL)
        return 0;
    if (self->replies->words == NULL) {
        PyErr_SetString(PyExc_ValueError, "this segment was closed");
        return 0;
    }
    uint64_t number = number_of(load(self->requests->counter)) + 1;
    return sequence_of(number, number % (uint64_t)self->rotating_slots);
}

/* try_send(tree, deadline_ns, in_flight, pending): write the tree and publish it as the next request for the model,
 * which `pending` waits for among those `in_flight`; False if it is not eligible, and nothing was published */
static PyObject *client_path_try_send(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    ClientFastPath *self = (ClientFastPath *)object;
    uint64_t deadline_ns, write_id, metadata = self->metadata_bytes, schema = self->schema;
    if (count != 4 || !PyDict_CheckExact(args[2])) {
        PyErr_SetString(PyExc_TypeError, "try_send(tree, deadline_ns, in_flight, pending)");
        return NULL;
    }
    if (to_word(args[1], &deadline_ns) < 0)
        return NULL;
    if (self->encoder == NULL || PyDict_GET_SIZE(args[2]))
        Py_RETURN_FALSE;
    uint64_t sequence = next_sequence(self), slot = slot_of(sequence), bytes = encoder_bytes(self->encoder);
    PyObject *memory = sequence ? memory_of(self->request_memories, slot) : NULL;
    int found = memory == NULL ? -1 : is_described(self, memory);
    if (found == 1)
        found = put(self, args[0], memory, slot, &write_id);
    Py_XDECREF(memory);
    if (found < 0)
        return NULL;
    if (found != WRITTEN)
        Py_RETURN_FALSE;
    /* Code that ran for the tree, or another thread, may have closed the channel or published a request. */
    uint64_t next = next_sequence(self), *head = next ? head_of(self->requests, sequence) : NULL;
    if (head == NULL)
        return NULL;
    if (next != sequence || PyDict_GET_SIZE(args[2]))
        Py_RETURN_FALSE;
    PyObject *key = PyLong_FromUnsignedLongLong(sequence);
    /* Before publication: a thread that sees the reply must find its pending request. */
    if (key == NULL || PyObject_SetAttr(args[3], sequence_name, key) < 0 || PyDict_SetItem(args[2], key, args[3]) < 0) {
        Py_XDECREF(key);
        return NULL;
    }
    Py_DECREF(key);
    self->sequence = sequence;
    /* No other request is in flight, so the next change of this count belongs to this request. */
    poller_note(self->poller, load(self->replies->counter));
    uint64_t words[REQUEST_WORDS] = {sequence,       KIND_INFER, 0,        deadline_ns, 0, 0,
                                     monotonic_ns(), schema,     metadata, bytes,       0, write_id};
    publish_request(self->requests, head, words);
    Py_RETURN_TRUE;
}

/* try_receive(type): (the tree of the reply to what was sent last, its head as this type, the time), or None while
 * there is none, or if it is not a result of the specialized structure */
static PyObject *client_path_try_receive(PyObject *object, PyObject *type)
{
    ClientFastPath *self = (ClientFastPath *)object;
    uint64_t words[REPLY_WORDS], slot = slot_of(self->sequence), *head;
    if (self->decoder == NULL || !self->sequence)
        Py_RETURN_NONE;
    if ((head = head_of(self->replies, self->sequence)) == NULL)
        return NULL;
    if (!copy_reply(head, self->sequence, words) || words[REPLY_STATUS] != STATUS_OK ||
        (words[REPLY_FLAGS] & FLAG_PICKLED) || words[REPLY_SCHEMA] != self->reply_schema ||
        words[REPLY_PAYLOAD_BYTES] != decoder_bytes(self->decoder))
        Py_RETURN_NONE;
    PyObject *decoder = Py_NewRef(self->decoder), *memory = memory_of(self->reply_memories, slot);
    PyObject *payload = memory == NULL ? NULL : PyObject_GetAttr(memory, payload_name);
    PyObject *tree = payload == NULL ? NULL : decoder_decode(decoder, payload);
    PyObject *reply = tree == NULL ? NULL : named(type, words, REPLY_WORDS);
    PyObject *now_ns = reply == NULL ? NULL : PyLong_FromUnsignedLongLong(monotonic_ns());
    PyObject *result = now_ns == NULL ? NULL : PyTuple_Pack(3, tree, reply, now_ns);
    Py_XDECREF(now_ns);
    Py_XDECREF(reply);
    Py_XDECREF(tree);
    Py_XDECREF(payload);
    Py_XDECREF(memory);
    Py_DECREF(decoder);
    return result;
}

static PyMethodDef client_path_methods[] = {
    {"specialize", (PyCFunction)(void (*)(void))client_path_specialize, METH_FASTCALL,
     "Take requests of the one structure and results of the other."},
    {"try_send", (PyCFunction)(void (*)(void))client_path_try_send, METH_FASTCALL,
     "Write a tree and publish it, if it is eligible."},
    {"try_receive", client_path_try_receive, METH_O, "The result of the last request sent, its head and the time."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef client_path_members[] = {
    {"sequence", T_ULONGLONG, offsetof(ClientFastPath, sequence), READONLY, "The last request sent; 0: none."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot client_path_slots[] = {
    {Py_tp_doc, "Client half of the fast path."}, {Py_tp_new, client_path_new},
    {Py_tp_dealloc, client_path_dealloc},         {Py_tp_methods, client_path_methods},
    {Py_tp_members, client_path_members},         {0, NULL},
};

PyType_Spec client_path_spec = {"shmserve._core.ClientFastPath", sizeof(ClientFastPath), 0, TYPE_FLAGS,
                                client_path_slots};
