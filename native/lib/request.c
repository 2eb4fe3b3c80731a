/* Requests until they are published, and their withdrawal. [R]: nothing here allocates or takes a lock. */

#include "client.h"
#include "core/clock.h"
#include "core/processor.h"

#include <string.h>

/* A robot's capture time may be this far in the future: two processors differ. */
#define LONGEST_LEAD_NS 1000000000u
/* Of a slot that will be written; the writing itself brings in the rest, which is contiguous. */
#define TOUCHED_BYTES 16384

Slot *slot_of_sequence(shmserve_client *client, shmserve_sequence sequence)
{
    Slot *slot = &client->slots[slot_of(sequence)];
    return sequence && slot->sequence == sequence && slot->state != SLOT_FREE ? slot : NULL;
}

static int ended(shmserve_client *client, shmserve_sequence sequence)
{
    return fail(client, SHMSERVE_ENDED, "request %llu to '%s' has ended, or its slot was given back: lend another",
                (unsigned long long)number_of(sequence), client->service);
}

/* The head of a slot, by any sequence in it. */
static RequestHead *request_head(const shmserve_client *client, uint64_t sequence)
{
    return ring_head(&client->channel.requests.ring, sequence);
}

static const ReplyHead *reply_head(const shmserve_client *client, uint64_t sequence)
{
    return ring_head(&client->channel.replies.ring, sequence);
}

void reap_abandoned(shmserve_client *client)
{
    uint64_t words[REPLY_WORDS];
    for (uint32_t index = 0; client->abandoned_count && index < client->slots_count; index++) {
        Slot *slot = &client->slots[index];
        if (slot->state == SLOT_ABANDONED && ring_copy_reply(reply_head(client, slot->wire), slot->wire, words)) {
            slot->state = SLOT_FREE;
            client->abandoned_count--;
            client->stats.late_replies++;
        }
    }
}

/* The next slot in turn that is free, and a name for a request in it; NULL if every slot is in use. */
static Slot *next_slot(shmserve_client *client, shmserve_sequence *sequence)
{
    uint64_t number = client->last_number + 1, slots = client->slots_count,
             turn = number % client->channel.rotating_slots % slots;
    for (uint64_t step = 0; step < slots; step++) {
        uint64_t index = (turn + step) % slots;
        if (client->slots[index].state == SLOT_FREE) {
            *sequence = sequence_of(client->last_name + 1, index);
            return &client->slots[index];
        }
    }
    return NULL;
}

/* Forget requests that were withdrawn and answered, and that no wait has asked for; whether there was any. */
static bool forget_cancelled(shmserve_client *client)
{
    uint64_t words[REPLY_WORDS];
    bool found = false;
    for (uint32_t index = 0; index < client->slots_count; index++) {
        Slot *slot = &client->slots[index];
        if (slot->state == SLOT_CANCELLED &&
            (slot->is_gone || ring_copy_reply(reply_head(client, slot->wire), slot->wire, words))) {
            slot->state = SLOT_FREE;
            found = true;
        }
    }
    return found;
}

static int claim(shmserve_client *client, Slot **slot, shmserve_sequence *sequence)
{
    int status = check_usable(client);
    if (status != SHMSERVE_OK)
        return status;
    if (client->must_resize)
        return fail(client, SHMSERVE_RESIZE_REQUIRED,
                    "a reply of '%s' needs larger slots: call shmserve_recover before the next request",
                    client->service);
    if ((status = robot_admit(client)) != SHMSERVE_OK)
        return status;
    reap_abandoned(client);
    *slot = next_slot(client, sequence);
    if (*slot == NULL && forget_cancelled(client))
        *slot = next_slot(client, sequence);
    if (*slot != NULL)
        return SHMSERVE_OK;
    return fail(
        client, SHMSERVE_EXHAUSTED,
        "every slot of '%s' holds a request without a reply, or is lent out: collect results before sending more, or "
        "open the client with more slots",
        client->service);
}

static int grow_requests(shmserve_client *client, uint64_t metadata_bytes, uint64_t payload_bytes)
{
    if (payload_bytes > client->wanted.request_bytes)
        client->wanted.request_bytes = payload_bytes;
    if (metadata_bytes > client->wanted.request_metadata)
        client->wanted.request_metadata = metadata_bytes;
    return fail(client, SHMSERVE_RESIZE_REQUIRED,
                "the request takes %llu bytes of metadata and %llu of payload, more than a slot of '%s' has: call "
                "shmserve_recover, then lend it again",
                (unsigned long long)metadata_bytes, (unsigned long long)payload_bytes, client->service);
}

