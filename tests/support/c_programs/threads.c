/* Two threads, each with a client, ask the echo policy: threads RUNTIME_DIR SERVICE REQUESTS. */

#include <shmserve.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static const char *runtime_dir, *service;
static int64_t requests;

static void *ask(void *counted)
{
    static const shmserve_entry entries[] = {{.path = "number", .kind = SHMSERVE_INT}};
    shmserve_client *client;
    shmserve_options options;
    const shmserve_schema *schema;
    int64_t *answers = counted;
    shmserve_default_options(&options, sizeof options);
    options.runtime_dir = runtime_dir;
    options.service = service;
    if (shmserve_open(&client, &options, 60000000000u) != SHMSERVE_OK ||
        shmserve_declare(client, entries, 1, &schema) != SHMSERVE_OK) {
        fprintf(stderr, "%s\n", shmserve_last_error(client));
        exit(1);
    }
    for (int64_t number = 0; number < requests; number++) {
        int64_t got = -1;
        const void *values[] = {&number};
        shmserve_output output = {.path = "number", .kind = SHMSERVE_INT, .into = &got, .room = sizeof got};
        int status = shmserve_infer(client, schema, NULL, values, NULL, &output, 1);
        if (status != SHMSERVE_OK || got != number) {
            fprintf(stderr, "%d: %s\n", status, shmserve_last_error(client));
            exit(1);
        }
        ++*answers;
    }
    shmserve_close(client);
    return NULL;
}

int main(int count, char **arguments)
{
    pthread_t thread;
    int64_t answers[2] = {0};
    if (count < 4)
        return 2;
    runtime_dir = arguments[1];
    service = arguments[2];
    requests = atoll(arguments[3]);
    if (pthread_create(&thread, NULL, ask, &answers[0]) != 0)
        return 1;
    ask(&answers[1]);
    pthread_join(thread, NULL);
    printf("%lld answers\n", (long long)(answers[0] + answers[1]));
    return 0;
}
