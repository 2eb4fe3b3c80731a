/* Replies: from the engine's words to entries. [R]: nothing here allocates or takes a lock.
 *
 * A reply is memory of another process, which may change it at any time and say anything: head, metadata and sizes are
 * copied once, everything is computed from the copies and checked against the slot, and only leaves are read where they
 * lie.
 */

#include "client.h"

#include <stdio.h>
#include <string.h>

/* The entry of a NULL or an empty result. */
static int unreadable_reply(shmserve_client *client, const uint64_t words[REPLY_WORDS], const char *why)
{
    return fail(
        client, SHMSERVE_PROTOCOL,
        "the reply of '%s' cannot be read: %s (request %llu in slot %llu: status %llu, flags %#llx, structure %#llx of "
        "%llu bytes): install the same shmserve on both sides",
        client->service, why, (unsigned long long)number_of(words[REPLY_SEQUENCE]),
        (unsigned long long)slot_of(words[REPLY_SEQUENCE]), (unsigned long long)words[REPLY_STATUS],
        (unsigned long long)words[REPLY_FLAGS], (unsigned long long)words[REPLY_SCHEMA],
        (unsigned long long)words[REPLY_METADATA_BYTES]);
}

/* A structure that is remembered by the engine's number; NULL if there is none. */
static shmserve_schema *known_structure(shmserve_client *client, uint64_t number)
{
    for (int index = 0; number && index < REPLY_STRUCTURES; index++)
        if (client->structures[index].number == number)
            return &client->structures[index];
    return NULL;
}

/* The memory of the structure that was used longest ago, of those that no reply needs; NULL if there is none. */
static shmserve_schema *oldest_structure(shmserve_client *client)
{
    shmserve_schema *oldest = NULL;
    for (int index = 0; index < REPLY_STRUCTURES; index++) {
        shmserve_schema *schema = &client->structures[index];
        if (!schema->holders && (oldest == NULL || schema->last_used < oldest->last_used))
            oldest = schema;
    }
    return oldest;
}

static int resize_required(shmserve_client *client)
{
    return fail(
        client, SHMSERVE_RESIZE_REQUIRED,
        "a reply of '%s' needs more room than there is: call shmserve_recover, then wait for the same request again",
        client->service);
}

/* Read a structure that is new; NULL with *status. */
static shmserve_schema *read_structure(shmserve_client *client, const char *metadata, const uint64_t words[REPLY_WORDS],
                                       int *status)
{
    uint64_t bytes = words[REPLY_METADATA_BYTES];
    Schema tree;
    if (!bytes || bytes > client->channel.replies.metadata_bytes || bytes > METADATA_LIMIT) {
        *status = unreadable_reply(client, words, "its metadata is longer than its slot, or there is none");
        return NULL;
    }
    shmserve_schema *schema = oldest_structure(client);
    if (schema == NULL) {
        *status = fail(client, SHMSERVE_EXHAUSTED, "%d replies of different structures are held: release some",
                       REPLY_STRUCTURES);
        return NULL;
    }
    memcpy(client->metadata, metadata, bytes);
    int found = schema_read_into(&tree, &client->reader, client->metadata, bytes);
    if (found == SCHEMA_ROOM && client->needed_room.nodes_room <= client->room.nodes_room)
        client->needed_room.nodes_room = 2 * client->room.nodes_room;
    schema->number = 0;
    if (found == 1 && tree.devices_count) {
        *status = unreadable_reply(client, words, "an array of it lies in GPU memory, which this library does not read");
        return NULL;
    }
    if (found == 1)
        found = structure_fill(schema, &tree, client->metadata, client->path, &client->room, &client->needed_room);
    if (found == 1) {
        schema->number = words[REPLY_SCHEMA];
        schema->structure = ++client->structures_read;
        return schema;
    }
    *status = found == SCHEMA_ROOM ? resize_required(client)
                                   : unreadable_reply(client, words, "its metadata is not that of a tree");
    return NULL;
}

