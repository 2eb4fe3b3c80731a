/* Engine half of the fast path: try_take turns a published request into its observation, reply publishes a result.
 *
 * It is specialized for one structure. A request is eligible if it is the next one of its channel, is an inference
 * without special options, was not begun before and has the specialized structure. try_take leaves any other request
 * untouched for the slow path (tenancy.py, serving.py and staging.py).
 */

#include "cut_through.h"
#include "slots.h"
#include "tree_decoder.h"
#include "tree_encoder.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    Slots *requests, *replies;
    PyObject *copier, *wrap; /* or None */
    /* Of the last specialize; NULL before. */
    PyObject *decoder, *payloads, *arena, *views;
    unsigned long long schema;
    /* Of the request that was taken last. */
    uint64_t words[REQUEST_WORDS];
    unsigned long long sequence, queued_ns, staged_ns;
    Py_ssize_t cut_through_bytes;
} ServerFastPath;

/* ServerFastPath(requests, replies, copier, wrap) */
static PyObject *server_path_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *requests, *replies, *copier, *wrap;
    ServerFastPath *self = new_instance(type, keywords);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "OOOO", &requests, &replies, &copier, &wrap))
        goto failed;
    if (!is_slots(requests) || !is_slots(replies) || (copier != Py_None && !is_copier(copier))) {
        PyErr_SetString(PyExc_TypeError, "slots of both directions, and a copier or None");
        goto failed;
    }
    self->requests = (Slots *)Py_NewRef(requests);
    self->replies = (Slots *)Py_NewRef(replies);
    self->copier = Py_NewRef(copier);
    self->wrap = Py_NewRef(wrap);
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static PyObject *server_path_reset(PyObject *object, PyObject *unused)
{
    (void)unused;
    ServerFastPath *self = (ServerFastPath *)object;
    self->schema = 0;
    Py_CLEAR(self->decoder);
    Py_CLEAR(self->payloads);
    Py_CLEAR(self->arena);
    Py_CLEAR(self->views);
    Py_RETURN_NONE;
}

static void server_path_dealloc(PyObject *object)
{
    ServerFastPath *self = (ServerFastPath *)object;
    Py_XDECREF(server_path_reset(object, NULL));
    Py_XDECREF(self->requests);
    Py_XDECREF(self->replies);
    Py_XDECREF(self->copier);
    Py_XDECREF(self->wrap);
    free_instance(object);
}

/* specialize(schema, decoder, payloads, arena, views): requests of this structure take the fast path. `payloads` are
 * those of the slots; with an arena they are copied there and `views` are its arrays, without one there is a list of
 * views for each slot. */
static PyObject *server_path_specialize(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    ServerFastPath *self = (ServerFastPath *)object;
    uint64_t schema;
    if (count != 5 || !is_decoder(args[1]) || !PyList_CheckExact(args[2]) || !PyList_CheckExact(args[4])) {
        PyErr_SetString(PyExc_TypeError, "specialize(schema, decoder, payloads, arena, views)");
        return NULL;
    }
    if (to_word(args[0], &schema) < 0)
        return NULL;
    Py_XDECREF(server_path_reset(object, NULL));
    self->decoder = Py_NewRef(args[1]);
    self->payloads = Py_NewRef(args[2]);
    self->arena = Py_NewRef(args[3]);
    self->views = Py_NewRef(args[4]);
    self->schema = schema;
    Py_RETURN_NONE;
}

/* Whether the next request was published and is eligible; -1 with an exception. Writes no shared word. */
static int is_eligible(ServerFastPath *self, uint64_t seen, uint64_t now_ns)
{
    if (self->decoder == NULL)
        return 0;
    if (self->requests->words == NULL || self->replies->words == NULL) {
        PyErr_SetString(PyExc_ValueError, "this segment was closed");
        return -1;
    }
    uint64_t sequence = load(self->requests->counter), slot = slot_of(sequence), *words = self->words;
    if (number_of(sequence) != number_of(seen) + 1 || slot >= (uint64_t)self->requests->slots ||
        slot >= (uint64_t)self->replies->slots || slot >= (uint64_t)PyList_GET_SIZE(self->payloads))
        return 0;
    copy_request(head_of(self->requests, sequence), words);
    if (words[SEQUENCE] != sequence || words[KIND] != KIND_INFER || (words[FLAGS] & ~(uint64_t)FLAG_REPEATABLE) ||
        words[MAX_AGE_NS] || words[CANCELLED] == sequence || (words[DEADLINE_NS] && words[DEADLINE_NS] < now_ns))
        return 0;
    if (words[SCHEMA] != self->schema || words[PAYLOAD_BYTES] != decoder_bytes(self->decoder))
        return 0;
    const uint64_t *reply = head_of(self->replies, sequence);
    return load(&reply[TAKEN]) != sequence && load(&reply[SEQUENCE]) < sequence;
}

/* The observation of the request that `is_eligible` has accepted. */
static PyObject *observation_of(ServerFastPath *self)
{
    Py_ssize_t slot = (Py_ssize_t)slot_of(self->words[SEQUENCE]);
    /* Code that a wrapper runs may call reset. */
    PyObject *decoder = Py_NewRef(self->decoder), *arena = Py_NewRef(self->arena), *tree = NULL;
    PyObject *payload = Py_NewRef(PyList_GET_ITEM(self->payloads, slot)), *views = Py_NewRef(self->views);
    if (arena != Py_None) {
        self->cut_through_bytes = decoder_copy(decoder, payload, arena, self->copier, self->words[REQUEST_WRITE_ID]);
        if (self->cut_through_bytes >= 0)
            tree = decoder_over(decoder, arena, views, self->wrap);
    }
    else if (slot < PyList_GET_SIZE(views)) {
        PyObject *own = Py_NewRef(PyList_GET_ITEM(views, slot));
        tree = decoder_over(decoder, payload, own, self->wrap);
        Py_DECREF(own);
    }
    else
        PyErr_SetString(PyExc_ValueError, "specialize() got no views of this slot");
    Py_DECREF(views);
    Py_DECREF(payload);
    Py_DECREF(arena);
    Py_DECREF(decoder);
    return tree;
}

