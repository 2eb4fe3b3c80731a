/* Calls to the daemon over client.sock (https://varlink.org): one JSON object and a NUL byte each way. The connection
 * is the lease of the channel. A reply that came too late for its call is dropped when the next one is made.
 */

#include "client.h"
#include "core/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define INTERFACE "io.shmserve.Client"
enum { BACKLOG_RETRY_NS = 10000000, NAME_LIMIT = 256 };

int unreadable(shmserve_client *client, const char *method, const char *what)
{
    return fail(
        client, SHMSERVE_PROTOCOL,
        "the daemon of '%s' gave %s an answer that cannot be read (%s): install the same shmserve on both sides, and "
        "see whose daemon it is",
        client->service, method, what);
}

int attach_error(shmserve_client *client, int number, const char *what)
{
    const char *service = client->service, *path = client->place.socket;
    char object[300];
    (void)snprintf(object, sizeof object, "%s%s%s", strerror(number), what != NULL ? ": " : "",
                   what != NULL ? what : "");
    switch (number) {
    case ENOENT:
    case ECONNREFUSED:
    case ECONNRESET:
    case ECONNABORTED:
    case EPIPE:
        return fail(client, SHMSERVE_UNAVAILABLE,
                    "no daemon serves '%s' at %s: start one (shmserved --model-path DIR --name %s), or say where it is "
                    "(runtime_dir or SHMSERVE_RUNTIME_DIR)",
                    service, path, service);
    case EMFILE:
    case ENFILE:
        return fail(
            client, SHMSERVE_MEMORY,
            "no channel of '%s': this process may open no more files (%s): close clients and files that are not "
            "needed, or raise the limit (ulimit -n, LimitNOFILE=)",
            service, object);
    case ENOMEM:
        return fail(
            client, SHMSERVE_MEMORY,
            "no channel of '%s': this process has no memory to map it (%s): fewer slots, smaller observations, or more "
            "memory (ulimit -v, MemoryMax=)",
            service, object);
    case EACCES:
    case EPERM:
        return fail(
            client, SHMSERVE_UNAVAILABLE,
            "no channel of '%s': uid %u may not open it (%s): join the daemon's group and set group_clients, or use "
            "transport 'sealed'",
            service, (unsigned)geteuid(), object);
    case ENOTDIR:
    case ELOOP:
        return fail(client, SHMSERVE_UNAVAILABLE,
                    "no daemon serves '%s' at %s (%s): say where it is (runtime_dir or SHMSERVE_RUNTIME_DIR)", service,
                    path, object);
    default:
        return fail(client, SHMSERVE_UNAVAILABLE, "no channel of '%s' at %s: %s", service, path, object);
    }
}

/* Wait for an event of the socket; false at the deadline. */
static bool wait_for(int descriptor, short event, uint64_t deadline_ns)
{
    uint64_t now_ns = monotonic_ns();
    if (now_ns >= deadline_ns)
        return false;
    uint64_t left_ns = deadline_ns - now_ns;
    struct timespec left = {.tv_sec = (time_t)(left_ns / 1000000000u), .tv_nsec = (long)(left_ns % 1000000000u)};
    struct pollfd polled = {.fd = descriptor, .events = event};
    (void)ppoll(&polled, 1, &left, NULL);
    return true;
}

int connect_lease(shmserve_client *client, uint64_t deadline_ns)
{
    const char *path = client->place.socket;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int status = check_owners(client);
    if (status != SHMSERVE_OK)
        return status;
    memcpy(address.sun_path, path, strlen(path) + 1);
    int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0)
        return attach_error(client, errno, NULL);
    while (connect(descriptor, (const struct sockaddr *)&address, sizeof address) != 0) {
        int number = errno;
        if (number == EINTR)
            continue;
        uint64_t now_ns = monotonic_ns();
        if (number == EAGAIN && now_ns < deadline_ns) { /* the backlog is full; there is nothing to poll for */
            struct timespec pause = {.tv_nsec = BACKLOG_RETRY_NS};
            (void)nanosleep(&pause, NULL);
            continue;
        }
        close(descriptor);
        if (number == EAGAIN)
            return fail(client, SHMSERVE_UNAVAILABLE, "%s accepted no connection in time", path);
        if (number == EACCES || number == EPERM)
            return fail(client, SHMSERVE_UNAVAILABLE,
                        "%s may not be opened by uid %u: join the daemon's group and set group_clients", path,
                        (unsigned)getuid());
        return attach_error(client, number, NULL);
    }
    if ((status = check_daemon(client, descriptor)) != SHMSERVE_OK) {
        close(descriptor);
        return status;
    }
    client->lease = descriptor;
    client->calls_ahead = 0;
    client->message_bytes = 0;
    client->is_lost = false;
    return SHMSERVE_OK;
}

