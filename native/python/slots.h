/* Interface of slots.c. */

#ifndef SHMSERVE_SLOTS_H
#define SHMSERVE_SLOTS_H

#include "common.h"
#include "sequence.h"

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    uint64_t *words; /* NULL once closed */
    uint64_t *counter;
    uint64_t *first;          /* the first slot's head */
    Py_ssize_t slots, stride; /* in words */
} Slots;

/* The words of a request's head, and of a reply's (REQUEST and REPLY in shmserve/layout.py). */
enum {
    SEQUENCE,
    KIND,
    FLAGS,
    DEADLINE_NS,
    CAPTURE_NS,
    MAX_AGE_NS,
    SUBMITTED_NS,
    SCHEMA,
    METADATA_BYTES,
    PAYLOAD_BYTES,
    CANCELLED,
    REQUEST_WRITE_ID,
    REQUEST_WORDS
};
enum {
    REPLY_STATUS = 1,
    REPLY_FLAGS,
    REPLY_SCHEMA,
    REPLY_PAYLOAD_BYTES = 5,
    REPLY_PUBLISHED = 10,
    TAKEN,
    ATTEMPTS,
    REPLY_WORDS
};
/* Kind.INFER, Status.OK and Flag.PICKLED (shmserve/protocol.py). */
enum { KIND_INFER = 1, STATUS_OK = 0, FLAG_PICKLED = 1, FLAG_REPEATABLE = 4 };

static inline uint64_t load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }

static inline void store(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELAXED); }

static inline int to_word(PyObject *number, uint64_t *word)
{
    unsigned long long value = PyLong_AsUnsignedLongLong(number);
    *word = value;
    return value == (unsigned long long)-1 && PyErr_Occurred() ? -1 : 0;
}

int is_slots(PyObject *object);

/* The open, writable slots; NULL with an exception otherwise. */
Slots *writable_slots(PyObject *object);

/* The head of a sequence's slot; NULL with an exception if the slot does not exist. */
uint64_t *head_of(Slots *self, uint64_t sequence);

/* A head as a named tuple of this type. */
PyObject *named(PyObject *type, const uint64_t *words, int count);

/* Make the request whose payload and metadata are in place visible. */
void publish_request(Slots *self, uint64_t *head, const uint64_t *words);

/* Copy the head of this slot, of whatever sequence; the counter was loaded before. */
void copy_request(const uint64_t *head, uint64_t *words);

/* Note that the model is about to run a sequence; the number of attempts, this one included. */
uint64_t take_request(uint64_t *head, uint64_t sequence);

/* Make the reply whose payload and metadata are in place visible; `words` has its sequence first. */
void complete_reply(Slots *self, uint64_t *head, const uint64_t *words);

/* Copy the reply to a sequence: 1, or 0 while it is not published. */
int copy_reply(const uint64_t *head, uint64_t sequence, uint64_t *words);

#endif
