/* The robot's own statement of its numbers. The daemon compares it with the model (shmserve/robot_contract.py has the
 * rule); here a reply of a model version that was not compared is withheld until it was, as client/contract_gate.py
 * does. Nothing allocates once the client is open.
 */

#include "client.h"
#include "core/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define METHOD "CheckRobot"
#define BEFORE "{\"method\":\"io.shmserve.Client." METHOD "\",\"parameters\":{\"robot\":"
#define AFTER "}}"
/* Between the two, if the robot takes steps. */
#define STEP ",\"step_ns\":%llu"
enum { ANSWER_VALUES = 2048, STEP_ROOM = sizeof STEP + 20 };
/* How long it may take until the daemon describes the model that answered: no less, whatever the request has left; no
 * more; and the pause between two attempts. The engine begins to serve a moment before the daemon describes its model.
 */
#define LEAST_NS 100000000u
#define LONGEST_NS 1000000000u
#define PAUSE_NS 5000000u

/* Write the call for this time between two steps; 0: none. */
static void write_call(Robot *robot, uint64_t step_ns)
{
    char *end = robot->call + robot->statement_end;
    size_t room = robot->room - robot->statement_end;
    int bytes = step_ns ? snprintf(end, room, STEP AFTER, (unsigned long long)step_ns) : snprintf(end, room, AFTER);
    robot->call_bytes = robot->statement_end + (size_t)bytes + 1;
}

static int state(shmserve_client *client, const char *statement)
{
    Robot *robot = &client->robot;
    size_t bytes = strlen(statement);
    robot->statement_end = sizeof BEFORE - 1 + bytes;
    robot->room = robot->statement_end + STEP_ROOM + sizeof AFTER;
    if (robot->room <= MESSAGE_LIMIT) {
        robot->call = new_memory(client, robot->room, 1);
        robot->answer = (Json){.values = new_memory(client, ANSWER_VALUES, sizeof(JsonValue)),
                               .text = new_memory(client, MESSAGE_LIMIT, 1),
                               .room = ANSWER_VALUES,
                               .text_room = MESSAGE_LIMIT,
                               .is_fixed = true};
        if (robot->call == NULL || robot->answer.values == NULL || robot->answer.text == NULL) {
            robot_end(client);
            return fail(client, SHMSERVE_MEMORY, "this process has no memory for what its robot states");
        }
        (void)snprintf(robot->call, robot->room, BEFORE "%s", statement);
        write_call(robot, 0);
    }
    return SHMSERVE_OK;
}

int robot_begin(shmserve_client *client, const char *statement)
{
    Robot *robot = &client->robot;
    client->options.robot = NULL; /* it is the caller's */
    int status = statement != NULL ? state(client, statement) : SHMSERVE_OK;
    if (statement == NULL || status != SHMSERVE_OK)
        return status;
    /* One object, and not so deep that the daemon would refuse the message. */
    if (robot->call == NULL || !json_read(&client->reply, statement, strlen(statement)) ||
        !json_read(&client->reply, robot->call, robot->call_bytes - 1))
        return fail(client, SHMSERVE_ARGUMENT,
                    "robot is not one JSON object in UTF-8, of %d bytes at most: write the keys of [contract] in "
                    "model.toml, as {\"action\": {\"actions\": {\"units\": \"rad\"}}}",
                    (int)(MESSAGE_LIMIT - sizeof BEFORE - STEP_ROOM - sizeof AFTER + 1));
    client->reply.count = 0;
    return SHMSERVE_OK;
}

void robot_end(shmserve_client *client)
{
    Robot *robot = &client->robot;
    free(robot->call);
    free(robot->answer.values);
    free(robot->answer.text);
    *robot = (Robot){.call = NULL};
}

void robot_forget(shmserve_client *client)
{
    client->robot.is_asked = false;
    client->robot.asked_ns = 0;
    client->robot.agreed_count = 0; /* by their name they may be other models at another daemon */
    client->robot.refusal = SHMSERVE_OK;
}

static int refused(shmserve_client *client) { return fail(client, client->robot.refusal, "%s", client->robot.text); }

/* The status of all requests from now on, with the text that the client has. */
static void refuse(shmserve_client *client, int status)
{
    client->robot.refusal = status;
    memcpy(client->robot.text, client->text, sizeof client->robot.text);
}

/* --- What the daemon says --- */

