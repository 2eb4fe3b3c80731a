/* Only looks for the reply to a request that the obedient policy keeps waiting, and counts how often the library asks for
 * the daemon's end: looker RUNTIME_DIR SERVICE GATE LOOKS. */

#include <shmserve.h>

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t polls;

/* In place of the C library's. */
int poll(struct pollfd *polled, nfds_t count, int timeout_ms)
{
    const struct timespec wait = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000L};
    polls++;
    return ppoll(polled, count, timeout_ms < 0 ? NULL : &wait, NULL);
}

int main(int count, char **arguments)
{
    static const shmserve_entry entries[] = {{.path = "do", .kind = SHMSERVE_STR}, {.path = "gate", .kind = SHMSERVE_STR}};
    shmserve_client *client;
    shmserve_options options;
    const shmserve_schema *schema;
    const shmserve_request *request;
    if (count < 5)
        return 2;
    uint64_t sizes[] = {strlen("wait"), strlen(arguments[3])};
    shmserve_default_options(&options, sizeof options);
    options.runtime_dir = arguments[1];
    options.service = arguments[2];
    if (shmserve_open(&client, &options, 60000000000u) != SHMSERVE_OK ||
        shmserve_declare(client, entries, 2, &schema) != SHMSERVE_OK ||
        shmserve_loan(client, schema, sizes, &request) != SHMSERVE_OK) {
        fprintf(stderr, "%s\n", shmserve_last_error(client));
        return 1;
    }
    shmserve_sequence sequence = request->sequence;
    memcpy(request->places[0].data, "wait", sizes[0]);
    memcpy(request->places[1].data, arguments[3], sizes[1]);
    (void)shmserve_publish(client, sequence, NULL);
    uint64_t began_ns = shmserve_now_ns();
    polls = 0;
    for (int64_t look = 0; look < atoll(arguments[4]); look++)
        if (shmserve_wait(client, sequence, 0, NULL) != SHMSERVE_TIMEOUT) {
            fprintf(stderr, "%s\n", shmserve_last_error(client));
            return 1;
        }
    printf("polls %" PRIu64 " most %" PRIu64 "\n", polls, 1 + (shmserve_now_ns() - began_ns) / 50000000u);
    (void)shmserve_abandon(client, sequence);
    shmserve_close(client);
    return 0;
}
