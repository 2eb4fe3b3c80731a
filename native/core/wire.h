/* The wire: each word of a segment, and the meaning of the numbers in it (docs/reference/wire-format.md).
 *
 * The lists here are the only place of an offset or a number in C: each makes a structure, an index for each word, an
 * assertion for each offset, and its part of the table that tests/unit/native/test_wire.py compares with
 * shmserve/layout.py and shmserve/protocol.py. The structures lie over shared memory. A reader uses no unchecked value:
 * it copies a head once into plain numbers, indexed by the same names, and uses only the copy.
 */

#ifndef SHMSERVE_CORE_WIRE_H
#define SHMSERVE_CORE_WIRE_H

#include "atomics.h"

#include <stddef.h>

/* The bytes "shmserve" read as a little-endian number. */
#define MAGIC UINT64_C(0x65767265736d6873)
#define WIRE_VERSION 4
#define WORD 8
#define CACHE_LINE 64
#define COUNTER_OFFSET CACHE_LINE
#define SLOTS_OFFSET (2 * CACHE_LINE)
#define SLOT_HEAD_BYTES (2 * CACHE_LINE)
#define SLOT_BITS 6
#define MAX_SLOTS (1 << SLOT_BITS)
#define SLOT_MASK (MAX_SLOTS - 1)
#define MAX_METADATA_BYTES 65536
#define MAX_PAYLOAD_BYTES (UINT64_C(1) << 32)
/* Set in `processor` while the writer sleeps. */
#define ASLEEP (UINT64_C(1) << 63)

/* X(name) for each of them. */
#define WIRE_NUMBERS(X)                                                                                                \
    X(MAGIC)                                                                                                           \
    X(WIRE_VERSION)                                                                                                    \
    X(WORD)                                                                                                            \
    X(CACHE_LINE)                                                                                                      \
    X(COUNTER_OFFSET)                                                                                                  \
    X(SLOTS_OFFSET)                                                                                                    \
    X(SLOT_HEAD_BYTES)                                                                                                 \
    X(SLOT_BITS)                                                                                                       \
    X(MAX_SLOTS)                                                                                                       \
    X(SLOT_MASK)                                                                                                       \
    X(MAX_METADATA_BYTES)                                                                                              \
    X(MAX_PAYLOAD_BYTES)                                                                                               \
    X(ASLEEP)

/* X(index, name, offset): the segment header, written by the supervisor before the channel is handed out. */
#define HEADER_FIELDS(X)                                                                                               \
    X(HEADER_MAGIC, magic, 0)                                                                                          \
    X(HEADER_WIRE_VERSION, wire_version, 8)                                                                            \
    X(HEADER_EPOCH, epoch, 16)                                                                                         \
    X(HEADER_GENERATION, generation, 24)                                                                               \
    X(HEADER_CHANNEL, channel, 32)                                                                                     \
    X(HEADER_SLOTS, slots, 40)                                                                                         \
    X(HEADER_METADATA_BYTES, metadata_bytes, 48)                                                                       \
    X(HEADER_PAYLOAD_BYTES, payload_bytes, 56)

/* The counter's line: the last sequence that the client has published, or the number of replies of the engine. Beside
 * it, hints: the id of the large write in progress and its bytes so far, the writer's last CPU plus 1, when the client says
 * that its next request comes, and the period of its requests. */
#define COUNTER_LINE_FIELDS(X)                                                                                         \
    X(COUNTER, counter, 0)                                                                                             \
    X(WRITE_ID, write_id, 8)                                                                                           \
    X(WRITTEN_BYTES, written_bytes, 16)                                                                                \
    X(PROCESSOR, processor, 24)                                                                                        \
    X(EXPECTED_NS, expected_ns, 32)                                                                                    \
    X(PERIOD_NS, period_ns, 40)

