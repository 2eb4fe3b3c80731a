/* Engine half of the fast path: try_take turns a published request into its observation, reply publishes a result.
 *
 * A request is eligible if it is the next one of its channel, was not begun before, has a structure that was read before,
 * and may run now. try_take leaves any other request untouched for the slow path (channel_state.py, serving.py and
 * staging.py). A request that its client withdraws in the moment in which it is taken has the kind WITHDRAWN. A result is published here if the encoder remembers its structure and its slot is large enough.
 */

#include "cut_through.h"
#include "slots.h"
#include "state.h"
#include "tree_decoder.h"
#include "tree_encoder.h"

#include "core/schema.h"

#include <structmember.h>

/* No kind on the wire: of a request that was taken and must not run. */
#define WITHDRAWN 0

/* Views of one memory, for the next payload of the same structure and sizes. */
typedef struct {
    PyObject *decoder, *views;
    char *sizes;
    Py_ssize_t sizes_bytes;
} CachedViews;

typedef struct {
    PyObject_HEAD
    Slots *requests, *replies;
    PyObject *copier, *wrap; /* or None */
    PyObject *request_memories, *reply_memories;
    PyObject *decoders; /* of the structures of requests, by their number */
    PyObject *encoder;
    PyObject *arena; /* payloads are copied there; NULL: the model reads the slots */
    CachedViews cached[MAX_SLOTS]; /* of the arena the first alone */
    char reads_in_place;
    /* Of the request that was taken last. */
    uint64_t words[REQUEST_WORDS];
    PyObject *views;
    unsigned long long sequence, kind, queued_ns, staged_ns;
    unsigned long long unknown_schema; /* of a request that is not eligible for this reason alone */
    Py_ssize_t cut_through_bytes;
} ServerFastPath;

/* ServerFastPath(requests, request_memories, replies, reply_memories, copier, wrap, decoders, encoder, reads_in_place) */
static PyObject *server_path_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *requests, *request_memories, *replies, *reply_memories, *copier, *wrap, *decoders, *encoder;
    int reads_in_place;
    ServerFastPath *self = new_instance(type, keywords);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "OO!OO!OOO!Op", &requests, &PyList_Type, &request_memories, &replies, &PyList_Type,
                          &reply_memories, &copier, &wrap, &PyDict_Type, &decoders, &encoder, &reads_in_place))
        goto failed;
    if (!is_slots(requests) || !is_slots(replies) || (copier != Py_None && !is_copier(copier)) || !is_encoder(encoder)) {
        PyErr_SetString(PyExc_TypeError, "slots of both directions, a copier or None, and an encoder");
        goto failed;
    }
    self->requests = (Slots *)Py_NewRef(requests);
    self->replies = (Slots *)Py_NewRef(replies);
    self->copier = Py_NewRef(copier);
    self->wrap = Py_NewRef(wrap);
    self->request_memories = Py_NewRef(request_memories);
    self->reply_memories = Py_NewRef(reply_memories);
    self->decoders = Py_NewRef(decoders);
    self->encoder = Py_NewRef(encoder);
    self->reads_in_place = (char)reads_in_place;
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

/* Put these views, whose references it takes over, in the place of others: the end of an array may run code. */
static void replace_views(CachedViews *cached, CachedViews views)
{
    CachedViews before = *cached;
    *cached = views;
    Py_XDECREF(before.decoder);
    Py_XDECREF(before.views);
    PyMem_Free(before.sizes);
}

static PyObject *server_path_reset(PyObject *object, PyObject *unused)
{
    (void)unused;
    ServerFastPath *self = (ServerFastPath *)object;
    for (int slot = 0; slot < MAX_SLOTS; slot++)
        replace_views(&self->cached[slot], (CachedViews){0});
    Py_CLEAR(self->views);
    Py_CLEAR(self->arena);
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
    Py_XDECREF(self->request_memories);
    Py_XDECREF(self->reply_memories);
    Py_XDECREF(self->decoders);
    Py_XDECREF(self->encoder);
    free_instance(object);
}

/* use_arena(arena): copy payloads into this memory from now on */
static PyObject *server_path_use_arena(PyObject *object, PyObject *arena)
{
    ServerFastPath *self = (ServerFastPath *)object;
    if (payload_bytes_of(arena, 0) == NULL)
        return NULL;
    Py_XDECREF(server_path_reset(object, NULL));
    self->arena = Py_NewRef(arena);
    Py_RETURN_NONE;
}