void close_descriptors(Descriptors *descriptors)
{
    while (descriptors->count)
        close(descriptors->descriptors[--descriptors->count]);
}

/* One recvmsg. Bytes of it, 0 at the end of the stream, -1 with errno; EMSGSIZE: more descriptors than a channel has.
 */
static ssize_t receive(int lease, char *bytes, size_t size, Descriptors *descriptors)
{
    union {
        char bytes[CMSG_SPACE(CHANNEL_DESCRIPTORS * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec part = {.iov_base = bytes, .iov_len = size};
    /* CMSG_LEN, not CMSG_SPACE: the padding would hold one descriptor more. */
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = CMSG_LEN(CHANNEL_DESCRIPTORS * sizeof(int))};
    ssize_t count = recvmsg(lease, &message, MSG_CMSG_CLOEXEC);
    if (count < 0)
        return count;
    bool is_cut = message.msg_flags & MSG_CTRUNC;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        size_t given = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t index = 0; index < given; index++) {
            int descriptor;
            memcpy(&descriptor, CMSG_DATA(header) + index * sizeof(int), sizeof descriptor);
            if (descriptors->count == CHANNEL_DESCRIPTORS) {
                close(descriptor);
                is_cut = true;
            }
            else
                descriptors->descriptors[descriptors->count++] = descriptor;
        }
    }
    if (is_cut) {
        errno = descriptors->count < CHANNEL_DESCRIPTORS ? EMFILE : EMSGSIZE;
        return -1;
    }
    return count;
}

/* Read to the end of the next message, which stays in client->message without its NUL. 1, 0 at the deadline, -1 with
 * errno; ECONNRESET: the end of the stream. A read never goes past the end of a message, because the kernel hands out
 * descriptors with the first byte that it reads of theirs. */
static int read_message(shmserve_client *client, uint64_t deadline_ns, Descriptors *descriptors)
{
    for (;;) {
        char *to = client->message + client->message_bytes;
        size_t room = MESSAGE_LIMIT - client->message_bytes;
        if (!room) {
            errno = EMSGSIZE;
            return -1;
        }
        ssize_t waiting = recv(client->lease, to, room, MSG_PEEK);
        if (waiting < 0 && errno == EINTR)
            continue;
        if (waiting < 0 && errno == EAGAIN) {
            if (!wait_for(client->lease, POLLIN, deadline_ns))
                return 0;
            continue;
        }
        if (waiting == 0)
            errno = ECONNRESET;
        if (waiting <= 0)
            return -1;
        const char *end = memchr(to, '\0', (size_t)waiting);
        ssize_t count = receive(client->lease, to, end != NULL ? (size_t)(end - to) + 1 : (size_t)waiting, descriptors);
        if (count == 0)
            errno = ECONNRESET;
        if (count <= 0 && errno != EINTR && errno != EAGAIN)
            return -1;
        if (count <= 0)
            continue;
        client->message_bytes += (size_t)count;
        if (to[count - 1] == '\0')
            return 1;
    }
}

static size_t characters(const char *text)
{
    size_t count = 0;
    for (; *text; text++)
        count += (*text & 0xc0) != 0x80;
    return count;
}

/* Whether what was read is a reply, as decode_reply of shmserve/varlink.py has it. */
bool is_reply(const Json *json)
{
    const JsonValue *all = json->values, *error = json_member(json, all, "error");
    const JsonValue *parameters = json_member(json, all, "parameters"),
                    *continues = json_member(json, all, "continues");
    if (json_is(error, JSON_NULL))
        error = NULL;
    if ((parameters != NULL && !json_is(parameters, JSON_NULL) && !json_is(parameters, JSON_OBJECT)) ||
        (continues != NULL && !json_is(continues, JSON_NULL) && !json_is_bool(continues)))
        return false;
    if (error == NULL)
        return true;
    return json_is(error, JSON_STRING) && !json_is(continues, JSON_TRUE) &&
           (json_text(json, error) == NULL ? error->bytes : characters(json_text(json, error))) <= NAME_LIMIT;
}