static const JsonValue *versions_of(const Json *answer)
{
    const JsonValue *versions = json_member(answer, json_member(answer, answer->values, "parameters"), "versions");
    for (uint32_t index = 0; json_is(versions, JSON_ARRAY) && index < versions->count; index++)
        if (!is_version(json_text(answer, versions + 1 + index)))
            return NULL;
    return json_is(versions, JSON_ARRAY) ? versions : NULL;
}

static bool names(const Json *answer, uint64_t version)
{
    const JsonValue *versions = answer->count ? versions_of(answer) : NULL;
    for (uint32_t index = 0; versions != NULL && index < versions->count; index++)
        if (strtoull(json_text(answer, versions + 1 + index), NULL, 16) == version)
            return true;
    return false;
}

static bool is_agreed(Robot *robot, uint64_t version)
{
    for (uint32_t index = 0; index < robot->agreed_count && index < AGREED_VERSIONS; index++)
        if (robot->agreed[index] == version) {
            robot->latest = version;
            return true;
        }
    return false;
}

/* Note what an answer says: OK, or the status of a refusal with the text. */
static int read_answer(shmserve_client *client)
{
    Robot *robot = &client->robot;
    const Json *answer = &robot->answer;
    const JsonValue *parameters = json_member(answer, answer->values, "parameters"), *versions = versions_of(answer);
    const char *error = json_text(answer, error_of(answer)),
               *message = json_text(answer, json_member(answer, parameters, "message"));
    if (error_of(answer) == NULL && versions == NULL)
        return unreadable(client, METHOD, "it names no versions");
    if (error_of(answer) == NULL) {
        for (uint32_t index = 0; index < versions->count; index++) {
            uint64_t version = strtoull(json_text(answer, versions + 1 + index), NULL, 16);
            if (!is_agreed(robot, version))
                robot->agreed[robot->agreed_count++ % AGREED_VERSIONS] = robot->latest = version;
        }
        return SHMSERVE_OK;
    }
    bool has_text = error != NULL && message != NULL;
    if (has_text && strcmp(error, "io.shmserve.Client.ContractMismatch") == 0)
        return fail(client, SHMSERVE_MISMATCH, "%s", message);
    if (has_text && strcmp(error, "io.shmserve.Client.InvalidRobot") == 0)
        return fail(client, SHMSERVE_ARGUMENT, "%s", message);
    if (error != NULL && strcmp(error, "org.varlink.service.MethodNotFound") == 0)
        return fail(client, SHMSERVE_PROTOCOL,
                    "the daemon of '%s' cannot compare what this robot states of its numbers: it is older than this "
                    "library. No action is given to the robot: install the same shmserve on both sides",
                    client->service);
    return daemon_error(client, answer);
}

/* Ask the daemon, if no answer is to come. */
static int ask(shmserve_client *client, uint64_t deadline_ns)
{
    Robot *robot = &client->robot;
    int status = SHMSERVE_OK;
    if (robot->is_asked)
        return SHMSERVE_OK;
    robot->asked_ns = monotonic_ns();
    robot->is_asked = send_call(client, METHOD, robot->call, robot->call_bytes, deadline_ns, &status);
    return status;
}

/* Read the answer, if it comes by then: 1, and the refusal is known; 0; -1: the connection is of no use, with *status
 * and the text. */
static int answered(shmserve_client *client, uint64_t deadline_ns, int *status)
{
    Robot *robot = &client->robot;
    Descriptors descriptors = {.count = 0};
    int found = robot->is_asked ? take_answer(client, METHOD, &robot->answer, deadline_ns, &descriptors, status) : 0;
    if (!found)
        return 0;
    robot->is_asked = false;
    close_descriptors(&descriptors);
    if (found > 0) {
        robot->refusal = SHMSERVE_OK;
        if ((*status = read_answer(client)) != SHMSERVE_OK)
            refuse(client, *status);
    }
    else
        client->is_lost = true; /* it is unknown what the next message answers */
    return found;
}

/* --- When it is asked --- */

int robot_compare(shmserve_client *client, uint64_t deadline_ns)
{
    Robot *robot = &client->robot;
    bool is_settled = robot->refusal == SHMSERVE_OK && robot->agreed_count;
    if (robot->call == NULL || is_settled)
        return SHMSERVE_OK;
    robot->is_asked = false; /* an answer that is to come may be older than the model: it is dropped, as a late one */
    int status = ask(client, deadline_ns);
    if (status == SHMSERVE_OK)
        (void)answered(client, deadline_ns, &status);
    return status;
}