/* The decoder of the request in `words`, borrowed; NULL without an exception if its structure was not read before, or if it
 * is not decoded here. */
static PyObject *decoder_of(ServerFastPath *self)
{
    PyObject *schema = PyLong_FromUnsignedLongLong(self->words[REQUEST_SCHEMA]);
    PyObject *decoder = schema == NULL ? NULL : PyDict_GetItemWithError(self->decoders, schema);
    Py_XDECREF(schema);
    return decoder != NULL && is_decoder(decoder) && decoder_is_complete(decoder) ? decoder : NULL;
}

/* Whether a request of this kind and these options may run now. */
static int may_run(const uint64_t *words, uint64_t now_ns)
{
    /* Nothing of the client waits, so there is nothing that a request could supersede. The caller heeds the last. */
    const uint64_t ignored = FLAG_SUPERSEDE | FLAG_REPEATABLE | FLAG_REAL_TIME_CHUNKING;
    if ((words[REQUEST_KIND] != KIND_INFER && words[REQUEST_KIND] != KIND_RESET) || (words[REQUEST_FLAGS] & ~ignored) ||
        words[REQUEST_CANCELLED] == words[REQUEST_SEQUENCE] || (words[REQUEST_DEADLINE_NS] && words[REQUEST_DEADLINE_NS] < now_ns))
        return 0;
    return !words[REQUEST_MAX_AGE_NS] || !words[REQUEST_CAPTURE_NS] || now_ns <= words[REQUEST_CAPTURE_NS] ||
           now_ns - words[REQUEST_CAPTURE_NS] <= words[REQUEST_MAX_AGE_NS];
}

/* Whether the next request was published and is eligible; -1 with an exception. Writes no shared word. */
static int is_eligible(ServerFastPath *self, uint64_t seen, uint64_t now_ns)
{
    if (self->requests->ring.line == NULL || self->replies->ring.line == NULL) {
        PyErr_SetString(PyExc_ValueError, "this segment was closed");
        return -1;
    }
    uint64_t sequence = load_relaxed(&self->requests->ring.line->counter), slot = slot_of(sequence), *words = self->words;
    if (number_of(sequence) != number_of(seen) + 1 || slot >= self->requests->ring.slots ||
        slot >= self->replies->ring.slots || slot >= (uint64_t)PyList_GET_SIZE(self->request_memories))
        return 0;
    ring_copy_request(head_of(self->requests, sequence), words);
    if (words[REQUEST_SEQUENCE] != sequence || !may_run(words, now_ns))
        return 0;
    const ReplyHead *reply = head_of(self->replies, sequence);
    if (ring_is_taken(reply, sequence) || load_relaxed(&reply->sequence) >= sequence)
        return 0;
    if (words[REQUEST_KIND] == KIND_RESET)
        return 1;
    PyObject *decoder = decoder_of(self);
    if (decoder == NULL) {
        if (PyErr_Occurred())
            return -1;
        self->unknown_schema = words[REQUEST_SCHEMA];
        return 0;
    }
    if (self->reads_in_place)
        return 1;
    return self->arena != NULL && words[REQUEST_PAYLOAD_BYTES] <= (uint64_t)PyArray_DIM((PyArrayObject *)self->arena, 0);
}

/* Views of this payload: those of the last one of the same structure and sizes, or new ones. A new reference. */
static PyObject *views_of(CachedViews *cached, PyObject *decoder, PyObject *payload, uint64_t payload_bytes)
{
    Py_ssize_t sizes_bytes = decoder_sizes_bytes(decoder);
    if (payload_bytes > PAYLOAD_LIMIT) {
        PyErr_SetString(PyExc_ValueError, "a payload of more bytes than a slot can have");
        return NULL;
    }
    const char *bytes = payload_bytes_of(payload, (Py_ssize_t)payload_bytes);
    if (bytes == NULL)
        return NULL;
    if (cached->decoder == decoder && cached->sizes_bytes == sizes_bytes && (uint64_t)sizes_bytes <= payload_bytes &&
        memcmp(cached->sizes, bytes, (size_t)sizes_bytes) == 0)
        return Py_NewRef(cached->views);
    char *sizes = PyMem_Malloc((size_t)sizes_bytes + 1);
    if (sizes == NULL)
        return PyErr_NoMemory();
    /* The slot's sizes may change meanwhile: then these views are found again only for the sizes that were copied here, and
     * decoder_views checks what it copies itself. */
    memcpy(sizes, bytes, (uint64_t)sizes_bytes <= payload_bytes ? (size_t)sizes_bytes : 0);
    PyObject *views = decoder_views(decoder, payload, payload_bytes);
    if (views == NULL) {
        PyMem_Free(sizes);
        return NULL;
    }
    replace_views(cached, (CachedViews){Py_NewRef(decoder), Py_NewRef(views), sizes, sizes_bytes});
    return views;
}

