/* Client half of the fast path: try_send takes a tree to the published counter and rings, wait takes the time until the reply
 * and then the reply to its tree.
 *
 * A request is eligible if its structure is one that the encoder remembers, its sizes are those that a contract declares,
 * and a slot is free and large enough. try_send publishes no other request: the slow path (codec.py and the client's
 * request pipeline) takes it. A reply is received here if its structure was read before.
 */

#include "core/doorbell.h"
#include "core/waiting.h"
#include "counter_poller.h"
#include "cut_through.h"
#include "semaphore.h"
#include "slots.h"
#include "state.h"
#include "tree_decoder.h"
#include "tree_encoder.h"

#include <structmember.h>

/* Of a slot that will be written; the writing itself brings in the rest, which is contiguous. */
#define TOUCHED_BYTES 16384

typedef struct {
    PyObject_HEAD
    Slots *requests, *replies;
    PyObject *poller;       /* of the replies */
    PyObject *pollers;      /* in a list */
    PyObject *request_bell; /* a Semaphore, which try_send rings; or None, and the caller rings */
    PyObject *reply_bell;   /* a Semaphore, or an object with the methods of one */
    int is_reply_semaphore;
    PyObject *request_memories, *reply_memories;
    PyObject *encoder;
    PyObject *decoders; /* of the structures of replies, by their number */
    Py_ssize_t rotating_slots;
    unsigned long long sequence; /* of the request that was sent last */
    long long waited_ns, polled_ns; /* how the last wait ended */
} ClientFastPath;

/* ClientFastPath(requests, request_memories, rotating_slots, replies, reply_memories, poller, encoder, decoders, request_bell,
 * reply_bell) */
static PyObject *client_path_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *requests, *replies, *request_memories, *reply_memories, *poller, *encoder, *decoders, *request_bell,
        *reply_bell;
    Py_ssize_t rotating_slots;
    ClientFastPath *self = new_instance(type, keywords);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "OO!nOO!OOO!OO", &requests, &PyList_Type, &request_memories, &rotating_slots, &replies,
                          &PyList_Type, &reply_memories, &poller, &encoder, &PyDict_Type, &decoders, &request_bell,
                          &reply_bell))
        goto failed;
    if (!is_slots(requests) || !is_slots(replies) || !is_poller(poller) || !is_encoder(encoder) ||
        (request_bell != Py_None && !is_semaphore(request_bell))) {
        PyErr_SetString(PyExc_TypeError,
                        "slots of both directions, the poller of the replies, an encoder, and a semaphore or None");
        goto failed;
    }
    if (rotating_slots < 1) {
        PyErr_SetString(PyExc_ValueError, "expected at least one rotating slot");
        goto failed;
    }
    if ((self->pollers = PyList_New(1)) == NULL)
        goto failed;
    PyList_SET_ITEM(self->pollers, 0, Py_NewRef(poller));
    self->request_bell = Py_NewRef(request_bell);
    self->reply_bell = Py_NewRef(reply_bell);
    self->is_reply_semaphore = is_semaphore(reply_bell);
    self->requests = (Slots *)Py_NewRef(requests);
    self->replies = (Slots *)Py_NewRef(replies);
    self->poller = Py_NewRef(poller);
    self->request_memories = Py_NewRef(request_memories);
    self->reply_memories = Py_NewRef(reply_memories);
    self->encoder = Py_NewRef(encoder);
    self->decoders = Py_NewRef(decoders);
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
    Py_XDECREF(self->pollers);
    Py_XDECREF(self->request_bell);
    Py_XDECREF(self->reply_bell);
    Py_XDECREF(self->request_memories);
    Py_XDECREF(self->reply_memories);
    Py_XDECREF(self->encoder);
    Py_XDECREF(self->decoders);
    free_instance(object);
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

/* Find the sequence of the next request: the next slot in turn that no request in flight uses. 1, 0 if every slot is in
 * use, -1 with an exception if the channel was closed. */
