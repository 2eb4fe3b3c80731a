/* Asks a daemon that lies, and reads every byte of what it is told is a reply.
 *
 *     victim RUNTIME_DIR SERVICE SECONDS
 *
 * It opens a client again and again, asks while it can, and checks that every place of a reply lies in its slot. Every
 * second client states what its robot's numbers mean. It
 * prints how many requests it made and how they ended: OK, refused, others.
 */

#include <shmserve.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t asked, answered, refused, others, attached, read_bytes;

static void check(int is_so, const char *what)
{
    if (!is_so) {
        fprintf(stderr, "outside its slot: %s\n", what);
        abort();
    }
}

static void read_reply(shmserve_client *client, const shmserve_reply *reply)
{
    shmserve_stats stats;
    const shmserve_entry *entries;
    shmserve_get_stats(client, &stats, sizeof stats);
    if (reply->schema == NULL)
        return;
    size_t count = shmserve_entries(reply->schema, &entries);
    const char *begin = reply->payload, *end = begin + stats.reply_bytes;
    check(reply->payload_bytes <= stats.reply_bytes, "payload");
    for (size_t index = 0; index < count; index++) {
        const shmserve_view *view = &reply->views[index];
        const volatile char *bytes = view->data;
        check(strlen(entries[index].path) < 1u << 18 && entries[index].dims <= SHMSERVE_MAX_DIMS, "entry");
        if (bytes == NULL)
            continue;
        check((const char *)view->data >= begin && view->bytes <= stats.reply_bytes &&
                  (const char *)view->data + view->bytes <= end,
              "view");
        uint64_t items = 1;
        for (uint32_t dimension = 0; dimension < entries[index].dims; dimension++)
            items *= view->shape[dimension];
        if (entries[index].kind == SHMSERVE_ARRAY)
            check(items * shmserve_dtype_bytes(entries[index].dtype) == view->bytes, "shape");
        for (uint64_t at = 0; at < view->bytes; at++)
            read_bytes += (unsigned char)bytes[at] != 0;
    }
}

static void ask(shmserve_client *client)
{
    static const shmserve_entry entries[] = {{.path = "a", .kind = SHMSERVE_ARRAY, .dtype = SHMSERVE_F32, .dims = 2}};
    const shmserve_schema *schema;
    uint64_t sizes[] = {3, 4};
    if (shmserve_declare(client, entries, 1, &schema) != SHMSERVE_OK)
        return;
    for (int number = 0; number < 200; number++) {
        const shmserve_request *request;
        const shmserve_reply *reply;
        int status = shmserve_loan(client, schema, sizes, &request);
        if (status == SHMSERVE_OK) {
            asked++;
            shmserve_sequence sequence = request->sequence;
            (void)shmserve_publish(client, sequence, NULL);
            status = shmserve_wait(client, sequence, shmserve_now_ns() + 20000000u, &reply);
            if (status == SHMSERVE_OK)
                read_reply(client, reply);
            if (status == SHMSERVE_OK)
                (void)shmserve_release(client, sequence);
            else if (status == SHMSERVE_TIMEOUT)
                (void)shmserve_abandon(client, sequence);
        }
        answered += status == SHMSERVE_OK;
        refused += status == SHMSERVE_PROTOCOL;
        others += status != SHMSERVE_OK && status != SHMSERVE_PROTOCOL;
        check(status == SHMSERVE_OK || *shmserve_last_error(client), "no text");
        if ((status == SHMSERVE_RESIZE_REQUIRED || status == SHMSERVE_EXHAUSTED) &&
            shmserve_recover(client, 50000000u) != SHMSERVE_OK)
            return;
        if (status == SHMSERVE_RESTARTED || status == SHMSERVE_EVICTED)
            return;
    }
}

int main(int count, char **arguments)
{
    shmserve_options options;
    if (count < 4)
        return 2;
    shmserve_default_options(&options, sizeof options);
    options.runtime_dir = arguments[1];
    options.service = arguments[2];
    options.max_retries = 0;
    uint64_t end_ns = shmserve_now_ns() + strtoull(arguments[3], NULL, 10) * 1000000000u;
    while (shmserve_now_ns() < end_ns) {
        shmserve_client *client;
        const shmserve_schema *schema;
        static char json[1 << 16];
        size_t room = sizeof json;
        options.robot = options.robot == NULL ? "{\"action\":{\"a\":{\"units\":\"m\"}}}" : NULL;
        int status = shmserve_open(&client, &options, 200000000u);
        check(client != NULL || status == SHMSERVE_ARGUMENT, "no client");
        attached += status == SHMSERVE_OK || status == SHMSERVE_MISMATCH;
        if (status == SHMSERVE_OK) {
            (void)shmserve_declare_as_model(client, &schema);
            (void)shmserve_describe(client, json, &room, 50000000u);
            ask(client);
        }
        shmserve_close(client);
    }
    printf("attached %llu asked %llu answered %llu refused %llu others %llu\n", (unsigned long long)attached,
           (unsigned long long)asked, (unsigned long long)answered, (unsigned long long)refused,
           (unsigned long long)others);
    return 0;
}