/* try_take(seen): the observation of the request after `seen`, which is about to run; `sequence` is 0 if it is not
 * eligible */
static PyObject *server_path_try_take(PyObject *object, PyObject *given)
{
    ServerFastPath *self = (ServerFastPath *)object;
    uint64_t seen, taken_ns = monotonic_ns();
    self->sequence = 0;
    self->cut_through_bytes = 0;
    int eligible = to_word(given, &seen) < 0 ? -1 : is_eligible(self, seen, taken_ns);
    if (eligible < 0)
        return NULL;
    uint64_t *words = self->words, sequence = words[SEQUENCE];
    if (!eligible)
        Py_RETURN_NONE;
    if (self->replies->view.readonly) {
        PyErr_SetString(PyExc_TypeError, "this segment is mapped for reading");
        return NULL;
    }
    if (words[REQUEST_WRITE_ID] && self->copier != Py_None)
        ((CutThroughCopier *)self->copier)->committed = words[REQUEST_WRITE_ID];
    take_request(head_of(self->replies, sequence), sequence);
    self->sequence = sequence;
    self->queued_ns = taken_ns > words[SUBMITTED_NS] ? taken_ns - words[SUBMITTED_NS] : 0;
    PyObject *observation = observation_of(self);
    self->staged_ns = monotonic_ns() - taken_ns;
    return observation;
}

/* reply(encoder, tree, payload, schema, metadata_bytes, flags, version, infer_ns): reply to the request that was taken
 * last with this tree: how long that took (ns), or -1 if it is of another structure or needs more room, and nothing was
 * replied */
static PyObject *server_path_reply(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    ServerFastPath *self = (ServerFastPath *)object;
    uint64_t began_ns = monotonic_ns(), sequence = self->sequence, infer_ns, write_id, metadata, version, schema, flags;
    if (count != 8 || !is_encoder(args[0])) {
        PyErr_SetString(PyExc_TypeError,
                        "reply(encoder, tree, payload, schema, metadata_bytes, flags, version, infer_ns)");
        return NULL;
    }
    if (to_word(args[3], &schema) < 0 || to_word(args[4], &metadata) < 0 || to_word(args[5], &flags) < 0 ||
        to_word(args[6], &version) < 0 || to_word(args[7], &infer_ns) < 0)
        return NULL;
    int found = encoder_put(args[0], args[1], args[2], Py_None, 0, Py_None, &write_id);
    if (found < 0)
        return NULL;
    if (found != WRITTEN)
        return PyLong_FromLong(-1);
    /* Checked only here: code that ran for the tree may have closed the segment. */
    if (writable_slots((PyObject *)self->replies) == NULL)
        return NULL;
    uint64_t *head = head_of(self->replies, sequence);
    if (head == NULL)
        return NULL;
    uint64_t copied_ns = monotonic_ns() - began_ns;
    uint64_t words[REPLY_PUBLISHED + 1] = {
        sequence, STATUS_OK,       flags,           schema,   metadata, encoder_bytes(args[0]),
        version,  self->queued_ns, self->staged_ns, infer_ns, copied_ns};
    complete_reply(self->replies, head, words);
    return PyLong_FromUnsignedLongLong(copied_ns);
}

/* head(type): the head of the request that was taken last, as RequestReader.head gives it */
static PyObject *server_path_head(PyObject *object, PyObject *type)
{
    return named(type, ((ServerFastPath *)object)->words, REQUEST_WORDS);
}

static PyMethodDef server_path_methods[] = {
    {"specialize", (PyCFunction)(void (*)(void))server_path_specialize, METH_FASTCALL,
     "Take requests of this structure."},
    {"reset", server_path_reset, METH_NOARGS, "Undo specialize and release the memory; may be called twice."},
    {"try_take", server_path_try_take, METH_O,
     "The observation of the next request, if it is eligible; else `sequence` is 0."},
    {"head", server_path_head, METH_O, "The head of the request that was taken last, as this type."},
    {"reply", (PyCFunction)(void (*)(void))server_path_reply, METH_FASTCALL, "Reply to it; -1: not replied."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef server_path_members[] = {
    {"schema", T_ULONGLONG, offsetof(ServerFastPath, schema), READONLY, "The specialized structure; 0: none."},
    {"sequence", T_ULONGLONG, offsetof(ServerFastPath, sequence), READONLY, "The last request taken; 0: none."},
    {"queued_ns", T_ULONGLONG, offsetof(ServerFastPath, queued_ns), READONLY,
     "From its publication until it was taken."},
    {"staged_ns", T_ULONGLONG, offsetof(ServerFastPath, staged_ns), READONLY,
     "From then until the observation was ready."},
    {"cut_through_bytes", T_PYSSIZET, offsetof(ServerFastPath, cut_through_bytes), READONLY,
     "Bytes of its payload that were copied before its publication."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot server_path_slots[] = {
    {Py_tp_doc, "Engine half of the fast path."}, {Py_tp_new, server_path_new},
    {Py_tp_dealloc, server_path_dealloc},         {Py_tp_methods, server_path_methods},
    {Py_tp_members, server_path_members},         {0, NULL},
};

PyType_Spec server_path_spec = {"shmserve._core.ServerFastPath", sizeof(ServerFastPath), 0, TYPE_FLAGS,
                                server_path_slots};