/* Write the sizes and the structure of a request into its slot, and its places into the schema. */
static void fill_in(shmserve_client *client, const shmserve_schema *schema, Slot *slot, const uint64_t *sizes,
                    uint64_t bytes)
{
    const Segment *requests = &client->channel.requests;
    uint64_t index = slot_of(slot->sequence);
    char *metadata = (char *)request_head(client, slot->sequence) + SLOT_HEAD_BYTES;
    char *payload = metadata + requests->metadata_bytes;
    shmserve_place *places = schema->places[index];
    uint64_t *own_sizes = schema->sizes[index];
    uint32_t leaf = 0, word = 0;
    if (schema->sizes_count) {
        memcpy(own_sizes, sizes, schema->sizes_count * sizeof *sizes);
        memcpy(payload, sizes, schema->sizes_count * sizeof *sizes);
    }
    for (uint32_t entry = 0; entry < schema->entries_count; entry++) {
        const shmserve_entry *described = &schema->entries[entry];
        places[entry].data = entry_place(described, payload, schema->sizes_count, schema->places_room, &leaf, &word,
                                         &places[entry].bytes);
        places[entry].shape = own_sizes + described->first_size;
    }
    if (slot->written_schema != schema->number) {
        memcpy(metadata, schema->metadata, schema->metadata_bytes);
        slot->written_schema = schema->number;
    }
    slot->request = (shmserve_request){
        .sequence = slot->sequence, .schema = schema, .places = places, .payload = payload, .payload_bytes = bytes};
}

EXPORTED int shmserve_loan(shmserve_client *client, const shmserve_schema *schema, const uint64_t *sizes,
                           const shmserve_request **request)
{
    Slot *slot;
    shmserve_sequence sequence;
    uint64_t bytes;
    *request = NULL;
    if (schema == NULL || schema->owner != client)
        return fail(client, SHMSERVE_ARGUMENT, "a request is lent for a structure that this client declared");
    int status = claim(client, &slot, &sequence);
    if (status != SHMSERVE_OK)
        return status;
    if (sizes == NULL) {
        sizes = schema->default_sizes;
        for (uint32_t size = 0; size < schema->sizes_count; size++)
            if (sizes[size] == SHMSERVE_ANY_SIZE)
                return fail(
                    client, SHMSERVE_ARGUMENT,
                    "size %u of the structure was declared as SHMSERVE_ANY_SIZE or 0: give the sizes of this request",
                    size);
    }
    if ((status = compare_sizes(client, schema, sizes)) != SHMSERVE_OK)
        return status;
    if (!lay_out(schema->leaves, schema->leaves_count, sizes, schema->sizes_count, schema->numbers_count,
                 schema->places_room, &bytes))
        return fail(client, SHMSERVE_ARGUMENT, "no payload has these sizes: it has %llu bytes at most",
                    (unsigned long long)MAX_PAYLOAD_BYTES);
    if (bytes > client->channel.requests.payload_bytes ||
        schema->metadata_bytes > client->channel.requests.metadata_bytes)
        return grow_requests(client, schema->metadata_bytes, bytes);
    slot->sequence = sequence;
    slot->state = SLOT_LOANED;
    slot->is_reset = slot->is_gone = false;
    slot->write_id = 0;
    client->last_name = number_of(sequence);
    fill_in(client, schema, slot, sizes, bytes);
    *request = &slot->request;
    return SHMSERVE_OK;
}

EXPORTED int shmserve_give_back(shmserve_client *client, shmserve_sequence sequence)
{
    Slot *slot = slot_of_sequence(client, sequence);
    if (client->forks != forks_count())
        return check_usable(client);
    if (slot == NULL || slot->state != SLOT_LOANED)
        return ended(client, sequence);
    slot->state = SLOT_FREE;
    return SHMSERVE_OK;
}

static int check_terms(shmserve_client *client, const shmserve_terms *terms, uint64_t now_ns)
{
    if (terms->capture_ns > now_ns && terms->capture_ns - now_ns > LONGEST_LEAD_NS)
        return fail(
            client, SHMSERVE_ARGUMENT,
            "capture_ns = %llu is %.6g s in the future: it is CLOCK_MONOTONIC when the observation was captured, not "
            "the time of day",
            (unsigned long long)terms->capture_ns, (double)(terms->capture_ns - now_ns) / 1e9);
    return SHMSERVE_OK;
}

/* Make a request visible to the engine and ring. */
static void publish(shmserve_client *client, Slot *slot, uint64_t kind, uint64_t flags, const shmserve_terms *terms,
                    uint64_t now_ns)
{
    const shmserve_schema *schema = kind == KIND_INFER ? slot->request.schema : NULL;
    uint64_t capture_ns = terms->capture_ns ? terms->capture_ns : terms->max_age_ns ? now_ns : 0;
    slot->wire = sequence_of(++client->last_number, slot_of(slot->sequence));
    uint64_t words[REQUEST_WORDS] = {slot->wire,
                                     kind,
                                     flags,
                                     terms->deadline_ns,
                                     capture_ns,
                                     terms->max_age_ns,
                                     now_ns,
                                     schema != NULL ? schema->number : 0,
                                     schema != NULL ? schema->metadata_bytes : 0,
                                     schema != NULL ? slot->request.payload_bytes : 0,
                                     0,
                                     slot->write_id};
    slot->state = SLOT_IN_FLIGHT;
    slot->withheld_ns = 0;
    client->stats.published++;
    ring_publish(client->channel.requests.ring.line, request_head(client, slot->sequence), words);
    ring_engine(&client->channel);
}