/* A request's head, written by the client; `cancelled` alone may change after publication. */
#define REQUEST_FIELDS(X)                                                                                              \
    X(REQUEST_SEQUENCE, sequence, 0)                                                                                   \
    X(REQUEST_KIND, kind, 8)                                                                                           \
    X(REQUEST_FLAGS, flags, 16)                                                                                        \
    X(REQUEST_DEADLINE_NS, deadline_ns, 24)                                                                            \
    X(REQUEST_CAPTURE_NS, capture_ns, 32)                                                                              \
    X(REQUEST_MAX_AGE_NS, max_age_ns, 40)                                                                              \
    X(REQUEST_SUBMITTED_NS, submitted_ns, 48)                                                                          \
    X(REQUEST_SCHEMA, schema, 56)                                                                                      \
    X(REQUEST_METADATA_BYTES, metadata_bytes, 64)                                                                      \
    X(REQUEST_PAYLOAD_BYTES, payload_bytes, 72)                                                                        \
    X(REQUEST_CANCELLED, cancelled, 80)                                                                                \
    X(REQUEST_WRITE_ID, write_id, 88)

/* A reply's head, written by the engine: `taken` and `attempts` before the model runs, `sequence` last of all. */
#define REPLY_FIELDS(X)                                                                                                \
    X(REPLY_SEQUENCE, sequence, 0)                                                                                     \
    X(REPLY_STATUS, status, 8)                                                                                         \
    X(REPLY_FLAGS, flags, 16)                                                                                          \
    X(REPLY_SCHEMA, schema, 24)                                                                                        \
    X(REPLY_METADATA_BYTES, metadata_bytes, 32)                                                                        \
    X(REPLY_PAYLOAD_BYTES, payload_bytes, 40)                                                                          \
    X(REPLY_VERSION, version, 48)                                                                                      \
    X(REPLY_QUEUED_NS, queued_ns, 56)                                                                                  \
    X(REPLY_STAGED_NS, staged_ns, 64)                                                                                  \
    X(REPLY_INFER_NS, infer_ns, 72)                                                                                    \
    X(REPLY_COPIED_NS, copied_ns, 80)                                                                                  \
    X(REPLY_TAKEN, taken, 88)                                                                                          \
    X(REPLY_ATTEMPTS, attempts, 96)

/* X(name in C, name in Python, number) */
#define KINDS(X)                                                                                                       \
    X(KIND_INFER, INFER, 1)                                                                                            \
    X(KIND_RESET, RESET, 2)

#define FLAG_BITS(X)                                                                                                   \
    X(FLAG_PICKLED, PICKLED, 1)                                                                                        \
    X(FLAG_SUPERSEDE, SUPERSEDE, 2)                                                                                    \
    X(FLAG_REPEATABLE, REPEATABLE, 4)                                                                                  \
    X(FLAG_IN_PLACE, IN_PLACE, 8)                                                                                      \
    X(FLAG_STATEFUL, STATEFUL, 16)                                                                                     \
    X(FLAG_CLAMPED, CLAMPED, 32)                                                                                       \
    X(FLAG_REAL_TIME_CHUNKING, REAL_TIME_CHUNKING, 64)                                                                 \
    X(FLAG_REMOTE, REMOTE, 128)                                                                                        \
    X(FLAG_FALLBACK, FALLBACK, 256)

#define STATUSES(X)                                                                                                    \
    X(STATUS_OK, OK, 0)                                                                                                \
    X(STATUS_RESIZE_REQUIRED, RESIZE_REQUIRED, 1)                                                                      \
    X(STATUS_EXPIRED, EXPIRED, 2)                                                                                      \
    X(STATUS_CANCELLED, CANCELLED, 3)                                                                                  \
    X(STATUS_SUPERSEDED, SUPERSEDED, 4)                                                                                \
    X(STATUS_STALE, STALE, 5)                                                                                          \
    X(STATUS_REJECTED, REJECTED, 6)                                                                                    \
    X(STATUS_FAILED, FAILED, 7)                                                                                        \
    X(STATUS_ENGINE_LOST, ENGINE_LOST, 8)                                                                              \
    X(STATUS_STOPPING, STOPPING, 9)

#define WIRE_MEMBER(index, name, offset) Word name;
#define WIRE_INDEX(index, name, offset) index = (offset) / 8,
#define WIRE_CONSTANT(name, python_name, number) name = (number),

