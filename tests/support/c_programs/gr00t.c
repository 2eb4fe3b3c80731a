/* Asks a policy of GR00T's style with observations of other sizes: gr00t RUNTIME_DIR SERVICE CHECK_CONTRACT SIZES...
 *
 * SIZES are "BATCH,TIME,HEIGHT,WIDTH,JOINTS" of one request, or "bare", the observation of the first request without a
 * call around it, or "reset", a call without an observation. Prints for each its status, the lines that name a
 * difference, and the shape of the action. */

#include <shmserve.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LANGUAGE "language/annotation.human.task_description"
enum { LEAVES = 3, MOST = 1 << 20 };

static const char task[] = "fold";
static shmserve_client *client;

/* The entries of an observation at this path, which ends with "/" or is "". */
static size_t observation(shmserve_entry *entries, char paths[][128], const char *at)
{
    static const shmserve_entry given[] = {
        {.path = "video/front",
         .kind = SHMSERVE_ARRAY,
         .dtype = SHMSERVE_U8,
         .dims = 5,
         .shape = {SHMSERVE_ANY_SIZE, SHMSERVE_ANY_SIZE, SHMSERVE_ANY_SIZE, SHMSERVE_ANY_SIZE, 3}},
        {.path = "state/single_arm",
         .kind = SHMSERVE_ARRAY,
         .dtype = SHMSERVE_F32,
         .dims = 3,
         .shape = {SHMSERVE_ANY_SIZE, SHMSERVE_ANY_SIZE, SHMSERVE_ANY_SIZE}},
        {.path = LANGUAGE, .kind = SHMSERVE_SEQUENCE},
        {.path = LANGUAGE "/0", .kind = SHMSERVE_SEQUENCE},
        {.path = LANGUAGE "/0/0", .kind = SHMSERVE_STR},
    };
    size_t count = sizeof given / sizeof *given;
    for (size_t entry = 0; entry < count; entry++) {
        (void)snprintf(paths[entry], sizeof paths[entry], "%s%s", at, given[entry].path);
        entries[entry] = given[entry];
        entries[entry].path = paths[entry];
    }
    return count;
}

static void print_shape(const shmserve_reply *reply)
{
    /* (action, info): a tuple. */
    int index = shmserve_find(reply->schema, "0/single_arm");
    const shmserve_entry *entries;
    (void)shmserve_entries(reply->schema, &entries);
    for (uint32_t dimension = 0; index >= 0 && dimension < entries[index].dims; dimension++)
        printf(" %llu", (unsigned long long)reply->views[index].shape[dimension]);
}

static void print_differences(const char *text)
{
    for (const char *line = strstr(text, "\n  "); line != NULL; line = strstr(line + 1, "\n  "))
        printf("\n%.*s", (int)strcspn(line + 1, "\n"), line + 1);
}

static int ask(const char *asked)
{
    static char memory[MOST], paths[8][128];
    shmserve_entry entries[8] = {{0}};
    const shmserve_schema *schema;
    const shmserve_request *request;
    const shmserve_reply *reply;
    unsigned batch = 1, time = 1, height = 4, width = 6, joints = 5;
    int is_call = strcmp(asked, "bare") != 0, is_reset = strcmp(asked, "reset") == 0;
    size_t count = 0;
    if (is_call && !is_reset && sscanf(asked, "%u,%u,%u,%u,%u", &batch, &time, &height, &width, &joints) != 5)
        return SHMSERVE_ARGUMENT;
    if (is_call)
        entries[count++] = (shmserve_entry){.path = "endpoint", .kind = SHMSERVE_STR};
    if (!is_reset)
        count += observation(entries + count, paths, is_call ? "data/observation/" : "");
    if (is_call)
        entries[count++] = (shmserve_entry){.path = "data/options", .kind = SHMSERVE_NONE};
    int status = shmserve_declare(client, entries, count, &schema);
    if (status != SHMSERVE_OK)
        return status;
    const char *endpoint = is_reset ? "reset" : "get_action";
    uint64_t sizes[] = {strlen(endpoint), batch, time, height, width, 3, batch, time, joints, strlen(task)};
    const void *values[8] = {endpoint, memory, memory, NULL, NULL, task};
    if ((status = shmserve_loan(client, schema, sizes + !is_call, &request)) != SHMSERVE_OK)
        return status;
    for (size_t entry = 0; entry < count; entry++)
        if (request->places[entry].data != NULL)
            memcpy(request->places[entry].data, values[entry + !is_call], request->places[entry].bytes);
    shmserve_sequence sequence = request->sequence;
    if ((status = shmserve_publish(client, sequence, NULL)) != SHMSERVE_OK ||
        (status = shmserve_wait(client, sequence, shmserve_now_ns() + 60000000000u, &reply)) != SHMSERVE_OK)
        return status;
    printf("0");
    print_shape(reply);
    printf("\n");
    return shmserve_release(client, sequence);
}

int main(int count, char **arguments)
{
    shmserve_options options;
    if (count < 5)
        return 2;
    shmserve_default_options(&options, sizeof options);
    options.runtime_dir = arguments[1];
    options.service = arguments[2];
    options.check_contract = (uint32_t)atoi(arguments[3]);
    options.request_bytes = options.reply_bytes = MOST;
    if (shmserve_open(&client, &options, 60000000000u) != SHMSERVE_OK) {
        fprintf(stderr, "%s\n", shmserve_last_error(client));
        return 1;
    }
    for (int index = 4; index < count; index++) {
        int status = ask(arguments[index]);
        if (status == SHMSERVE_OK)
            continue;
        printf("%d", status);
        print_differences(shmserve_last_error(client));
        printf("\n");
    }
    shmserve_close(client);
    return 0;
}
