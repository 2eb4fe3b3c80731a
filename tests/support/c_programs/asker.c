/* Asks the echo policy again and again, and checks each answer; for tests that count, kill, trap and sanitize.
 *
 *     asker RUNTIME_DIR SERVICE REQUESTS BYTES [trap|trapped]
 *
 * Each request has a number, a text whose length varies and BYTES bytes. It prints "attached", then a line for each
 * 1,000 requests and one for each status that is not OK, and recovers from each. With `trap` a system call that no [R]
 * call may make ends the program once it is attached; with `trapped` the program makes one.
 */

#include "real_time_calls.h"

#include <shmserve.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void stop(shmserve_client *client, const char *what)
{
    arm(0);
    fprintf(stderr, "%s: %s\n", what, shmserve_last_error(client));
    exit(1);
}

static int view_is(const shmserve_reply *reply, int index, const void *bytes, uint64_t count)
{
    return index >= 0 && reply->views[index].bytes == count && memcmp(reply->views[index].data, bytes, count) == 0;
}

static int ask(shmserve_client *client, const shmserve_schema *schema, int64_t number, uint8_t *bytes, uint64_t count)
{
    static char text[512];
    const shmserve_request *request;
    const shmserve_reply *reply;
    uint64_t sizes[] = {(uint64_t)(number % 300), count};
    shmserve_terms terms = {.deadline_ns = shmserve_now_ns() + 20000000000u};
    memset(text, 'a' + (int)(number % 26), sizes[0]);
    bytes[number % (int64_t)count] = (uint8_t)number;
    int status = shmserve_loan(client, schema, sizes, &request);
    if (status != SHMSERVE_OK)
        return status;
    *(int64_t *)request->places[0].data = number;
    memcpy(request->places[1].data, text, sizes[0]);
    memcpy(request->places[2].data, bytes, count);
    shmserve_sequence sequence = request->sequence;
    if ((status = shmserve_publish(client, sequence, &terms)) != SHMSERVE_OK ||
        (status = shmserve_wait(client, sequence, terms.deadline_ns, &reply)) != SHMSERVE_OK)
        return status;
    if (reply->schema == NULL || !view_is(reply, shmserve_find(reply->schema, "number"), &number, sizeof number) ||
        !view_is(reply, shmserve_find(reply->schema, "text"), text, sizes[0]) ||
        !view_is(reply, shmserve_find(reply->schema, "bytes"), bytes, count))
        stop(client, "another request's answer");
    return shmserve_release(client, sequence);
}

/* The calls that need no engine, or no reply. */
static int withdraw(shmserve_client *client, const shmserve_schema *schema)
{
    const shmserve_request *request;
    uint64_t sizes[] = {1, 1};
    int status = shmserve_loan(client, schema, sizes, &request);
    if (status != SHMSERVE_OK)
        return status;
    shmserve_sequence sequence = request->sequence;
    if ((status = shmserve_give_back(client, sequence)) != SHMSERVE_OK ||
        (status = shmserve_expect(client, 1000)) != SHMSERVE_OK || (status = shmserve_alive(client)) != SHMSERVE_OK ||
        (status = shmserve_loan(client, schema, sizes, &request)) != SHMSERVE_OK)
        return status;
    sequence = request->sequence;
    *(int64_t *)request->places[0].data = 0;
    if ((status = shmserve_publish(client, sequence, NULL)) != SHMSERVE_OK)
        return status;
    status = shmserve_cancel(client, sequence);
    if (status == SHMSERVE_OK || status == SHMSERVE_RUNNING)
        status = shmserve_abandon(client, sequence);
    else if (status == SHMSERVE_ENDED) {
        status = shmserve_wait(client, sequence, shmserve_now_ns() + 1000000000u, NULL);
    }
    return status == SHMSERVE_OK ? shmserve_reset(client, shmserve_now_ns() + 20000000000u) : status;
}

int main(int count, char **arguments)
{
    static const shmserve_entry entries[] = {{.path = "number", .kind = SHMSERVE_INT},
                                             {.path = "text", .kind = SHMSERVE_STR},
                                             {.path = "bytes", .kind = SHMSERVE_BYTES}};
    static char printed[1 << 16];
    shmserve_client *client = NULL;
    shmserve_options options;
    const shmserve_schema *schema;
    if (count < 5)
        return 2;
    int traps = count > 5;
    int64_t requests = atoll(arguments[3]);
    uint64_t bytes_count = strtoull(arguments[4], NULL, 10);
    uint8_t *bytes = calloc(1, bytes_count + 1);
    shmserve_default_options(&options, sizeof options);
    options.runtime_dir = arguments[1];
    options.service = arguments[2];
    options.max_retries = 100;
    options.retry_delay_ns = 100000000;
    options.request_bytes = options.reply_bytes = bytes_count + 4096;
    setvbuf(stdout, printed, _IOLBF, sizeof printed);
    if (bytes == NULL || shmserve_open(&client, &options, 60000000000u) != SHMSERVE_OK)
        stop(client, "no client");
    if (shmserve_declare(client, entries, 3, &schema) != SHMSERVE_OK)
        stop(client, "no structure");
    printf("attached\n");
    if (traps)
        allow_real_time_calls_only(0);
    if (traps && strcmp(arguments[5], "trapped") == 0)
        (void)syscall(SYS_getppid);
    for (int64_t number = 0; number < requests; number++) {
        arm(traps);
        int status = ask(client, schema, number, bytes, bytes_count);
        if (status == SHMSERVE_OK && number % 100 == 50)
            status = withdraw(client, schema);
        arm(0);
        if (status != SHMSERVE_OK) {
            printf("status %d\n", status);
            if (traps)
                stop(client, "a request failed");
            if (shmserve_recover(client, 60000000000u) != SHMSERVE_OK)
                stop(client, "not recovered");
        }
        if (number % 1000 == 999)
            printf("%lld\n", (long long)number + 1);
    }
    printf("done\n");
    if (traps) {
        fflush(stdout);
        _Exit(0); /* to close is an [S] call */
    }
    shmserve_close(client);
    free(bytes);
    return 0;
}