/* The structure of a reply, and the views of its entries. */
static int read_tree(shmserve_client *client, Slot *slot, const uint64_t words[REPLY_WORDS])
{
    const Segment *replies = &client->channel.replies;
    char *metadata = (char *)ring_head(&replies->ring, slot->wire) + SLOT_HEAD_BYTES;
    char *payload = metadata + replies->metadata_bytes;
    uint64_t payload_bytes = words[REPLY_PAYLOAD_BYTES], laid_out;
    uint32_t leaf = 0, word = 0;
    int status = SHMSERVE_OK;
    if (words[REPLY_FLAGS] & FLAG_PICKLED)
        return fail(
            client, SHMSERVE_PROTOCOL,
            "the reply of '%s' holds Python objects, which only Python can read: let the policy return dicts, lists, "
            "arrays, numbers and texts",
            client->service);
    shmserve_schema *schema = known_structure(client, words[REPLY_SCHEMA]);
    if (schema == NULL && (schema = read_structure(client, metadata, words, &status)) == NULL)
        return status;
    schema->last_used = ++client->uses;
    size_t front = (size_t)WORD * (schema->sizes_count + (size_t)schema->numbers_count);
    if (payload_bytes > replies->payload_bytes || front > payload_bytes)
        return unreadable_reply(client, words, "its payload is longer than its slot, or shorter than its sizes");
    const Word *sizes = (const Word *)payload;
    for (uint32_t size = 0; size < schema->sizes_count; size++)
        slot->reply_sizes[size] = load_relaxed(&sizes[size]);
    if (!lay_out(schema->leaves, schema->leaves_count, slot->reply_sizes, schema->sizes_count, schema->numbers_count,
                 client->places, &laid_out) ||
        laid_out != payload_bytes)
        return unreadable_reply(client, words, "its sizes describe another number of bytes than it has");
    for (uint32_t entry = 0; entry < schema->entries_count; entry++) {
        const shmserve_entry *described = &schema->entries[entry];
        slot->views[entry].data = entry_place(described, payload, schema->sizes_count, client->places, &leaf, &word,
                                              &slot->views[entry].bytes);
        slot->views[entry].shape = slot->reply_sizes + described->first_size;
    }
    slot->reply_schema = schema;
    slot->reply.payload = payload;
    slot->reply.payload_bytes = payload_bytes;
    return SHMSERVE_OK;
}

/* A text of a reply, cut at a whole character. */
static void copy_text(char *to, size_t room, const shmserve_view *view)
{
    bool is_cut = view->bytes >= room;
    size_t bytes = is_cut ? room - 1 : (size_t)view->bytes;
    memcpy(to, view->data, is_cut ? room : bytes); /* with the first byte that is cut off, which tells whether it goes on */
    while (is_cut && bytes && (to[bytes] & 0xc0) == 0x80)
        bytes--;
    to[bytes] = '\0';
}

/* The type and the text of an error; they stay empty where there are none. */
static void read_error(shmserve_client *client, Slot *slot, const uint64_t words[REPLY_WORDS])
{
    if (!words[REPLY_METADATA_BYTES] || read_tree(client, slot, words) != SHMSERVE_OK)
        return;
    const shmserve_schema *schema = slot->reply_schema;
    if (schema->entries_count == 3 && schema->entries[0].kind == SHMSERVE_TUPLE &&
        schema->entries[1].kind == SHMSERVE_STR && schema->entries[2].kind == SHMSERVE_STR) {
        copy_text(slot->error_type, sizeof slot->error_type, &slot->views[1]);
        copy_text(slot->error_text, sizeof slot->error_text, &slot->views[2]);
    }
    slot->reply_schema = NULL;
    slot->reply.payload = NULL;
    slot->reply.payload_bytes = 0;
}

/* The text of a reply that is no result, as client/error_mapping.py has it. */
static int explain(shmserve_client *client, const Slot *slot, uint64_t status)
{
    const char *service = client->service, *kind = slot->error_type, *text = slot->error_text;
    unsigned long long number = number_of(slot->sequence);
    switch (status) {
    case STATUS_FAILED:
        return fail(client, SHMSERVE_FAILED, "the model raised %s: %s (the traceback is in the daemon's log)", kind,
                    text);
    case STATUS_REJECTED:
        if (strcmp(kind, "ValueOutOfRange") == 0)
            return fail(client, SHMSERVE_REJECTED, "request %llu to '%s' was not run: %s", number, service, text);
        if (strcmp(kind, "TooManyRequests") == 0)
            return fail(client, SHMSERVE_REJECTED,
                        "request %llu to '%s' was not run: %s; send fewer, or ask the operator for more", number,
                        service, text);
        return fail(client, SHMSERVE_REJECTED, "request %llu to '%s' was rejected: %s", number, service, text);
    case STATUS_EXPIRED:
        return fail(client, SHMSERVE_EXPIRED,
                    "request %llu to '%s' expired before its turn came; the model did not run", number, service);
    case STATUS_STALE:
        return fail(client, SHMSERVE_STALE,
                    "request %llu to '%s': the observation was too old when its turn came; the model did not run",
                    number, service);
    case STATUS_CANCELLED:
        return fail(client, SHMSERVE_CANCELLED, "request %llu to '%s' was cancelled before it ran", number, service);
    case STATUS_SUPERSEDED:
        return fail(client, SHMSERVE_SUPERSEDED, "request %llu to '%s' was replaced by a newer one before it ran",
                    number, service);
    case STATUS_ENGINE_LOST:
        return fail(client, SHMSERVE_ENGINE_LOST, "request %llu to '%s': %s; another engine serves the next request",
                    number, service, text);
    case STATUS_STOPPING:
        return fail(client, SHMSERVE_STOPPING,
                    "request %llu to '%s' was not started: the daemon is stopping; its successor can be asked", number,
                    service);
    default:
        return fail(client, SHMSERVE_PROTOCOL,
                    "request %llu to '%s' ended with status %llu, which this client does not know", number, service,
                    (unsigned long long)status);
    }
}

