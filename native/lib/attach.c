/* Getting a channel, resizing it, and replacing one that was lost. */

#include "client.h"
#include "core/clock.h"
#include "core/utf8.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WANTED_ROOM = 256, DEFERRED_ROOM = 24 * MAX_SLOTS };
/* A resize that has begun is given this time, however little its caller has left. */
#define LEAST_RESIZE_NS 1000000000u
#define LEAST_CALL_NS 1000000u

static void write_wanted(char *to, const shmserve_client *client, const Capacity *wanted)
{
    (void)snprintf(to, WANTED_ROOM,
                   "{\"slots\":%u,\"request_metadata\":%llu,\"request_bytes\":%llu,\"reply_metadata\":%llu,"
                   "\"reply_bytes\":%llu}",
                   client->options.slots, (unsigned long long)wanted->request_metadata,
                   (unsigned long long)wanted->request_bytes, (unsigned long long)wanted->reply_metadata,
                   (unsigned long long)wanted->reply_bytes);
}

static uint64_t at_least(uint64_t deadline_ns, uint64_t least_ns)
{
    uint64_t least = monotonic_ns() + least_ns;
    return deadline_ns > least ? deadline_ns : least;
}

bool is_version(const char *text)
{
    size_t count = text != NULL ? strlen(text) : 0;
    return count >= 1 && count <= 16 && strspn(text, "0123456789abcdef") == count;
}

static bool is_model(const Json *json, const JsonValue *model)
{
    const JsonValue *contract = json_member(json, model, "contract");
    return json_is(model, JSON_OBJECT) && json_is_bool(json_member(json, model, "stateful")) &&
           is_version(json_text(json, json_member(json, model, "version"))) &&
           (contract == NULL || json_is(contract, JSON_NULL) || json_is(contract, JSON_OBJECT));
}

/* Ask the daemon for its description; its values become client->description. */
static int describe(shmserve_client *client, uint64_t deadline_ns)
{
    Descriptors descriptors;
    int status;
    const JsonValue *found =
        call(client, "Describe", "{}", at_least(deadline_ns, LEAST_CALL_NS), &descriptors, &status);
    if (found == NULL)
        return status;
    close_descriptors(&descriptors);
    const JsonValue *model = json_member(&client->reply, found, "model");
    bool has_model = model != NULL && !json_is(model, JSON_NULL);
    if (!json_is(json_member(&client->reply, found, "state"), JSON_STRING) ||
        (has_model && !is_model(&client->reply, model)))
        return unreadable(client, "Describe", "it holds no state, or a model without name, version and kind");
    Json before = client->description;
    client->description = client->reply;
    client->reply = before;
    client->reply.count = 0;
    client->model = has_model ? model : NULL;
    return SHMSERVE_OK;
}

int refresh_model(shmserve_client *client, uint64_t deadline_ns)
{
    int status = describe(client, deadline_ns);
    if (status != SHMSERVE_OK)
        return status;
    client->described_ns = monotonic_ns();
    if (client->model != NULL && client->is_stateful < 0)
        client->is_stateful = json_is(json_member(&client->description, client->model, "stateful"), JSON_TRUE) ? 1 : 0;
    return SHMSERVE_OK;
}

static void close_lease(shmserve_client *client)
{
    if (client->lease >= 0)
        close(client->lease);
    client->lease = -1;
}

void detach(shmserve_client *client)
{
    channel_close(&client->channel, false);
    close_lease(client);
    client->model = NULL;
    client->is_lost = client->must_resize = false;
    robot_forget(client);
    client->abandoned_count = 0;
    for (int slot = 0; slot < MAX_SLOTS; slot++) {
        client->slots[slot].state = SLOT_FREE;
        client->slots[slot].sequence = 0;
        client->slots[slot].written_schema = 0;
        client->slots[slot].is_gone = false;
    }
    for (int index = 0; index < REPLY_STRUCTURES; index++) {
        client->structures[index].number = 0;
        client->structures[index].holders = 0;
    }
}

