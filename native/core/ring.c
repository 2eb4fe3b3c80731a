/* Publication and reading of requests and replies, with the memory orders of C11. */

#include "ring.h"
#include "processor.h"

void ring_publish(CounterLine *line, RequestHead *head, const uint64_t words[REQUEST_WORDS])
{
    Word *to = &head->sequence;
    for (int index = 0; index < REQUEST_WORDS; index++)
        store_relaxed(&to[index], words[index]);
    store_relaxed(&line->processor, processor());
    /* ORDER: payload, head and processor before the counter; pairs with ring_copy_request and has_moved. */
    store_release(&line->counter, words[REQUEST_SEQUENCE]);
}

void ring_cancel(RequestHead *head, uint64_t sequence)
{
    store_relaxed(&head->cancelled, sequence);
    /* ORDER: the withdrawal before the caller's look at `taken`; pairs with ring_take, which looks the other way round:
     * one of the two sees the other. */
    fence_full();
}

void ring_keep(RequestHead *head) { store_relaxed(&head->cancelled, 0); }

bool ring_is_cancelled(const RequestHead *head, uint64_t sequence)
{
    return load_relaxed(&head->cancelled) == sequence;
}

void ring_copy_request(const RequestHead *head, uint64_t words[REQUEST_WORDS])
{
    /* ORDER: the counter before head and payload; pairs with ring_publish. The caller may have loaded it relaxed. */
    fence_acquire();
    const Word *from = &head->sequence;
    for (int index = 0; index < REQUEST_WORDS; index++)
        words[index] = load_relaxed(&from[index]);
}

uint64_t ring_take(ReplyHead *head, uint64_t sequence)
{
    uint64_t attempts = ring_is_taken(head, sequence) ? load_relaxed(&head->attempts) + 1 : 1;
    store_relaxed(&head->attempts, attempts);
    /* ORDER: the attempts before the sequence they belong to; pairs with ring_is_taken in the next engine. */
    store_release(&head->taken, sequence);
    /* ORDER: the mark before the caller's look at `cancelled`; pairs with ring_cancel. */
    fence_full();
    return attempts;
}

bool ring_is_taken(const ReplyHead *head, uint64_t sequence)
{
    /* ORDER: the sequence before its attempts; pairs with ring_take. */
    return load_acquire(&head->taken) == sequence;
}

void ring_complete(CounterLine *line, ReplyHead *head, const uint64_t words[REPLY_PUBLISHED + 1])
{
    Word *to = &head->sequence;
    /* The slot still names an earlier sequence until all else is written. */
    for (int index = REPLY_SEQUENCE + 1; index <= REPLY_PUBLISHED; index++)
        store_relaxed(&to[index], words[index]);
    store_relaxed(&line->processor, processor());
    /* ORDER: payload and head before the sequence; pairs with ring_copy_reply. */
    store_release(&head->sequence, words[REPLY_SEQUENCE]);
    /* ORDER: the sequence before the counter, which a spinning client polls; pairs with has_moved. A reader that sees
     * the counter alone would wait for the next move. Only the serving engine writes it. */
    store_release(&line->counter, load_relaxed(&line->counter) + 1);
}

bool ring_copy_reply(const ReplyHead *head, uint64_t sequence, uint64_t words[REPLY_WORDS])
{
    /* ORDER: the sequence before head and payload; pairs with ring_complete. */
    if (load_acquire(&head->sequence) != sequence)
        return false;
    const Word *from = &head->sequence;
    words[REPLY_SEQUENCE] = sequence;
    for (int index = REPLY_SEQUENCE + 1; index < REPLY_WORDS; index++)
        words[index] = load_relaxed(&from[index]);
    return true;
}