static const char *text_of(const Json *json, const JsonValue *object, const char *name)
{
    const char *text = json_text(json, json_member(json, object, name));
    return text != NULL ? text : "None";
}

static int evicted(shmserve_client *client, const Json *json, const JsonValue *parameters)
{
    return fail(client, SHMSERVE_EVICTED, "the daemon of '%s' serves this process no more: %s", client->service,
                text_of(json, parameters, "message"));
}

bool was_refused(const shmserve_client *client)
{
    const char *error = json_text(&client->reply, json_member(&client->reply, client->reply.values, "error"));
    return client->reply.count > 0 && error != NULL && strcmp(error, INTERFACE ".Refused") == 0;
}

int daemon_error(shmserve_client *client, const Json *json)
{
    const char *given = json_text(json, error_of(json)), *error = given != NULL ? given : "an error without a name";
    const JsonValue *parameters = json_member(json, json->values, "parameters");
    const char *name = strncmp(error, INTERFACE ".", sizeof INTERFACE) == 0 ? error + sizeof INTERFACE : error;
    const char *service = client->service, *reason = text_of(json, parameters, "reason");
    uint64_t version = 0;
    if (strcmp(name, "ProtocolMismatch") == 0) {
        (void)json_word(json_member(json, parameters, "wire_version"), &version);
        return fail(
            client, SHMSERVE_PROTOCOL,
            "the daemon of '%s' speaks wire version %llu, this client %d: install the same shmserve on both sides",
            service, (unsigned long long)version, WIRE_VERSION);
    }
    if (strcmp(name, "Evicted") == 0 || (strcmp(name, "Refused") == 0 && strcmp(reason, "evicted") == 0))
        return evicted(client, json, parameters);
    if (strcmp(name, "Refused") == 0 && strcmp(reason, "too_large") == 0)
        return fail(client, SHMSERVE_TOO_LARGE, "the daemon of '%s' refuses a channel of this size: %s", service,
                    text_of(json, parameters, "message"));
    if (strcmp(name, "Refused") == 0)
        return fail(client, SHMSERVE_UNAVAILABLE, "the daemon of '%s' gives no channel: %s", service,
                    text_of(json, parameters, "message"));
    if (strcmp(name, "Stopping") == 0)
        return fail(client, SHMSERVE_UNAVAILABLE, "the daemon of '%s' is stopping", service);
    if (strcmp(error, "org.varlink.service.PermissionDenied") == 0)
        return fail(client, SHMSERVE_UNAVAILABLE,
                    "the daemon of '%s' does not serve uid %u: its setting %s must name this user", service,
                    (unsigned)geteuid(), text_of(json, parameters, "setting"));
    return fail(client, SHMSERVE_UNAVAILABLE, "the daemon of '%s' refused: %s", service, error);
}

static int call_error(shmserve_client *client, const char *method, int number)
{
    if (number == EMSGSIZE)
        return unreadable(client, method, "a message is too long, or brings too many file descriptors");
    if (number == EMFILE)
        return attach_error(client, EMFILE, NULL);
    if (number == ECONNRESET || number == EPIPE)
        return fail(client, SHMSERVE_UNAVAILABLE, "the daemon of '%s' closed the connection", client->service);
    return fail(client, SHMSERVE_UNAVAILABLE, "the daemon of '%s' could not be asked: %s", client->service,
                strerror(number));
}

static int late(shmserve_client *client, const char *method)
{
    return fail(client, SHMSERVE_UNAVAILABLE, "the daemon of '%s' did not answer %s in time", client->service, method);
}

