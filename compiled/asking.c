/* A plain request on its way through the client: into its slot and published in one step, and from the reply to what its
 * caller gets in another. What codec.py, exchange.py and settling.py do, for what most requests are.
 */

#include "asking.h"
#include "receiver.h"
#include "sender.h"
#include "slots.h"

/* send(sender, tree, payload, slots, ring, sequence, deadline_ns, schema, metadata_bytes): write the tree and publish it
 * as a request for the model: as Sender.write, but where that says "written" it is published */
PyObject *send_plain(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    uint64_t sequence, deadline_ns, schema, metadata, writing;
    if (count != 9 || !is_sender(args[0])) {
        PyErr_SetString(PyExc_TypeError,
                        "send(sender, tree, payload, slots, ring, sequence, deadline_ns, schema, metadata_bytes)");
        return NULL;
    }
    Slots *slots = writable_slots(args[3]);
    if (slots == NULL || to_word(args[5], &sequence) < 0 || to_word(args[6], &deadline_ns) < 0 ||
        to_word(args[7], &schema) < 0 || to_word(args[8], &metadata) < 0 || head_of(slots, sequence) == NULL)
        return NULL;
    int found = sender_put(args[0], args[1], args[2], args[3], sequence & slots->mask, args[4], &writing);
    if (found < 0)
        return NULL;
    if (found == WRITTEN) {
        /* Again: what was asked for the tree, or another thread, may have closed the segment. */
        uint64_t *head = writable_slots(args[3]) == NULL ? NULL : head_of(slots, sequence);
        if (head == NULL)
            return NULL;
        uint64_t words[REQUEST_WORDS] = {sequence, KIND_INFER, 0, deadline_ns, 0, 0, monotonic_ns(), schema, metadata,
                                         sender_bytes(args[0]), 0, writing};
        publish_request(slots, head, words);
    }
    return PyLong_FromLong(found);
}

/* receive(receiver, type, slots, sequence, payload, schema): (the tree of the reply to `sequence`, its head as this type),
 * or None while there is none, or none of this structure that is a result */
PyObject *receive_plain(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    uint64_t sequence, schema, *head, words[REPLY_WORDS];
    if (count != 6 || !is_receiver(args[0]) || !is_slots(args[2])) {
        PyErr_SetString(PyExc_TypeError, "receive(receiver, type, slots, sequence, payload, schema)");
        return NULL;
    }
    if (to_word(args[3], &sequence) < 0 || to_word(args[5], &schema) < 0 ||
        (head = head_of((Slots *)args[2], sequence)) == NULL)
        return NULL;
    if (!copy_reply(head, sequence, words) || words[REPLY_STATUS] != STATUS_OK || (words[REPLY_FLAGS] & FLAG_PICKLED) ||
        words[REPLY_SCHEMA] != schema || words[REPLY_PAYLOAD_BYTES] != receiver_bytes(args[0]))
        Py_RETURN_NONE;
    PyObject *tree = receiver_read(args[0], args[4]);
    PyObject *told = tree == NULL ? NULL : named(args[1], words, REPLY_WORDS);
    PyObject *both = told == NULL ? NULL : PyTuple_Pack(2, tree, told);
    Py_XDECREF(told);
    Py_XDECREF(tree);
    return both;
}
