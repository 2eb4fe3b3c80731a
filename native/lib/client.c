/* The beginning and the end of a client, and its texts. */

#include "client.h"
#include "core/clock.h"
#include "core/doorbell.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Forks that this process came from since the first client was opened. */
static atomic_uint_fast64_t forks;
static pthread_once_t fork_handler = PTHREAD_ONCE_INIT;

static void count_fork(void) { atomic_fetch_add_explicit(&forks, 1, memory_order_relaxed); }

static void install_fork_handler(void) { (void)pthread_atfork(NULL, NULL, count_fork); }

uint64_t forks_count(void) { return atomic_load_explicit(&forks, memory_order_relaxed); }

EXPORTED int shmserve_abi(void) { return SHMSERVE_ABI; }

EXPORTED uint64_t shmserve_now_ns(void) { return monotonic_ns(); }

EXPORTED void shmserve_default_options(shmserve_options *options, size_t size)
{
    shmserve_options all = {.size = size,
                            .service = "default",
                            .slots = 4,
                            .max_retries = 3,
                            .retry_delay_ns = 1000000000u,
                            .spin_ns = -1,
                            .check_contract = 1};
    memset(options, 0, size);
    memcpy(options, &all, size < sizeof all ? size : sizeof all);
}

void *new_memory(const shmserve_client *client, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        return NULL;
    void *memory = malloc(bytes ? bytes : 1);
    if (memory == NULL)
        return NULL;
    memset(memory, 0, bytes);
    if (client->options.lock_memory)
        (void)mlock(memory, bytes); /* the channel's own mlock reports a limit that is too low */
    return memory;
}

static bool is_service_name(const char *name)
{
    size_t count = 0;
    for (; name[count]; count++) {
        char at = name[count];
        bool is_first = (at >= '0' && at <= '9') || (at >= 'a' && at <= 'z') || (at >= 'A' && at <= 'Z');
        if (count == SERVICE_NAME_LIMIT || !(is_first || (count && (at == '_' || at == '.' || at == '-'))))
            return false;
    }
    return count > 0;
}

static int check_options(const shmserve_options *options)
{
    if (options->service == NULL || !is_service_name(options->service))
        return fail(
            NULL, SHMSERVE_ARGUMENT,
            "service name '%.100s': 1 to 64 letters, digits, '_', '.' or '-', beginning with a letter or a digit",
            options->service != NULL ? options->service : "");
    if (options->slots < 1 || options->slots > SHMSERVE_MAX_SLOTS)
        return fail(NULL, SHMSERVE_ARGUMENT, "slots = %u: the number must be 1 to %d", options->slots,
                    SHMSERVE_MAX_SLOTS);
    if (options->spin_ns < -1)
        return fail(NULL, SHMSERVE_ARGUMENT, "spin_ns = %lld: 0 or more nanoseconds, or -1: it is learnt",
                    (long long)options->spin_ns);
    if (options->request_bytes > MAX_PAYLOAD_BYTES || options->reply_bytes > MAX_PAYLOAD_BYTES)
        return fail(NULL, SHMSERVE_ARGUMENT, "request_bytes and reply_bytes are %llu at most",
                    (unsigned long long)MAX_PAYLOAD_BYTES);
    if (options->runtime_dir != NULL && strlen(options->runtime_dir) >= PATH_ROOM)
        return fail(NULL, SHMSERVE_ARGUMENT, "runtime_dir is longer than %d bytes", PATH_ROOM - 1);
    return SHMSERVE_OK;
}

static void free_client(shmserve_client *client)
{
    while (client->declared != NULL) {
        shmserve_schema *schema = client->declared;
        client->declared = schema->next;
        free_declared(schema);
    }
    structures_end(client);
    robot_end(client);
    json_free(&client->reply);
    json_free(&client->description);
    free(client->runtime_dir);
    free(client->message);
    free(client->metadata);
    free(client->path);
    if (client->options.lock_memory)
        (void)munlock(client, sizeof *client);
    free(client);
}

