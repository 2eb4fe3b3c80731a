/* The comparison of the time between a robot's steps with the rate that a model's contract states, as
 * client/robot_contract.py. An update may bring another model between a request and its reply, so a reply of a version
 * that was not compared is withheld until shmserve_recover has compared it.
 */

#include "client.h"
#include "core/clock.h"

#include <time.h>

/* The largest ratio of two rates that are one: people write a period of 0.033 s for 30 steps a second. */
#define SAME_RATE 1.02
/* How long the daemon may take until it describes the model that answered, and the pause between two questions. */
#define DESCRIBED_NS 1000000000u
#define PAUSE_NS 5000000

static bool is_same_rate(double one, double other)
{
    return one > other ? one <= SAME_RATE * other : other <= SAME_RATE * one;
}

int compare_rate(shmserve_client *client)
{
    const Json *json = &client->description;
    const JsonValue *model = client->model, *contract = json_member(json, model, "contract");
    double rate, own = 1e9 / (double)client->step_ns;
    client->is_rate_refused =
        client->step_ns != 0 &&
        json_number(json_member(json, json_member(json, contract, "meaning"), "rate_hz"), &rate) &&
        !is_same_rate(rate, own);
    if (!client->is_rate_refused)
        return SHMSERVE_OK;
    const char *name = json_text(json, json_member(json, model, "name"));
    return fail(client, SHMSERVE_MISMATCH,
                "'%s' (version %s), served by '%s', and this robot mean different things by their numbers (model -> "
                "robot=):\n  rate_hz: %.15g -> %g (ActionChunks, period = %g)\n"
                "No action is given to the robot. Convert the numbers in the robot's program and correct robot=, or "
                "serve a model whose model.toml states the same under [contract]",
                name != NULL ? name : "", json_text(json, json_member(json, model, "version")), client->service, rate,
                own, 1 / own);
}

EXPORTED int shmserve_state_period(shmserve_client *client, uint64_t step_ns)
{
    if (client->forks != forks_count())
        return check_usable(client);
    client->step_ns = step_ns;
    return compare_rate(client);
}

int check_version(shmserve_client *client, uint64_t version)
{
    if (!client->step_ns || client->is_link || version == client->model_version)
        return client->is_rate_refused ? compare_rate(client) : SHMSERVE_OK;
    if (version == client->past_version)
        return fail(client, SHMSERVE_MISMATCH,
                    "model %016llx of '%s' answered, and is served no more: its contract cannot be compared with the "
                    "period of this robot, and its action is discarded; send the request again",
                    (unsigned long long)version, client->service);
    client->unchecked_version = version;
    return fail(client, SHMSERVE_RESIZE_REQUIRED,
                "'%s' serves another model: call shmserve_recover, which compares it with the period of this robot, "
                "then wait for the same request again",
                client->service);
}

int check_update(shmserve_client *client, uint64_t deadline_ns)
{
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    uint64_t until_ns = monotonic_ns() + DESCRIBED_NS;
    until_ns = deadline_ns < until_ns ? deadline_ns : until_ns;
    for (;;) {
        int status = refresh_model(client, deadline_ns);
        if (status != SHMSERVE_OK)
            return status;
        if (client->model_version == client->unchecked_version || monotonic_ns() >= until_ns)
            break;
        /* The engine begins to serve a moment before the daemon describes its model. */
        (void)nanosleep(&pause, NULL);
    }
    client->past_version = client->model_version == client->unchecked_version ? 0 : client->unchecked_version;
    client->unchecked_version = 0;
    return compare_all(client);
}