/* The observation of the request that `is_eligible` has accepted. */
static PyObject *observation_of(ServerFastPath *self)
{
    uint64_t slot = slot_of(self->words[REQUEST_SEQUENCE]), bytes = self->words[REQUEST_PAYLOAD_BYTES];
    PyObject *memory = Py_NewRef(PyList_GET_ITEM(self->request_memories, slot)), *tree = NULL, *views = NULL;
    PyObject *payload = PyObject_GetAttr(memory, name_for((PyObject *)self, PAYLOAD_NAME)), *decoder = decoder_of(self);
    /* Held: code that runs for the memory or a wrapper, or another thread during a copy, may call reset. */
    PyObject *source = Py_XNewRef(self->reads_in_place ? payload : self->arena);
    CachedViews *cached = &self->cached[self->reads_in_place ? slot : 0];
    Py_XINCREF(decoder);
    Py_DECREF(memory);
    if (payload != NULL && decoder != NULL && source != NULL && !self->reads_in_place) {
        self->cut_through_bytes = stage_payload(payload, bytes, source, self->copier, self->words[REQUEST_WRITE_ID]);
        if (self->cut_through_bytes < 0) {
            self->cut_through_bytes = 0;
            Py_CLEAR(source);
        }
    }
    if (payload != NULL && source != NULL && decoder != NULL && (views = views_of(cached, decoder, source, bytes)) != NULL) {
        Py_XSETREF(self->views, Py_NewRef(views));
        tree = decoder_over(decoder, source, bytes, views, self->wrap);
    }
    else if (!PyErr_Occurred())
        PyErr_SetString(PyExc_RuntimeError, "a structure or the arena was forgotten while its request was read");
    Py_XDECREF(views);
    Py_XDECREF(source);
    Py_XDECREF(decoder);
    Py_XDECREF(payload);
    return tree;
}

/* try_take(seen): the observation of the request after `seen`, which is about to run, or None for one of another kind;
 * `sequence` is 0 if it is not eligible */
static PyObject *server_path_try_take(PyObject *object, PyObject *given)
{
    ServerFastPath *self = (ServerFastPath *)object;
    uint64_t seen, taken_ns = monotonic_ns();
    self->sequence = 0;
    self->unknown_schema = 0;
    self->cut_through_bytes = 0;
    int eligible = to_word(given, &seen) < 0 ? -1 : is_eligible(self, seen, taken_ns);
    if (eligible < 0)
        return NULL;
    uint64_t *words = self->words, sequence = words[REQUEST_SEQUENCE];
    if (!eligible)
        Py_RETURN_NONE;
    if (self->replies->view.readonly) {
        PyErr_SetString(PyExc_TypeError, "this segment is mapped for reading");
        return NULL;
    }
    const RequestHead *request = head_of(self->requests, sequence);
    ReplyHead *head = request == NULL ? NULL : head_of(self->replies, sequence);
    if (head == NULL)
        return NULL;
    if (words[REQUEST_WRITE_ID] && self->copier != Py_None)
        copier_commit((CutThroughCopier *)self->copier, words[REQUEST_WRITE_ID]);
    ring_take(head, sequence);
    self->sequence = sequence;
    self->kind = ring_is_cancelled(request, sequence) ? WITHDRAWN : words[REQUEST_KIND];
    self->queued_ns = taken_ns > words[REQUEST_SUBMITTED_NS] ? taken_ns - words[REQUEST_SUBMITTED_NS] : 0;
    PyObject *observation = self->kind == KIND_INFER ? observation_of(self) : Py_NewRef(Py_None);
    self->staged_ns = monotonic_ns() - taken_ns;
    return observation;
}