EXPORTED int shmserve_open(shmserve_client **client, const shmserve_options *options, uint64_t timeout_ns)
{
    shmserve_options all;
    shmserve_default_options(&all, sizeof all);
    *client = NULL;
    if (options != NULL && !options->size)
        return fail(NULL, SHMSERVE_ARGUMENT, "options of size 0: begin with shmserve_default_options");
    if (options != NULL)
        memcpy(&all, options, options->size < sizeof all ? options->size : sizeof all);
    int status = check_options(&all);
    if (status != SHMSERVE_OK)
        return status;
    (void)pthread_once(&fork_handler, install_fork_handler);
    (void)doorbell_is_monotonic(); /* looked up here, and not in a wait */
    shmserve_client *made = malloc(sizeof *made);
    if (made == NULL)
        return fail(NULL, SHMSERVE_MEMORY, "this process has no memory for a client");
    memset(made, 0, sizeof *made);
    made->options = all;
    made->forks = forks_count();
    made->lease = -1;
    made->channel = (Channel){.request_pipe = -1, .reply_pipe = -1};
    made->is_stateful = -1;
    made->wanted = (Capacity){.request_bytes = all.request_bytes, .reply_bytes = all.reply_bytes};
    (void)snprintf(made->service, sizeof made->service, "%s", all.service);
    (void)snprintf(made->program, sizeof made->program, "%.63s",
                   all.program != NULL ? all.program : program_invocation_short_name);
    if (all.lock_memory)
        (void)mlock(made, sizeof *made);
    spin_budget_begin(&made->budget, all.spin_ns);
    made->room = made->needed_room = (StructureRoom){FIRST_NODES_ROOM, FIRST_PATHS_ROOM};
    made->message = new_memory(made, MESSAGE_LIMIT, 1);
    made->metadata = new_memory(made, METADATA_LIMIT, 1);
    made->path = new_memory(made, STRUCTURE_PATH_ROOM, 1);
    if (all.runtime_dir != NULL)
        made->runtime_dir = strdup(all.runtime_dir);
    if (made->message == NULL || made->metadata == NULL || made->path == NULL ||
        (all.runtime_dir != NULL && made->runtime_dir == NULL) || structures_begin(made, &made->room) != SHMSERVE_OK) {
        free_client(made);
        return fail(NULL, SHMSERVE_MEMORY, "this process has no memory for a client");
    }
    if ((status = robot_begin(made, all.robot)) != SHMSERVE_OK || (status = find_service(made)) != SHMSERVE_OK) {
        (void)fail(NULL, status, "%s", made->text);
        free_client(made);
        return status;
    }
    *client = made;
    status = attach(made, after(timeout_ns));
    if (status != SHMSERVE_OK)
        (void)fail(NULL, status, "%s", made->text); /* it is still there once the client was closed */
    if (status == SHMSERVE_ARGUMENT) {
        shmserve_close(made); /* the statement of the robot is invalid */
        *client = NULL;
    }
    return status;
}

EXPORTED void shmserve_close(shmserve_client *client)
{
    if (client == NULL)
        return;
    detach(client);
    free_client(client);
}

int check_usable(shmserve_client *client)
{
    if (client->forks != forks_count())
        return fail(client, SHMSERVE_FORKED,
                    "this client of '%s' belongs to the parent process; a forked child opens its own", client->service);
    if (client->lease < 0)
        return fail(client, SHMSERVE_RESTARTED, "this client of '%s' is not attached: call shmserve_recover",
                    client->service);
    if (client->is_lost)
        return note_lost(client);
    return SHMSERVE_OK;
}

EXPORTED int shmserve_alive(shmserve_client *client)
{
    int status = check_usable(client);
    if (status == SHMSERVE_OK && is_peer_closed(client->lease))
        status = note_lost(client);
    return status;
}

EXPORTED int shmserve_pollable(const shmserve_client *client, int *reply_fd, int *lease_fd)
{
    *reply_fd = client->channel.reply_pipe;
    *lease_fd = client->lease;
    return SHMSERVE_OK;
}

EXPORTED int shmserve_is_stateful(const shmserve_client *client) { return client->is_stateful; }

EXPORTED void shmserve_get_stats(const shmserve_client *client, shmserve_stats *stats, size_t size)
{
    shmserve_stats all = client->stats;
    all.request_bytes = client->channel.requests.payload_bytes;
    all.reply_bytes = client->channel.replies.payload_bytes;
    all.slots = client->slots_count;
    all.is_attached = client->lease >= 0 && !client->is_lost;
    memset(stats, 0, size);
    memcpy(stats, &all, size < sizeof all ? size : sizeof all);
}
