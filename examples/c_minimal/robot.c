/* The shortest robot in C: ask, move, ask again. The service is "default", or the one that the first argument names. */

#include <shmserve.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

static int failed(shmserve_client *client, const char *what)
{
    fprintf(stderr, "%s: %s\n", what, shmserve_last_error(client));
    shmserve_close(client);
    return 1;
}

int main(int count, char **arguments)
{
    float joints[6] = {0}, goal[6], action[6], missed = 0;
    for (int joint = 0; joint < 6; joint++)
        goal[joint] = 0.5f;

    /* Set-up: these calls may allocate and wait. */
    shmserve_client *client;
    shmserve_options options;
    shmserve_default_options(&options, sizeof options);
    if (count > 1)
        options.service = arguments[1];
    if (shmserve_open(&client, &options, 10000000000u) != SHMSERVE_OK)
        return failed(client, "no client");
    const shmserve_entry entries[] = {
        {.path = "joints", .kind = SHMSERVE_ARRAY, .dtype = SHMSERVE_F32, .dims = 1, .shape = {6}},
        {.path = "goal", .kind = SHMSERVE_ARRAY, .dtype = SHMSERVE_F32, .dims = 1, .shape = {6}},
    };
    const shmserve_schema *schema;
    if (shmserve_declare(client, entries, 2, &schema) != SHMSERVE_OK)
        return failed(client, "another observation");

    /* The loop: these calls allocate nothing and take no lock. */
    for (int step = 0; step < 100; step++) {
        const void *values[] = {joints, goal};
        shmserve_terms terms = {.deadline_ns = shmserve_now_ns() + 1000000000u};
        shmserve_output output = {
            .path = "action", .kind = SHMSERVE_ARRAY, .dtype = SHMSERVE_F32, .into = action, .room = sizeof action};
        if (shmserve_infer(client, schema, NULL, values, &terms, &output, 1) != SHMSERVE_OK)
            return failed(client, "no action");
        for (int joint = 0; joint < 6; joint++)
            joints[joint] += action[joint];
    }
    for (int joint = 0; joint < 6; joint++)
        missed = fmaxf(missed, fabsf(joints[joint] - goal[joint]));
    printf("the goal is missed by %.4f\n", missed);
    shmserve_close(client);
    return 0;
}