static int next_sequence(const ClientFastPath *self, PyObject *in_flight, uint64_t *sequence)
{
    if (writable_slots((PyObject *)self->requests) == NULL)
        return -1;
    if (self->replies->ring.line == NULL) {
        PyErr_SetString(PyExc_ValueError, "this segment was closed");
        return -1;
    }
    uint64_t number = number_of(load_relaxed(&self->requests->ring.line->counter)) + 1, used = 0, slots = self->requests->ring.slots;
    uint64_t turn = number % (uint64_t)self->rotating_slots;
    PyObject *key;
    for (Py_ssize_t position = 0; PyDict_GET_SIZE(in_flight) && PyDict_Next(in_flight, &position, &key, NULL);) {
        uint64_t other;
        if (!PyLong_CheckExact(key)) {
            PyErr_SetString(PyExc_TypeError, "expected the sequences of the requests in flight");
            return -1;
        }
        if (to_word(key, &other) < 0)
            return -1;
        used |= (uint64_t)1 << slot_of(other);
    }
    for (uint64_t step = 0; step < slots; step++) {
        uint64_t slot = (turn + step) % slots;
        if (!(used >> slot & 1)) {
            *sequence = sequence_of(number, slot);
            return 1;
        }
    }
    return 0;
}

/* try_send(tree, pending, in_flight, leads, kind, flags, deadline_ns, capture_ns, max_age_ns): write the tree, which a reset
 * does not have, publish it as the next request, which `pending` waits for among those `in_flight`, and ring; False if it is not
 * eligible, None if its structure is new or has other sizes than declared, and nothing was published. `leads`: the caller is the thread that waits for replies */
static PyObject *client_path_try_send(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    ClientFastPath *self = (ClientFastPath *)object;
    uint64_t kind, flags, deadline_ns, capture_ns, max_age_ns, sequence, again;
    if (count != 9 || !PyDict_CheckExact(args[2])) {
        PyErr_SetString(PyExc_TypeError,
                        "try_send(tree, pending, in_flight, leads, kind, flags, deadline_ns, capture_ns, max_age_ns)");
        return NULL;
    }
    if (to_word(args[4], &kind) < 0 || to_word(args[5], &flags) < 0 || to_word(args[6], &deadline_ns) < 0 ||
        to_word(args[7], &capture_ns) < 0 || to_word(args[8], &max_age_ns) < 0)
        return NULL;
    int found = next_sequence(self, args[2], &sequence);
    if (found <= 0)
        return found < 0 ? NULL : Py_NewRef(Py_False);
    Encoded encoded = {0, 0, 0, 0};
    if (kind == KIND_INFER) {
        PyObject *memory = memory_of(self->request_memories, slot_of(sequence));
        if (memory == NULL)
            return NULL;
        found = encoder_put(self->encoder, args[0], memory, (PyObject *)self->requests, slot_of(sequence), 0, &encoded,
                            NULL);
        Py_DECREF(memory);
        if (found < 0)
            return NULL;
        if (found == UNKNOWN || found == UNEXPECTED)
            Py_RETURN_NONE;
        if (found != WRITTEN)
            Py_RETURN_FALSE;
    }
    PyObject *key = PyLong_FromUnsignedLongLong(sequence);
    if (key == NULL || PyObject_SetAttr(args[1], name_for(object, SEQUENCE_NAME), key) < 0) {
        Py_XDECREF(key);
        return NULL;
    }
    /* Code that ran for the tree, or another thread, may have closed the channel or published a request. */
    found = next_sequence(self, args[2], &again);
    /* Before publication: a thread that sees the reply must find its pending request. */
    if (found > 0 && again == sequence && PyDict_SetItem(args[2], key, args[1]) < 0)
        found = -1;
    Py_DECREF(key);
    if (found <= 0 || again != sequence)
        return found < 0 ? NULL : Py_NewRef(Py_False);
    RequestHead *head = head_of(self->requests, sequence);
    self->sequence = sequence;
    if (args[3] == Py_True)
        poller_note(self->poller, load_relaxed(&self->replies->ring.line->counter));
    uint64_t words[REQUEST_WORDS] = {sequence,
                                     kind,
                                     flags,
                                     deadline_ns,
                                     capture_ns,
                                     max_age_ns,
                                     monotonic_ns(),
                                     encoded.schema,
                                     encoded.metadata_bytes,
                                     encoded.payload_bytes,
                                     0,
                                     encoded.write_id};
    ring_publish(self->requests->ring.line, head, words);
    if (self->request_bell != Py_None)
        semaphore_try_ring(self->request_bell);
    Py_RETURN_TRUE;
}