/* reply(tree, flags, version, infer_ns): reply to the request that was taken last with this tree: how long that took (ns),
 * or -1 if its structure is new or it needs more room, and nothing was replied */
static PyObject *server_path_reply(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    ServerFastPath *self = (ServerFastPath *)object;
    uint64_t began_ns = monotonic_ns(), sequence = self->sequence, slot = slot_of(sequence), infer_ns, version, flags;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "reply(tree, flags, version, infer_ns)");
        return NULL;
    }
    if (to_word(args[1], &flags) < 0 || to_word(args[2], &version) < 0 || to_word(args[3], &infer_ns) < 0)
        return NULL;
    if (!sequence || slot >= (uint64_t)PyList_GET_SIZE(self->reply_memories)) {
        PyErr_SetString(PyExc_ValueError, "no request was taken, or this segment was closed");
        return NULL;
    }
    Encoded encoded;
    PyObject *memory = Py_NewRef(PyList_GET_ITEM(self->reply_memories, slot));
    int found = encoder_put(self->encoder, args[0], memory, Py_None, 0, 0, &encoded, NULL);
    Py_DECREF(memory);
    if (found < 0)
        return NULL;
    if (found != WRITTEN)
        return PyLong_FromLong(-1);
    /* Checked only here: code that ran for the tree may have closed the segment. */
    if (writable_slots((PyObject *)self->replies) == NULL)
        return NULL;
    ReplyHead *head = head_of(self->replies, sequence);
    if (head == NULL)
        return NULL;
    uint64_t copied_ns = monotonic_ns() - began_ns;
    uint64_t words[REPLY_PUBLISHED + 1] = {sequence,
                                           STATUS_OK,
                                           flags,
                                           encoded.schema,
                                           encoded.metadata_bytes,
                                           encoded.payload_bytes,
                                           version,
                                           self->queued_ns,
                                           self->staged_ns,
                                           infer_ns,
                                           copied_ns};
    ring_complete(self->replies->ring.line, head, words);
    return PyLong_FromUnsignedLongLong(copied_ns);
}

/* head(type): the head of the request that was taken last, as RequestReader.head gives it */
static PyObject *server_path_head(PyObject *object, PyObject *type)
{
    return named(type, ((ServerFastPath *)object)->words, REQUEST_WORDS);
}

static PyMethodDef server_path_methods[] = {
    {"use_arena", server_path_use_arena, METH_O, "Copy payloads into this memory from now on."},
    {"reset", server_path_reset, METH_NOARGS, "Release the arena and every view; may be called twice."},
    {"try_take", server_path_try_take, METH_O,
     "The observation of the next request, if it is eligible; else `sequence` is 0."},
    {"head", server_path_head, METH_O, "The head of the request that was taken last, as this type."},
    {"reply", (PyCFunction)(void (*)(void))server_path_reply, METH_FASTCALL, "Reply to it; -1: not replied."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef server_path_members[] = {
    {"sequence", T_ULONGLONG, offsetof(ServerFastPath, sequence), READONLY, "The last request taken; 0: none."},
    {"kind", T_ULONGLONG, offsetof(ServerFastPath, kind), READONLY,
     "Its kind: inference or reset; 0: its client has withdrawn it, and it must not run."},
    {"views", T_OBJECT, offsetof(ServerFastPath, views), READONLY, "The arrays that its observation was made from."},
    {"unknown_schema", T_ULONGLONG, offsetof(ServerFastPath, unknown_schema), READONLY,
     "The structure of a request that was not taken because it is not known; 0: none."},
    {"queued_ns", T_ULONGLONG, offsetof(ServerFastPath, queued_ns), READONLY,
     "From its publication until it was taken."},
    {"staged_ns", T_ULONGLONG, offsetof(ServerFastPath, staged_ns), READONLY,
     "From then until the observation was ready."},
    {"submitted_ns", T_ULONGLONG, offsetof(ServerFastPath, words) + REQUEST_SUBMITTED_NS * sizeof(uint64_t), READONLY,
     "When the request was published that try_take has looked at last."},
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
