/* The four ends of a channel's two rings: who writes which word, and in which order.
 *
 * Each direction has one writing and one reading process. The client publishes requests and reads replies, the engine
 * takes requests and completes replies. A head is written from, and copied into, plain numbers in the order of its
 * words; a reader uses only the copy, after it has compared the sequence in it with the one that it expects.
 */

#ifndef SHMSERVE_CORE_RING_H
#define SHMSERVE_CORE_RING_H

#include "wire.h"

#include <stdbool.h>

/* One direction of a channel, mapped. */
typedef struct {
    CounterLine *line;
    char *heads;    /* the first slot's */
    size_t stride;  /* bytes from one slot to the next */
    uint64_t slots; /* at most MAX_SLOTS */
} Ring;

/* The head of a sequence's slot; NULL if this ring has no such slot. */
static inline void *ring_head(const Ring *ring, uint64_t sequence)
{
    return slot_of(sequence) < ring->slots ? ring->heads + slot_of(sequence) * ring->stride : NULL;
}

/* The client's end of the requests. */

/* Make the request whose payload and metadata are in place visible; `words` has its sequence first. */
void ring_publish(CounterLine *line, RequestHead *head, const uint64_t words[REQUEST_WORDS]);

/* Withdraw this request: an engine that has not taken it (`ring_is_taken`, after this call) never runs it. And take that
 * back, for a request that an engine has taken. */
void ring_cancel(RequestHead *head, uint64_t sequence);
void ring_keep(RequestHead *head);

/* The engine's end of the requests. */

/* Copy the head, of whatever sequence; the counter was loaded before. */
void ring_copy_request(const RequestHead *head, uint64_t words[REQUEST_WORDS]);

/* Whether the client has withdrawn the request. */
bool ring_is_cancelled(const RequestHead *head, uint64_t sequence);

/* The engine's end of the replies. */

/* Note that the model is about to run a sequence; the number of attempts, this one included. The model may run it only if
 * it is not withdrawn even now (`ring_is_cancelled`, after this call). */
uint64_t ring_take(ReplyHead *head, uint64_t sequence);

/* Whether an engine has begun to run a sequence; it may have answered it since, or have died. */
bool ring_is_taken(const ReplyHead *head, uint64_t sequence);

/* Make the reply whose payload and metadata are in place visible; `words` has its sequence first. */
void ring_complete(CounterLine *line, ReplyHead *head, const uint64_t words[REPLY_PUBLISHED + 1]);

/* The client's end of the replies. */

/* Copy the head of the reply to a sequence; false while it is not published. */
bool ring_copy_reply(const ReplyHead *head, uint64_t sequence, uint64_t words[REPLY_WORDS]);

#endif