/* touch(in_flight): read the slot of the next request, as far as TOUCHED_BYTES, and what the encoder keeps, so that they
 * lie in this processor's cache */
static PyObject *client_path_touch(PyObject *object, PyObject *in_flight)
{
    ClientFastPath *self = (ClientFastPath *)object;
    uint64_t sequence;
    if (!PyDict_CheckExact(in_flight)) {
        PyErr_SetString(PyExc_TypeError, "touch(in_flight)");
        return NULL;
    }
    int found = next_sequence(self, in_flight, &sequence);
    if (found < 0)
        return NULL;
    if (found > 0) {
        size_t bytes = self->requests->ring.stride;
        touch(head_of(self->requests, sequence), bytes < TOUCHED_BYTES ? bytes : TOUCHED_BYTES);
        touch(self->replies->ring.line, CACHE_LINE);
        const void *reply = ring_head(&self->replies->ring, sequence);
        if (reply != NULL)
            touch(reply, SLOT_HEAD_BYTES);
    }
    encoder_touch(self->encoder);
    Py_RETURN_NONE;
}

/* Take the reply to `sequence` as try_receive does. */
static PyObject *receive(ClientFastPath *self, uint64_t sequence, PyObject *type)
{
    PyObject *object = (PyObject *)self;
    uint64_t words[REPLY_WORDS];
    const ReplyHead *head;
    if (!sequence)
        Py_RETURN_NONE;
    if ((head = head_of(self->replies, sequence)) == NULL)
        return NULL;
    if (!ring_copy_reply(head, sequence, words) || words[REPLY_STATUS] != STATUS_OK ||
        (words[REPLY_FLAGS] & FLAG_PICKLED))
        Py_RETURN_NONE;
    PyObject *schema = PyLong_FromUnsignedLongLong(words[REPLY_SCHEMA]);
    PyObject *decoder = schema == NULL ? NULL : PyDict_GetItemWithError(self->decoders, schema);
    Py_XDECREF(schema);
    if (decoder == NULL)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    if (!is_decoder(decoder) || !decoder_is_complete(decoder))
        Py_RETURN_NONE;
    Py_INCREF(decoder);
    PyObject *memory = memory_of(self->reply_memories, slot_of(sequence));
    PyObject *payload = memory == NULL ? NULL : PyObject_GetAttr(memory, name_for(object, PAYLOAD_NAME));
    PyObject *tree = payload == NULL ? NULL : decoder_decode(decoder, payload, words[REPLY_PAYLOAD_BYTES]);
    /* Sizes or a text that cannot be read: the slow path reports them. */
    int is_unreadable = payload != NULL && tree == NULL && PyErr_ExceptionMatches(PyExc_ValueError);
    PyObject *reply = tree == NULL ? NULL : named(type, words, REPLY_WORDS);
    PyObject *now_ns = reply == NULL ? NULL : PyLong_FromUnsignedLongLong(monotonic_ns());
    PyObject *result = now_ns == NULL ? NULL : PyTuple_Pack(3, tree, reply, now_ns);
    Py_XDECREF(now_ns);
    Py_XDECREF(reply);
    Py_XDECREF(tree);
    Py_XDECREF(payload);
    Py_XDECREF(memory);
    Py_DECREF(decoder);
    if (is_unreadable) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    return result;
}

/* try_receive(type): (the tree of the reply to what was sent last, its head as this type, the time), or None while
 * there is none, or if it is not a result of a structure that was read before */
static PyObject *client_path_try_receive(PyObject *object, PyObject *type)
{
    ClientFastPath *self = (ClientFastPath *)object;
    return receive(self, self->sequence, type);
}

