/* Round trips of a client of libshmserve, for bench/scale/c_client.py.
 *
 *     c_client RUNTIME_DIR HEIGHT WIDTH SECONDS PERIOD_NS
 *
 * It asks with shmserve_infer, which copies the observation and the action as the client in Python does. With a period
 * it asks at a constant rate. It prints the CPU time of the client, 0, the number of missed beats, and each latency
 * (ns, 8 bytes each), as bench/floors/floor.c; status 3: a reply that is another request's.
 */

#include <shmserve.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { STATES = 6, LEAD_IN_BEATS = 8, LONGEST_LATE_NS = 300000 };
static const char instruction[] = "pick up the red cup on the table";

static void die(shmserve_client *client, const char *what)
{
    fprintf(stderr, "%s: %s\n", what, shmserve_last_error(client));
    exit(1);
}

static void sleep_until(uint64_t ns)
{
    uint64_t wake_ns = ns - LONGEST_LATE_NS;
    struct timespec until = {.tv_sec = (time_t)(wake_ns / 1000000000u), .tv_nsec = (long)(wake_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0)
        ;
    while (shmserve_now_ns() < ns)
        ;
}

int main(int count, char **arguments)
{
    if (count < 6)
        return 2;
    uint64_t height = strtoull(arguments[2], NULL, 10), width = strtoull(arguments[3], NULL, 10);
    uint64_t image_bytes = height * width * 3, period_ns = strtoull(arguments[5], NULL, 10);
    uint8_t *image = malloc(image_bytes);
    uint64_t state[STATES * sizeof(float) / 8];
    const shmserve_entry entries[] = {
        {.path = "image", .kind = SHMSERVE_ARRAY, .dtype = SHMSERVE_U8, .dims = 3, .shape = {height, width, 3}},
        {.path = "state", .kind = SHMSERVE_ARRAY, .dtype = SHMSERVE_F32, .dims = 1, .shape = {STATES}},
        {.path = "instruction", .kind = SHMSERVE_STR, .shape = {sizeof instruction - 1}},
    };
    shmserve_client *client;
    shmserve_options options;
    const shmserve_schema *schema;
    shmserve_default_options(&options, sizeof options);
    options.runtime_dir = arguments[1];
    options.request_bytes = image_bytes + 4096;
    if (image == NULL || shmserve_open(&client, &options, 60000000000u) != SHMSERVE_OK)
        die(client, "no client");
    if (shmserve_declare(client, entries, 3, &schema) != SHMSERVE_OK)
        die(client, "no structure");
    memset(image, 77, image_bytes);
    memset(state, 0, sizeof state);
    size_t room = 1 << 22, done = 3;
    int64_t *numbers = malloc(room * sizeof *numbers), base = 0, missed = 0;
    struct timespec used;
    uint64_t end_ns = shmserve_now_ns() + (uint64_t)(atof(arguments[4]) * 1e9), beat_ns = shmserve_now_ns() + 1000000;
    for (int64_t number = 0; shmserve_now_ns() < end_ns && done < room; number++) {
        state[0] = (uint64_t)number;
        if (period_ns) {
            for (beat_ns += period_ns; beat_ns < shmserve_now_ns(); beat_ns += period_ns)
                missed++;
            sleep_until(beat_ns);
        }
        uint64_t began_ns = shmserve_now_ns();
        int64_t check = 0;
        const void *values[] = {image, state, instruction};
        shmserve_output output = {.path = "check", .kind = SHMSERVE_INT, .into = &check, .room = sizeof check};
        shmserve_terms terms = {.deadline_ns = began_ns + 60000000000u};
        int status = shmserve_infer(client, schema, NULL, values, &terms, &output, 1);
        if (status == SHMSERVE_RESIZE_REQUIRED && !number) {
            if (shmserve_recover(client, 60000000000u) != SHMSERVE_OK)
                die(client, "not recovered");
            status = shmserve_infer(client, schema, NULL, values, &terms, &output, 1);
        }
        if (status != SHMSERVE_OK)
            die(client, "no reply");
        uint64_t ended_ns = shmserve_now_ns();
        if (!number)
            base = check;
        else if (check != base + number)
            return 3;
        if (number > LEAD_IN_BEATS)
            numbers[done++] = (int64_t)(ended_ns - began_ns);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    numbers[0] = (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
    numbers[1] = 0;
    numbers[2] = missed;
    shmserve_close(client);
    return fwrite(numbers, sizeof *numbers, done, stdout) == done ? 0 : 1;
}