EXPORTED int shmserve_state_period(shmserve_client *client, uint64_t step_ns, uint64_t timeout_ns)
{
    Robot *robot = &client->robot;
    if (client->forks != forks_count())
        return check_usable(client);
    int status = robot->call == NULL && step_ns ? state(client, "{}") : SHMSERVE_OK;
    if (status != SHMSERVE_OK || robot->call == NULL)
        return status;
    write_call(robot, step_ns);
    robot_forget(client);
    return client->lease < 0 || client->is_lost ? SHMSERVE_OK : robot_compare(client, after(timeout_ns));
}

int robot_admit(shmserve_client *client)
{
    Robot *robot = &client->robot;
    int status;
    if (robot->refusal == SHMSERVE_OK)
        return SHMSERVE_OK;
    if (monotonic_ns() - robot->asked_ns > REFRESH_NS)
        (void)ask(client, 0);
    (void)answered(client, 0, &status);
    if (client->is_lost)
        return note_lost(client);
    return robot->refusal == SHMSERVE_OK ? SHMSERVE_OK : refused(client);
}

static int discard(Slot *slot, int status)
{
    slot->state = SLOT_FREE;
    return status;
}

/* The connection has ended before the model was compared. */
static int not_compared(shmserve_client *client, uint64_t version)
{
    int status = note_lost(client);
    return status != SHMSERVE_RESTARTED
               ? status
               : fail(client, SHMSERVE_RESTARTED,
                      "the contract of model %016llx, which answered, could not be compared with what this robot "
                      "states, so its action is discarded: the daemon of '%s' closed the connection: call shmserve_recover",
                      (unsigned long long)version, client->service);
}

static int served_no_more(shmserve_client *client, uint64_t version)
{
    return fail(client, SHMSERVE_MISMATCH,
                "model %016llx of '%s' answered, and is served no more: its contract cannot be compared with "
                "options.robot, and its action is discarded; send the request again",
                (unsigned long long)version, client->service);
}

static int withheld(shmserve_client *client, const Slot *slot, uint64_t version)
{
    return fail(client, SHMSERVE_TIMEOUT,
                "the reply of '%s' to request %llu is withheld until the contract of model %016llx, which answered, "
                "has been compared with what this robot states: wait again, or call shmserve_abandon",
                client->service, (unsigned long long)number_of(slot->sequence), (unsigned long long)version);
}

static void pause_until(uint64_t until_ns)
{
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u), .tv_nsec = (long)(until_ns % 1000000000u)};
    (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

int robot_settle(shmserve_client *client, Slot *slot, uint64_t version, uint64_t until_ns)
{
    Robot *robot = &client->robot;
    uint64_t now_ns = monotonic_ns();
    slot->withheld_ns = slot->withheld_ns ? slot->withheld_ns : now_ns;
    uint64_t give_up_ns = slot->withheld_ns + LONGEST_NS;
    if (give_up_ns > until_ns)
        give_up_ns = until_ns > slot->withheld_ns + LEAST_NS ? until_ns : slot->withheld_ns + LEAST_NS;
    for (;; now_ns = monotonic_ns()) {
        int status = SHMSERVE_OK;
        if (is_agreed(robot, version))
            return SHMSERVE_OK;
        if (robot->refusal != SHMSERVE_OK && names(&robot->answer, version))
            return discard(slot, refused(client));
        if (client->is_lost)
            return not_compared(client, version);
        if (now_ns - robot->asked_ns >= PAUSE_NS)
            (void)ask(client, until_ns);
        int found = answered(client, until_ns, &status);
        if (found < 0 && status == SHMSERVE_PROTOCOL)
            return discard(slot, status);
        if (found > 0 && robot->refusal != SHMSERVE_OK && robot->refusal != SHMSERVE_MISMATCH)
            return discard(slot, refused(client));
        if (found)
            continue;
        now_ns = monotonic_ns();
        if (now_ns >= give_up_ns && !robot->is_asked) /* the daemon describes another model */
            return discard(slot, served_no_more(client, version));
        if (now_ns >= until_ns)
            return withheld(client, slot, version);
        uint64_t next_ns = robot->asked_ns + PAUSE_NS;
        pause_until(next_ns < until_ns ? next_ns : until_ns);
    }
}
