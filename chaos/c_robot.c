/* A robot in C, as chaos/robot.py: it asks y = k * x, checks every reply and counts every event in its tally.
 *
 *     c_robot NAME RUNTIME_DIR TALLY SEED WINDOW TIMEOUT_S GAINS
 *
 * It sends up to WINDOW requests at a time until SIGTERM, and recovers from whatever the service goes through. GAINS is
 * the file of which version has which k.
 */

#include <shmserve.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* As Word of chaos/tally.py. */
enum { SUBMITTED, RESULTS, ERRORS, WRONG, UNTYPED, LATE, ATTACHED_NS, CHILDREN, SIGNALS, WORDS };
enum { MOST_IN_FLIGHT = 8 };
/* A machine with more processes than processors may delay any of them this long. */
#define SCHEDULING_NS 500000000u

static volatile sig_atomic_t is_stopped;
static volatile uint64_t *tally;

static void stop(int number)
{
    (void)number;
    is_stopped = 1;
}

static int is_gain(const char *file, uint64_t version, double gain)
{
    char text[65536], name[32];
    FILE *gains = fopen(file, "r");
    size_t count = gains != NULL ? fread(text, 1, sizeof text - 1, gains) : 0;
    if (gains != NULL)
        fclose(gains);
    text[count] = '\0';
    (void)snprintf(name, sizeof name, "\"%016llx\": ", (unsigned long long)version);
    const char *found = strstr(text, name);
    return found != NULL && strtod(found + strlen(name), NULL) == gain;
}

typedef struct {
    shmserve_sequence sequence;
    int64_t number;
    uint64_t length, until_ns;
} Sent;

static double number_at(const shmserve_reply *reply, int index)
{
    const shmserve_entry *entries;
    (void)shmserve_entries(reply->schema, &entries);
    const void *data = reply->views[index].data;
    return entries[index].kind == SHMSERVE_FLOAT ? *(const double *)data : (double)*(const int64_t *)data;
}

static int is_right(const shmserve_reply *reply, const Sent *sent, const char *gains)
{
    const shmserve_entry *entries;
    int y = shmserve_find(reply->schema, "y"), k = shmserve_find(reply->schema, "k");
    (void)shmserve_entries(reply->schema, &entries);
    if (y < 0 || k < 0 || reply->views[y].shape[0] != sent->length || entries[y].dims != 1)
        return 0;
    double gain = number_at(reply, k);
    for (uint64_t index = 0; index < sent->length; index++) {
        double found = entries[y].dtype == SHMSERVE_I64   ? (double)((const int64_t *)reply->views[y].data)[index]
                       : entries[y].dtype == SHMSERVE_F32 ? (double)((const float *)reply->views[y].data)[index]
                                                          : ((const double *)reply->views[y].data)[index];
        if (found != (double)sent->number * gain)
            return 0;
    }
    return is_gain(gains, reply->model_version, gain);
}

static void failed(shmserve_client *client, int status)
{
    tally[ERRORS]++;
    if (status == SHMSERVE_FAILED || !*shmserve_last_error(client)) {
        fprintf(stderr, "FAILED: %d %s\n", status, shmserve_last_error(client));
        tally[WRONG]++;
    }
}

/* Whether the request has ended; one that needs a larger slot waits until the others have. */
static int settle(shmserve_client *client, const Sent *sent, const char *gains)
{
    const shmserve_reply *reply;
    int status = shmserve_wait(client, sent->sequence, sent->until_ns, &reply);
    if (status == SHMSERVE_RESIZE_REQUIRED)
        return 0;
    if (status == SHMSERVE_TIMEOUT)
        (void)shmserve_abandon(client, sent->sequence);
    if (status != SHMSERVE_OK) {
        failed(client, status);
        return 1;
    }
    if (shmserve_now_ns() > sent->until_ns + SCHEDULING_NS)
        tally[LATE]++;
    if (!is_right(reply, sent, gains)) {
        fprintf(stderr, "WRONG: request %lld\n", (long long)sent->number);
        tally[WRONG]++;
    }
    (void)shmserve_release(client, sent->sequence);
    tally[RESULTS]++;
    if (!tally[ATTACHED_NS])
        tally[ATTACHED_NS] = shmserve_now_ns();
    return 1;
}

static int submit(shmserve_client *client, const shmserve_schema *schema, Sent *sent)
{
    const shmserve_request *request;
    shmserve_terms terms = {.deadline_ns = sent->until_ns};
    uint64_t sizes[] = {sent->length, 5};
    int status = shmserve_loan(client, schema, sizes, &request);
    if (status != SHMSERVE_OK)
        return status;
    for (uint64_t index = 0; index < sent->length; index++)
        ((int64_t *)request->places[0].data)[index] = sent->number;
    memcpy(request->places[1].data, "chaos", 5);
    sent->sequence = request->sequence;
    return shmserve_publish(client, sent->sequence, &terms);
}

int main(int count, char **arguments)
{
    static const uint64_t lengths[] = {1, 3, 40, 1000, 20000};
    static const shmserve_entry entries[] = {{.path = "x", .kind = SHMSERVE_ARRAY, .dtype = SHMSERVE_I64, .dims = 1},
                                             {.path = "robot", .kind = SHMSERVE_STR}};
    shmserve_client *client;
    shmserve_options options;
    const shmserve_schema *schema;
    Sent sent[MOST_IN_FLIGHT];
    if (count < 8)
        return 2;
    int descriptor = open(arguments[3], O_RDWR | O_CLOEXEC);
    tally = mmap(NULL, WORDS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    unsigned seed = (unsigned)atoi(arguments[4]);
    int window = atoi(arguments[5]), number = 0;
    uint64_t timeout_ns = (uint64_t)(atof(arguments[6]) * 1e9);
    if (tally == MAP_FAILED || window < 1 || window > MOST_IN_FLIGHT)
        return 2;
    signal(SIGTERM, stop);
    shmserve_default_options(&options, sizeof options);
    options.service = arguments[1];
    options.runtime_dir = arguments[2];
    options.slots = (uint32_t)window;
    options.max_retries = 3000;
    options.retry_delay_ns = 20000000;
    options.check_contract = 0; /* observations have many lengths */
    if (shmserve_open(&client, &options, 60000000000u) != SHMSERVE_OK ||
        shmserve_declare(client, entries, 2, &schema) != SHMSERVE_OK) {
        fprintf(stderr, "%s\n", shmserve_last_error(client));
        return 1;
    }
    while (!is_stopped) {
        int in_flight = 0, status = SHMSERVE_OK;
        while (in_flight < window && status == SHMSERVE_OK) {
            Sent *next = &sent[in_flight];
            *next = (Sent){
                .number = ++number, .length = lengths[rand_r(&seed) % 5], .until_ns = shmserve_now_ns() + timeout_ns};
            tally[SUBMITTED]++;
            if ((status = submit(client, schema, next)) == SHMSERVE_OK)
                in_flight++;
            else
                failed(client, status);
        }
        while (in_flight) {
            int left = 0;
            for (int index = 0; index < in_flight; index++)
                if (!settle(client, &sent[index], arguments[7]))
                    sent[left++] = sent[index];
            in_flight = left;
            if (left)
                (void)shmserve_recover(client, 30000000000u);
        }
        if (status != SHMSERVE_OK || shmserve_alive(client) != SHMSERVE_OK)
            (void)shmserve_recover(client, 60000000000u);
    }
    shmserve_close(client);
    return 0;
}