/* The time after `now_ns`, but no later than `until_ns`. */
static uint64_t earlier(uint64_t now_ns, uint64_t after_ns, uint64_t until_ns)
{
    return until_ns <= now_ns || after_ns > until_ns - now_ns ? until_ns : now_ns + after_ns;
}

/* Spin until the counter of the replies moves; 1 if it has moved, 0 otherwise, -1 with an exception. `spun_ns`: how long that
 * took. With `yields` other threads of this CPU run between two polls. */
static int spin_for(ClientFastPath *self, uint64_t until_ns, bool yields, long long *spun_ns)
{
    PyObject *until = PyLong_FromUnsignedLongLong(until_ns), *spun = NULL;
    if (until != NULL) {
        PyObject *args[] = {self->pollers, until, yields ? Py_True : Py_False};
        spun = spin_unless_blocked(PyType_GetModule(Py_TYPE(self)), args, 3);
    }
    Py_XDECREF(until);
    if (spun == NULL)
        return -1;
    *spun_ns = PyLong_AsLongLong(spun);
    Py_DECREF(spun);
    return *spun_ns != 0;
}

/* Note whether this client sleeps; another thread may have closed its memory. */
static void note_if_open(ClientFastPath *self, void (*note)(CounterLine *))
{
    if (self->requests->ring.line != NULL && !self->requests->view.readonly)
        note(self->requests->ring.line);
}

/* Sleep at the doorbell until a token came and take it (1), or until it is `until_ns` or a signal arrived (0); -1 with an
 * exception. The handlers of signals run, and may raise. */
static int sleep_for(ClientFastPath *self, uint64_t until_ns)
{
    int taken;
    note_if_open(self, note_asleep);
    if (self->is_reply_semaphore)
        taken = semaphore_wait_until(self->reply_bell, until_ns);
    else {
        uint64_t now_ns = monotonic_ns();
        PyObject *timeout = PyLong_FromUnsignedLongLong(until_ns > now_ns ? until_ns - now_ns : 0);
        PyObject *name = name_for((PyObject *)self, WAIT_NAME);
        PyObject *found = timeout == NULL ? NULL : PyObject_CallMethodOneArg(self->reply_bell, name, timeout);
        Py_XDECREF(timeout);
        taken = found == NULL ? -1 : PyObject_IsTrue(found);
        Py_XDECREF(found);
    }
    note_if_open(self, note_awake);
    if (taken < 0)
        return -1;
    /* The token stays taken, although a handler raises. */
    return PyErr_CheckSignals() < 0 ? -1 : taken;
}

/* Take the token that the last wait left; -1 with an exception. */
static int drain(ClientFastPath *self)
{
    if (self->is_reply_semaphore) {
        semaphore_try_take_token(self->reply_bell);
        return 0;
    }
    PyObject *taken = PyObject_CallMethodNoArgs(self->reply_bell, name_for((PyObject *)self, TRY_TAKE_NAME));
    Py_XDECREF(taken);
    return taken == NULL ? -1 : 0;
}

/* Sleep until `wake_ns`, shortly before the reply is due, spin for it until `poll_until_ns`, and sleep again until `end_ns`.
 * 1: it was seen, `spun_ns` is not 0, and its token is left; or a token was taken; 0: neither; -1 with an exception. */
static int poll_when_due(ClientFastPath *self, uint64_t wake_ns, uint64_t poll_until_ns, uint64_t end_ns, long long *spun_ns)
{
    int moved = sleep_for(self, wake_ns);
    uint64_t woke_ns = monotonic_ns();
    /* Unless a signal has ended the sleep. */
    if (moved || woke_ns < wake_ns || !poller_is_open(self->poller))
        return moved;
    /* The kernel may have moved the engine while this thread slept. */
    if ((moved = spin_for(self, poll_until_ns, true, spun_ns)) < 0)
        return -1;
    long long polled_ns = (long long)(monotonic_ns() - woke_ns);
    self->polled_ns = moved ? polled_ns + !polled_ns : -polled_ns - !polled_ns;
    return moved ? moved : sleep_for(self, end_ns);
}