/* Start in this generation of the channel. */
static void begin(shmserve_client *client)
{
    Ring *requests = &client->channel.requests.ring;
    /* A daemon may give fewer than it was asked for; of more only these have memory of their own here. */
    client->slots_count = requests->slots < client->options.slots ? (uint32_t)requests->slots : client->options.slots;
    client->last_number = number_of(load_relaxed(&requests->line->counter));
    if (client->last_name < client->last_number)
        client->last_name = client->last_number;
    store_relaxed(&requests->line->period_ns, client->options.period_ns);
}

static int attach_once(shmserve_client *client, uint64_t deadline_ns)
{
    char program[512], wanted[WANTED_ROOM], parameters[1024];
    Descriptors descriptors;
    int status = connect_lease(client, deadline_ns);
    if (status != SHMSERVE_OK)
        return status;
    if (!is_utf8((const uint8_t *)client->program, strlen(client->program)) ||
        !json_escape(program, sizeof program, client->program))
        strcpy(program, "C program");
    write_wanted(wanted, client, &client->wanted);
    (void)snprintf(parameters, sizeof parameters, "{\"wire_version\":%d,\"wanted\":%s,\"program\":\"%s\"}",
                   WIRE_VERSION, wanted, program);
    const JsonValue *found =
        call(client, "Attach", parameters, at_least(deadline_ns, LEAST_CALL_NS), &descriptors, &status);
    if (found != NULL) {
        const JsonValue *info = json_member(&client->reply, found, "channel_info");
        status = channel_open(client, &client->channel, info, &descriptors, NULL);
    }
    client->is_stateful = -1;
    if (status == SHMSERVE_OK)
        status = refresh_model(client, deadline_ns);
    if (status == SHMSERVE_OK)
        status = robot_compare(client, at_least(deadline_ns, LEAST_CALL_NS));
    if (status != SHMSERVE_OK && status != SHMSERVE_MISMATCH) {
        detach(client);
        return status;
    }
    client->granted = client->wanted;
    client->stats.attached++;
    begin(client);
    int compared = compare_all(client);
    return status != SHMSERVE_OK ? robot_admit(client) : compared;
}

static int attach_or_shrink(shmserve_client *client, uint64_t deadline_ns)
{
    Capacity first = {.request_bytes = client->options.request_bytes, .reply_bytes = client->options.reply_bytes};
    int status = attach_once(client, deadline_ns);
    if (status == SHMSERVE_TOO_LARGE && memcmp(&client->wanted, &first, sizeof first) != 0) {
        /* What it grew to under an earlier daemon is more than this one allows. */
        client->wanted = first;
        status = attach_once(client, deadline_ns);
    }
    return status;
}

int attach(shmserve_client *client, uint64_t deadline_ns)
{
    uint64_t delay_ns = client->options.retry_delay_ns;
    for (uint32_t failures = 1;; failures++) {
        int status = attach_or_shrink(client, deadline_ns);
        uint64_t now_ns = monotonic_ns();
        if (status != SHMSERVE_UNAVAILABLE || failures > client->options.max_retries || now_ns >= deadline_ns ||
            delay_ns >= deadline_ns - now_ns)
            return status;
        struct timespec pause = {.tv_sec = (time_t)(delay_ns / 1000000000u), .tv_nsec = (long)(delay_ns % 1000000000u)};
        while (nanosleep(&pause, &pause) != 0)
            ;
    }
}

/* Half as much again for each size that grows: lengths may grow a little with each request. */
static uint64_t with_headroom(uint64_t needed, uint64_t granted, uint64_t limit)
{
    uint64_t more = granted + granted / 2 < limit ? granted + granted / 2 : limit;
    return needed > granted && more > needed ? more : needed;
}

