/* A request and its reply in one call, with copies. [R]. */

#include "client.h"

#include <string.h>

/* Copy the entries into a loan. The write is announced, so that the engine can copy it while it goes on. */
static int fill(shmserve_client *client, Slot *slot, const void *const *values)
{
    const shmserve_request *request = &slot->request;
    const shmserve_schema *schema = request->schema;
    CounterLine *line = client->channel.requests.ring.line;
    bool is_announced = request->payload_bytes >= CUT_THROUGH_BYTES;
    const char *payload = request->payload;
    for (uint32_t entry = 0; entry < schema->entries_count; entry++)
        if (values[entry] == NULL && request->places[entry].data != NULL && request->places[entry].bytes)
            return fail(client, SHMSERVE_ARGUMENT, "no value is given for entry '%.200s'", schema->entries[entry].path);
    if (is_announced)
        slot->write_id = announce_write(line, slot_of(slot->sequence));
    for (int numbers = 1; numbers >= 0; numbers--)
        for (uint32_t entry = 0; entry < schema->entries_count; entry++) {
            const shmserve_place *place = &request->places[entry];
            if (place->data == NULL || is_number((int)schema->entries[entry].kind) != numbers)
                continue;
            for (uint64_t done = 0, piece; done < place->bytes; done += piece) {
                piece = place->bytes - done < CUT_THROUGH_PIECE ? place->bytes - done : CUT_THROUGH_PIECE;
                memcpy((char *)place->data + done, (const char *)values[entry] + done, piece);
                if (is_announced && !numbers)
                    announce_progress(line, (uint64_t)((char *)place->data - payload) + done + piece);
            }
        }
    return SHMSERVE_OK;
}

static bool is_same_kind(const shmserve_output *output, const shmserve_entry *entry)
{
    bool is_array = entry->kind == SHMSERVE_ARRAY || entry->kind == SHMSERVE_SCALAR;
    bool wants_array = output->kind == SHMSERVE_ARRAY || output->kind == SHMSERVE_SCALAR;
    bool has_dtype = is_array || entry->kind == SHMSERVE_LIST;
    return (is_array ? wants_array : output->kind == entry->kind) && (!has_dtype || output->dtype == entry->dtype);
}

static int copy_output(shmserve_client *client, const shmserve_reply *reply, shmserve_output *output)
{
    int index = reply->schema != NULL ? shmserve_find(reply->schema, output->path) : -1;
    output->bytes = 0;
    if (index < 0)
        return fail(client, SHMSERVE_MISMATCH, "the reply of '%s' has no entry '%.200s': see shmserve_describe",
                    client->service, output->path);
    const shmserve_entry *entry = &reply->schema->entries[index];
    const shmserve_view *view = &reply->views[index];
    if (!is_same_kind(output, entry) || view->data == NULL)
        return fail(client, SHMSERVE_MISMATCH,
                    "entry '%.200s' of the reply of '%s' has kind %d and dtype %d, not %d and %d", output->path,
                    client->service, (int)entry->kind, (int)entry->dtype, (int)output->kind, (int)output->dtype);
    if (view->bytes > output->room)
        return fail(client, SHMSERVE_MISMATCH,
                    "entry '%.200s' of the reply of '%s' has %llu bytes, and there is room for %llu", output->path,
                    client->service, (unsigned long long)view->bytes, (unsigned long long)output->room);
    memcpy(output->into, view->data, view->bytes);
    output->bytes = view->bytes;
    output->dims = entry->dims;
    for (uint32_t dimension = 0; dimension < entry->dims; dimension++)
        output->shape[dimension] = view->shape[dimension];
    return SHMSERVE_OK;
}

EXPORTED int shmserve_infer(shmserve_client *client, const shmserve_schema *schema, const uint64_t *sizes,
                            const void *const *values, const shmserve_terms *terms, shmserve_output *outputs,
                            size_t outputs_count)
{
    const shmserve_request *request;
    const shmserve_reply *reply;
    uint64_t until_ns = terms != NULL && terms->deadline_ns ? terms->deadline_ns : UINT64_MAX;
    int status = shmserve_loan(client, schema, sizes, &request);
    if (status != SHMSERVE_OK)
        return status;
    shmserve_sequence sequence = request->sequence;
    status = fill(client, slot_of_sequence(client, sequence), values);
    if (status == SHMSERVE_OK)
        status = shmserve_publish(client, sequence, terms);
    if (status != SHMSERVE_OK) {
        (void)shmserve_give_back(client, sequence);
        return status;
    }
    status = shmserve_wait(client, sequence, until_ns, &reply);
    if (status == SHMSERVE_TIMEOUT || status == SHMSERVE_RESIZE_REQUIRED || status == SHMSERVE_EXHAUSTED)
        abandon_quietly(client, sequence);
    if (status != SHMSERVE_OK)
        return status;
    for (size_t index = 0; status == SHMSERVE_OK && index < outputs_count; index++)
        status = copy_output(client, reply, &outputs[index]);
    (void)shmserve_release(client, sequence);
    return status;
}