EXPORTED int shmserve_publish(shmserve_client *client, shmserve_sequence sequence, const shmserve_terms *terms)
{
    static const shmserve_terms plain = {0};
    Slot *slot = slot_of_sequence(client, sequence);
    uint64_t now_ns = monotonic_ns();
    int status = check_usable(client);
    if (status != SHMSERVE_OK)
        return status;
    if (slot == NULL || slot->state != SLOT_LOANED)
        return ended(client, sequence);
    terms = terms != NULL ? terms : &plain;
    if ((status = check_terms(client, terms, now_ns)) != SHMSERVE_OK)
        return status;
    publish(client, slot, KIND_INFER,
            (terms->supersede ? FLAG_SUPERSEDE : 0) | (terms->repeatable ? FLAG_REPEATABLE : 0) |
                (terms->real_time_chunking ? FLAG_REAL_TIME_CHUNKING : 0),
            terms, now_ns);
    return SHMSERVE_OK;
}

static void touch(const volatile char *memory, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += CACHE_LINE)
        (void)memory[at];
}

EXPORTED int shmserve_expect(shmserve_client *client, uint64_t within_ns)
{
    int status = check_usable(client);
    shmserve_sequence sequence;
    if (status != SHMSERVE_OK)
        return status;
    const Watch watch = {.line = client->channel.replies.ring.line};
    store_relaxed(&client->channel.requests.ring.line->expected_ns, after(within_ns));
    if (is_asleep(&watch))
        ring_engine(&client->channel);
    if (next_slot(client, &sequence) != NULL) {
        size_t bytes = client->channel.requests.ring.stride;
        touch((const char *)request_head(client, sequence), bytes < TOUCHED_BYTES ? bytes : TOUCHED_BYTES);
        touch((const char *)reply_head(client, sequence), SLOT_HEAD_BYTES);
    }
    return SHMSERVE_OK;
}

EXPORTED int shmserve_cancel(shmserve_client *client, shmserve_sequence sequence)
{
    uint64_t words[REPLY_WORDS];
    Slot *slot = slot_of_sequence(client, sequence);
    int status = check_usable(client);
    if (status != SHMSERVE_OK)
        return status;
    if (slot != NULL && slot->state == SLOT_CANCELLED)
        return SHMSERVE_OK;
    if (slot == NULL || slot->state != SLOT_IN_FLIGHT ||
        ring_copy_reply(reply_head(client, sequence), slot->wire, words))
        return ended(client, sequence);
    RequestHead *head = request_head(client, sequence);
    if (!ring_is_taken(reply_head(client, sequence), slot->wire)) {
        ring_cancel(head, slot->wire);
        if (!ring_is_taken(reply_head(client, sequence), slot->wire)) {
            slot->state = SLOT_CANCELLED;
            return SHMSERVE_OK;
        }
        ring_keep(head);
    }
    return fail(client, SHMSERVE_RUNNING, "an engine of '%s' has taken request %llu already: wait for its reply",
                client->service, (unsigned long long)number_of(sequence));
}

void abandon_quietly(shmserve_client *client, shmserve_sequence sequence)
{
    Slot *slot = slot_of_sequence(client, sequence);
    if (slot == NULL)
        return;
    if (slot->state == SLOT_IN_FLIGHT)
        ring_cancel(request_head(client, sequence), slot->wire);
    /* A deferred one is answered already; nothing is lent before the channel has been resized. */
    bool is_answered = slot->state == SLOT_DEFERRED || slot->is_gone;
    slot->state = is_answered ? SLOT_FREE : SLOT_ABANDONED;
    client->abandoned_count += !is_answered;
}

EXPORTED int shmserve_abandon(shmserve_client *client, shmserve_sequence sequence)
{
    Slot *slot = slot_of_sequence(client, sequence);
    int status = check_usable(client);
    if (status != SHMSERVE_OK)
        return status;
    if (slot == NULL ||
        (slot->state != SLOT_IN_FLIGHT && slot->state != SLOT_CANCELLED && slot->state != SLOT_DEFERRED))
        return ended(client, sequence);
    abandon_quietly(client, sequence);
    return SHMSERVE_OK;
}

EXPORTED int shmserve_reset(shmserve_client *client, uint64_t deadline_ns)
{
    shmserve_terms terms = {.deadline_ns = deadline_ns};
    shmserve_sequence sequence;
    Slot *slot;
    int status = claim(client, &slot, &sequence);
    if (status != SHMSERVE_OK)
        return status;
    slot->sequence = sequence;
    slot->is_reset = true;
    slot->is_gone = false;
    slot->write_id = 0;
    client->last_name = number_of(sequence);
    publish(client, slot, KIND_RESET, FLAG_REPEATABLE, &terms, monotonic_ns());
    status = shmserve_wait(client, sequence, deadline_ns ? deadline_ns : UINT64_MAX, NULL);
    if (status == SHMSERVE_TIMEOUT)
        abandon_quietly(client, sequence);
    return status;
}