bool send_call(shmserve_client *client, const char *method, const char *message, size_t bytes, uint64_t deadline_ns,
               int *status)
{
    for (size_t sent = 0; sent < bytes;) {
        ssize_t count = send(client->lease, message + sent, bytes - sent, MSG_NOSIGNAL);
        if (count >= 0)
            sent += (size_t)count;
        else if (errno == EAGAIN && !wait_for(client->lease, POLLOUT, deadline_ns)) {
            client->is_lost = client->is_lost || sent > 0; /* nothing can follow half a call */
            *status = late(client, method);
            return false;
        }
        else if (errno == EPIPE || errno == ECONNRESET)
            break; /* a service that refuses a connection says why before it closes it */
        else if (errno != EAGAIN && errno != EINTR) {
            *status = call_error(client, method, errno);
            return false;
        }
    }
    client->calls_ahead++;
    return true;
}

const JsonValue *error_of(const Json *reply)
{
    const JsonValue *error = json_member(reply, reply->values, "error");
    return error != NULL && !json_is(error, JSON_NULL) ? error : NULL;
}

int take_answer(shmserve_client *client, const char *method, Json *reply, uint64_t deadline_ns,
                Descriptors *descriptors, int *status)
{
    for (bool is_answered = false; !is_answered;) {
        int found = read_message(client, deadline_ns, descriptors);
        if (found <= 0) {
            close_descriptors(descriptors);
            *status = found < 0 ? call_error(client, method, errno) : late(client, method);
            return found;
        }
        bool is_read = json_read(reply, client->message, client->message_bytes - 1) && is_reply(reply);
        client->message_bytes = 0;
        if (!is_read) {
            close_descriptors(descriptors);
            *status = unreadable(client, method, "a message is not JSON, or no reply");
            return -1;
        }
        if (!json_is(json_member(reply, reply->values, "continues"), JSON_TRUE))
            client->calls_ahead--;
        is_answered = client->calls_ahead == 0;
        if (!is_answered || error_of(reply) != NULL)
            close_descriptors(descriptors);
        if (!is_answered && monotonic_ns() >= deadline_ns) { /* messages without end must not hold the caller */
            *status = late(client, method);
            return 0;
        }
    }
    return 1;
}

const JsonValue *call(shmserve_client *client, const char *method, const char *parameters, uint64_t deadline_ns,
                      Descriptors *descriptors, int *status)
{
    char message[2048];
    int bytes =
        snprintf(message, sizeof message, "{\"method\":\"" INTERFACE ".%s\",\"parameters\":%s}", method, parameters);
    descriptors->count = 0;
    client->reply.count = 0;
    client->robot.is_asked = false; /* its answer is dropped, as one that is late */
    if (!send_call(client, method, message, (size_t)bytes + 1, deadline_ns, status) ||
        take_answer(client, method, &client->reply, deadline_ns, descriptors, status) <= 0)
        return NULL;
    if (error_of(&client->reply) != NULL) {
        *status = daemon_error(client, &client->reply);
        return NULL;
    }
    const JsonValue *found = json_member(&client->reply, client->reply.values, "parameters");
    *status = SHMSERVE_OK;
    if (!json_is(found, JSON_OBJECT)) {
        *status = unreadable(client, method, "it has no parameters");
        close_descriptors(descriptors);
        return NULL;
    }
    return found;
}

bool is_peer_closed(int lease)
{
    struct pollfd polled = {.fd = lease, .events = POLLRDHUP};
    return lease < 0 || poll(&polled, 1, 0) > 0;
}

int note_lost(shmserve_client *client)
{
    /* What the daemon sends without a call before it closes the connection. In memory of this thread: an [R] call is
     * here. */
    JsonValue values[32];
    char message[1024], text[1024];
    Json json = {.values = values, .text = text, .room = 32, .text_room = sizeof text, .is_fixed = true};
    client->is_lost = true;
    ssize_t count = recv(client->lease, message, sizeof message, MSG_DONTWAIT | MSG_PEEK);
    const char *end = count > 0 ? memchr(message, '\0', (size_t)count) : NULL;
    if (end != NULL && json_read(&json, message, (size_t)(end - message)) && is_reply(&json)) {
        const char *error = json_text(&json, json_member(&json, values, "error"));
        if (error != NULL && strcmp(error, INTERFACE ".Evicted") == 0)
            return evicted(client, &json, json_member(&json, values, "parameters"));
    }
    return fail(
        client, SHMSERVE_RESTARTED,
        "the daemon of '%s' (%s) went away while requests were in flight: call shmserve_recover, which attaches to its "
        "successor",
        client->service, client->place.directory);
}