typedef struct {
    HEADER_FIELDS(WIRE_MEMBER)
} SegmentHeader;

typedef struct {
    COUNTER_LINE_FIELDS(WIRE_MEMBER)
} CounterLine;

typedef struct {
    REQUEST_FIELDS(WIRE_MEMBER)
} RequestHead;

typedef struct {
    REPLY_FIELDS(WIRE_MEMBER)
} ReplyHead;

enum { HEADER_FIELDS(WIRE_INDEX) HEADER_WORDS };
enum { COUNTER_LINE_FIELDS(WIRE_INDEX) COUNTER_LINE_WORDS };
enum { REQUEST_FIELDS(WIRE_INDEX) REQUEST_WORDS };
enum { REPLY_FIELDS(WIRE_INDEX) REPLY_WORDS };
/* The last word of a reply's head that its publication writes; `taken` and `attempts` follow. */
enum { REPLY_PUBLISHED = REPLY_COPIED_NS };
enum { KINDS(WIRE_CONSTANT) };
enum { FLAG_BITS(WIRE_CONSTANT) };
enum { STATUSES(WIRE_CONSTANT) };

#undef WIRE_MEMBER
#undef WIRE_INDEX
#undef WIRE_CONSTANT

#define AT_OFFSET(type, name, offset)                                                                                  \
    _Static_assert(offsetof(type, name) == (offset) && sizeof(((type *)0)->name) == WORD, #type "." #name)
#define HEADER_OFFSET(index, name, offset) AT_OFFSET(SegmentHeader, name, offset);
#define COUNTER_LINE_OFFSET(index, name, offset) AT_OFFSET(CounterLine, name, offset);
#define REQUEST_OFFSET(index, name, offset) AT_OFFSET(RequestHead, name, offset);
#define REPLY_OFFSET(index, name, offset) AT_OFFSET(ReplyHead, name, offset);

HEADER_FIELDS(HEADER_OFFSET)
COUNTER_LINE_FIELDS(COUNTER_LINE_OFFSET)
REQUEST_FIELDS(REQUEST_OFFSET)
REPLY_FIELDS(REPLY_OFFSET)

#undef AT_OFFSET
#undef HEADER_OFFSET
#undef COUNTER_LINE_OFFSET
#undef REQUEST_OFFSET
#undef REPLY_OFFSET

_Static_assert(sizeof(SegmentHeader) == HEADER_WORDS * WORD && sizeof(SegmentHeader) <= COUNTER_OFFSET,
               "the header ends before the counter's line");
_Static_assert(sizeof(CounterLine) == COUNTER_LINE_WORDS * WORD && sizeof(CounterLine) <= CACHE_LINE,
               "the counter's words are one line, which ends before the first slot");
_Static_assert(sizeof(RequestHead) == REQUEST_WORDS * WORD && sizeof(RequestHead) <= SLOT_HEAD_BYTES,
               "a request's head ends before its metadata");
_Static_assert(sizeof(ReplyHead) == REPLY_WORDS * WORD && sizeof(ReplyHead) <= SLOT_HEAD_BYTES,
               "a reply's head ends before its metadata");
_Static_assert(COUNTER_OFFSET == 64 && SLOTS_OFFSET == 128 && SLOT_HEAD_BYTES == 128, "where the slots lie");

/* Parts of a sequence: the number of the request, and its slot in the low six bits. */

static inline uint64_t sequence_of(uint64_t number, uint64_t slot) { return number << SLOT_BITS | slot; }

static inline uint64_t number_of(uint64_t sequence) { return sequence >> SLOT_BITS; }

static inline uint64_t slot_of(uint64_t sequence) { return sequence & SLOT_MASK; }

/* Bytes from one slot to the next: head, metadata, and the payload in whole lines. */
static inline uint64_t slot_stride(uint64_t metadata_bytes, uint64_t payload_bytes)
{
    return SLOT_HEAD_BYTES + metadata_bytes + (payload_bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
}

#endif