static int defer(shmserve_client *client, Slot *slot, const uint64_t words[REPLY_WORDS])
{
    uint64_t metadata = words[REPLY_METADATA_BYTES], payload = words[REPLY_PAYLOAD_BYTES];
    if (metadata > MAX_METADATA_BYTES || payload > MAX_PAYLOAD_BYTES) {
        slot->state = SLOT_FREE;
        return unreadable_reply(client, words, "it needs more room than any slot can have");
    }
    if (metadata > client->wanted.reply_metadata)
        client->wanted.reply_metadata = metadata;
    if (payload > client->wanted.reply_bytes)
        client->wanted.reply_bytes = payload;
    slot->state = SLOT_DEFERRED;
    client->must_resize = true;
    return resize_required(client);
}

int read_reply(shmserve_client *client, Slot *slot, const uint64_t words[REPLY_WORDS])
{
    uint64_t status = words[REPLY_STATUS], flags = words[REPLY_FLAGS];
    slot->reply =
        (shmserve_reply){.sequence = slot->sequence,
                         .clamped = (flags & FLAG_CLAMPED) != 0,
                         .in_place = (flags & FLAG_IN_PLACE) != 0,
                         .stateful = (flags & FLAG_STATEFUL) != 0,
                         .source = flags & FLAG_REMOTE ? 1 : flags & FLAG_FALLBACK ? 2 : 0,
                         .attempts = words[REPLY_ATTEMPTS] > UINT32_MAX ? UINT32_MAX : (uint32_t)words[REPLY_ATTEMPTS],
                         .model_version = words[REPLY_VERSION],
                         .queued_ns = words[REPLY_QUEUED_NS],
                         .staged_ns = words[REPLY_STAGED_NS],
                         .infer_ns = words[REPLY_INFER_NS],
                         .copied_ns = words[REPLY_COPIED_NS],
                         .error_type = slot->error_type,
                         .error_text = slot->error_text};
    slot->error_type[0] = slot->error_text[0] = '\0';
    slot->reply_schema = NULL;
    if (status == STATUS_RESIZE_REQUIRED)
        return defer(client, slot, words);
    client->is_stateful = slot->reply.stateful ? 1 : 0;
    if (status != STATUS_OK) {
        read_error(client, slot, words);
        slot->state = SLOT_FREE;
        return slot->reply.status = explain(client, slot, status);
    }
    int read = slot->is_reset ? SHMSERVE_OK : read_tree(client, slot, words);
    if (read == SHMSERVE_RESIZE_REQUIRED || read == SHMSERVE_EXHAUSTED)
        return read; /* it stays in flight, and is read again */
    slot->reply.status = read;
    if (read != SHMSERVE_OK) {
        slot->state = SLOT_FREE;
        return read;
    }
    slot->state = SLOT_HELD;
    if (slot->reply_schema != NULL) {
        slot->reply_schema->holders++;
        slot->reply.schema = slot->reply_schema;
        slot->reply.structure = slot->reply_schema->structure;
        slot->reply.views = slot->views;
    }
    return SHMSERVE_OK;
}

EXPORTED int shmserve_release(shmserve_client *client, shmserve_sequence sequence)
{
    Slot *slot = slot_of_sequence(client, sequence);
    if (client->forks != forks_count())
        return check_usable(client);
    if (slot == NULL || slot->state != SLOT_HELD)
        return fail(client, SHMSERVE_ENDED, "no reply to request %llu of '%s' is held",
                    (unsigned long long)number_of(sequence), client->service);
    if (slot->reply_schema != NULL)
        slot->reply_schema->holders--;
    slot->reply_schema = NULL;
    slot->state = SLOT_FREE;
    return SHMSERVE_OK;
}