static int ask_resize(shmserve_client *client, const Capacity *wanted, const char *deferred, uint64_t deadline_ns,
                      Channel *channel)
{
    char parameters[WANTED_ROOM + DEFERRED_ROOM + 64], slots[WANTED_ROOM];
    Descriptors descriptors;
    int status;
    write_wanted(slots, client, wanted);
    (void)snprintf(parameters, sizeof parameters, "{\"wanted\":%s,\"published\":%llu,\"deferred\":[%s]}", slots,
                   (unsigned long long)load_relaxed(&client->channel.requests.ring.line->counter), deferred);
    const JsonValue *found =
        call(client, "Resize", parameters, at_least(deadline_ns, LEAST_RESIZE_NS), &descriptors, &status);
    if (found == NULL)
        return status;
    client->granted = *wanted;
    const JsonValue *info = json_member(&client->reply, found, "channel_info");
    bool is_sealed = client->channel.request_bell == NULL;
    status = channel_open(client, channel, info, &descriptors, is_sealed ? &client->channel : NULL);
    if (status == SHMSERVE_OK && channel->requests.ring.slots < client->slots_count) {
        channel_close(channel, is_sealed);
        status = unreadable(client, "Resize", "its channel has fewer slots than before");
    }
    return status;
}

/* Whether requests or loans live in this generation of the channel, so that it cannot be resized. */
static bool is_busy(const shmserve_client *client)
{
    for (uint32_t slot = 0; slot < client->slots_count; slot++) {
        enum slot_state state = client->slots[slot].state;
        if (state == SLOT_LOANED || state == SLOT_IN_FLIGHT || state == SLOT_HELD)
            return true;
    }
    return false;
}

static void end_deferred(shmserve_client *client)
{
    for (uint32_t slot = 0; slot < client->slots_count; slot++)
        if (client->slots[slot].state == SLOT_DEFERRED)
            client->slots[slot].state = SLOT_FREE;
}

static int resize(shmserve_client *client, uint64_t deadline_ns)
{
    char deferred[DEFERRED_ROOM] = "";
    size_t at = 0;
    if (is_busy(client))
        return fail(
            client, SHMSERVE_EXHAUSTED,
            "requests in flight, loans or replies keep '%s' from making larger slots: wait for the replies, release "
            "or abandon them, then call shmserve_recover again",
            client->service);
    for (uint32_t slot = 0; slot < client->slots_count; slot++)
        if (client->slots[slot].state == SLOT_DEFERRED)
            at += (size_t)snprintf(deferred + at, sizeof deferred - at, "%s%llu", at ? "," : "",
                                   (unsigned long long)client->slots[slot].wire);
    const Capacity *needed = &client->wanted, *granted = &client->granted;
    Capacity roomy = {
        .request_metadata = with_headroom(needed->request_metadata, granted->request_metadata, MAX_METADATA_BYTES),
        .request_bytes = with_headroom(needed->request_bytes, granted->request_bytes, MAX_PAYLOAD_BYTES),
        .reply_metadata = with_headroom(needed->reply_metadata, granted->reply_metadata, MAX_METADATA_BYTES),
        .reply_bytes = with_headroom(needed->reply_bytes, granted->reply_bytes, MAX_PAYLOAD_BYTES)};
    Channel channel;
    int status = ask_resize(client, &roomy, deferred, deadline_ns, &channel);
    /* The daemon's limits leave no headroom, but perhaps the room that is needed. */
    if (status != SHMSERVE_OK && was_refused(client) && memcmp(&roomy, needed, sizeof roomy) != 0)
        status = ask_resize(client, needed, deferred, deadline_ns, &channel);
    if (status != SHMSERVE_OK && was_refused(client)) {
        client->must_resize = false;
        client->wanted = client->granted; /* or the next small request would ask for it again */
        end_deferred(client);
        return status;
    }
    if (status != SHMSERVE_OK) {
        /* It is unknown which generation the daemon has: begin anew. */
        client->is_lost = true;
        return status;
    }
    channel_close(&client->channel, client->channel.request_bell == NULL);
    client->channel = channel;
    client->stats.resized++;
    client->must_resize = false;
    client->abandoned_count = 0;
    for (uint32_t index = 0; index < client->slots_count; index++) {
        Slot *slot = &client->slots[index];
        slot->written_schema = 0;
        slot->is_gone = slot->state == SLOT_CANCELLED;
        slot->state = slot->state == SLOT_DEFERRED    ? SLOT_IN_FLIGHT
                      : slot->state == SLOT_CANCELLED ? SLOT_CANCELLED
                                                      : SLOT_FREE;
    }
    begin(client);
    return SHMSERVE_OK;
}