/* wait(sequence, drains, spin_ns, sleep_ns, poll_ns, longest_ns, until_ns, type): spin for `spin_ns` until the engine's count of
 * replies moves, then sleep at the doorbell for `longest_ns`, and neither longer than until `until_ns`; then receive the reply to
 * `sequence` as try_receive does. With `sleep_ns`, which counts from now, it wakes up by then and spins for `poll_ns` before it
 * sleeps on. `drains`: the last wait ended while it spun, and left its token. `waited_ns` and `polled_ns` tell how it ended.
 *
 * The caller leads: no other thread waits at the doorbell, and none closes the channel. It holds no lock, so another thread
 * may complete the same request meanwhile, and the caller checks that. */
static PyObject *client_path_wait(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    ClientFastPath *self = (ClientFastPath *)object;
    uint64_t sequence, spin_ns, sleep_ns, poll_ns, longest_ns, until_ns, began_ns = monotonic_ns();
    if (count != 8) {
        PyErr_SetString(PyExc_TypeError,
                        "wait(sequence, drains, spin_ns, sleep_ns, poll_ns, longest_ns, until_ns, type)");
        return NULL;
    }
    if (to_word(args[0], &sequence) < 0 || to_word(args[2], &spin_ns) < 0 || to_word(args[3], &sleep_ns) < 0 ||
        to_word(args[4], &poll_ns) < 0 || to_word(args[5], &longest_ns) < 0 || to_word(args[6], &until_ns) < 0)
        return NULL;
    self->waited_ns = self->polled_ns = 0;
    long long spun_ns = 0;
    /* If the token is this reply's already, its counter has moved. */
    if (args[1] == Py_True && drain(self) < 0)
        return NULL;
    int moved = spin_for(self, earlier(began_ns, spin_ns, until_ns), false, &spun_ns);
    if (moved > 0)
        self->waited_ns = -spun_ns;
    else if (!moved) {
        uint64_t end_ns = earlier(monotonic_ns(), longest_ns, until_ns), wake_ns = earlier(began_ns, sleep_ns, end_ns);
        if (sleep_ns && wake_ns < end_ns)
            moved = poll_when_due(self, wake_ns, earlier(wake_ns, poll_ns, until_ns), end_ns, &spun_ns);
        else
            moved = sleep_for(self, end_ns);
        if (moved > 0) {
            long long waited_ns = (long long)(monotonic_ns() - began_ns);
            self->waited_ns = spun_ns ? -waited_ns : waited_ns;
        }
    }
    if (moved < 0)
        return NULL;
    if (self->replies->ring.line == NULL)
        Py_RETURN_NONE;
    return receive(self, sequence, args[7]);
}

static PyMethodDef client_path_methods[] = {
    {"try_send", (PyCFunction)(void (*)(void))client_path_try_send, METH_FASTCALL,
     "Write a tree and publish it, if it is eligible."},
    {"touch", client_path_touch, METH_O, "Bring the memory of the next request into the cache."},
    {"wait", (PyCFunction)(void (*)(void))client_path_wait, METH_FASTCALL,
     "Wait for the engine's next reply; the result of this request, its head and the time, or None."},
    {"try_receive", client_path_try_receive, METH_O, "The result of the last request sent, its head and the time."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef client_path_members[] = {
    {"sequence", T_ULONGLONG, offsetof(ClientFastPath, sequence), READONLY, "The last request sent; 0: none."},
    {"waited_ns", T_LONGLONG, offsetof(ClientFastPath, waited_ns), READONLY,
     "How long the last wait was: negative if it ended while it spun, 0 if it ended without news."},
    {"polled_ns", T_LONGLONG, offsetof(ClientFastPath, polled_ns), READONLY,
     "How long the last wait spun after its first sleep: negative if in vain, 0 if it did not."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot client_path_slots[] = {
    {Py_tp_doc, "Client half of the fast path."}, {Py_tp_new, client_path_new},
    {Py_tp_dealloc, client_path_dealloc},         {Py_tp_methods, client_path_methods},
    {Py_tp_members, client_path_members},         {0, NULL},
};

PyType_Spec client_path_spec = {"shmserve._core.ClientFastPath", sizeof(ClientFastPath), 0, TYPE_FLAGS,
                                client_path_slots};