static bool is_larger(const Capacity *one, const Capacity *other)
{
    return one->request_metadata > other->request_metadata || one->request_bytes > other->request_bytes ||
           one->reply_metadata > other->reply_metadata || one->reply_bytes > other->reply_bytes;
}

/* Memory for a structure that is larger than any before. */
static int grow_structures(shmserve_client *client)
{
    for (uint32_t slot = 0; slot < client->slots_count; slot++)
        if (client->slots[slot].state == SLOT_HELD)
            return fail(client, SHMSERVE_EXHAUSTED,
                        "a reply of '%s' that is read keeps larger structures from being read: release it, then call "
                        "shmserve_recover again",
                        client->service);
    StructureRoom before = client->room;
    structures_end(client);
    if (structures_begin(client, &client->needed_room) == SHMSERVE_OK)
        return SHMSERVE_OK;
    structures_end(client);
    client->needed_room = before;
    if (structures_begin(client, &before) != SHMSERVE_OK)
        client->is_lost = true; /* no reply can be read any longer */
    return fail(client, SHMSERVE_MEMORY, "this process has no memory for the structure of a reply of '%s'",
                client->service);
}

EXPORTED int shmserve_recover(shmserve_client *client, uint64_t timeout_ns)
{
    uint64_t deadline_ns = after(timeout_ns);
    int status = SHMSERVE_OK;
    if (client->forks != forks_count())
        return check_usable(client);
    if (client->lease < 0 || client->is_lost || is_peer_closed(client->lease)) {
        detach(client);
        status = attach(client, deadline_ns);
        if (status != SHMSERVE_OK && status != SHMSERVE_MISMATCH)
            return status;
    }
    if (client->needed_room.nodes_room > client->room.nodes_room ||
        client->needed_room.paths_room > client->room.paths_room)
        if ((status = grow_structures(client)) != SHMSERVE_OK)
            return status;
    if (client->must_resize || is_larger(&client->wanted, &client->granted))
        return resize(client, deadline_ns);
    if (client->model == NULL && monotonic_ns() - client->described_ns > REFRESH_NS &&
        (status = refresh_model(client, deadline_ns)) == SHMSERVE_OK)
        status = compare_all(client);
    return status == SHMSERVE_OK ? robot_compare(client, at_least(deadline_ns, LEAST_CALL_NS)) : status;
}

EXPORTED int shmserve_describe(shmserve_client *client, char *json, size_t *room, uint64_t timeout_ns)
{
    int status = check_usable(client);
    if (status != SHMSERVE_OK)
        return status;
    if ((status = describe(client, after(timeout_ns))) != SHMSERVE_OK) {
        client->is_lost = is_peer_closed(client->lease);
        return status;
    }
    /* The bytes read lie in the message's memory until the next call. */
    const JsonValue *found = json_member(&client->description, client->description.values, "parameters");
    size_t needed = (size_t)found->bytes + 1;
    bool fits = *room >= needed;
    *room = needed;
    if (!fits)
        return fail(client, SHMSERVE_RESIZE_REQUIRED, "the description takes %zu bytes", needed);
    memcpy(json, client->message + found->at, found->bytes);
    json[found->bytes] = '\0';
    return SHMSERVE_OK;
}
