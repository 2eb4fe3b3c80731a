/* The channel of a client: two segments and two doorbells, opened as the daemon describes them. What the daemon sends
 * is checked before it is mapped (shmserve/segment.py, shmserve/sealed_memory.py).
 */

#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
/* Slots rotate while they are no larger than this together: as in shmserve/ring.py. */
#define ROTATING_BYTES ((uint64_t)4 << 20)

typedef struct {
    uint64_t epoch, channel, generation;
} Identity;

static int refused(shmserve_client *client, const char *why)
{
    return fail(client, SHMSERVE_PROTOCOL, "the channel that the daemon of '%s' gave is refused: %s", client->service,
                why);
}

/* Why a descriptor of another process is unsafe to map; NULL: it is safe. */
static const char *unsafe_to_map(int descriptor, bool writable)
{
    struct statvfs system;
    int seals = fcntl(descriptor, F_GET_SEALS), flags = fcntl(descriptor, F_GETFL), mode = flags & O_ACCMODE;
    if (seals < 0)
        return "the memory of a channel is not a memfd; it was not mapped";
    if ((seals & SEALS) != SEALS)
        return "the memory of a channel is not sealed: its sender could shrink it, and kill the process that maps it; "
               "it was "
               "not mapped";
    if (fstatvfs(descriptor, &system) != 0 || system.f_bsize != (unsigned long)sysconf(_SC_PAGESIZE))
        return "the memory of a channel consists of huge pages, of which the system can run out when they are touched; "
               "it was "
               "not mapped";
    if (mode == O_WRONLY || (writable && mode != O_RDWR))
        return "the memory of a channel is not open as it must be; it was not mapped";
    if (writable && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)))
        return "the memory of a channel is sealed against writing; it was not mapped";
    return NULL;
}

/* Map the segment behind a descriptor, which stays the caller's. */
static int map_segment(shmserve_client *client, Segment *segment, int descriptor, bool writable,
                       const Identity *identity)
{
    uint64_t header[HEADER_WORDS];
    struct stat found;
    char text[160];
    if (fstat(descriptor, &found) != 0)
        return attach_error(client, errno, NULL);
    if (!S_ISREG(found.st_mode) || found.st_size < (off_t)sizeof header ||
        pread(descriptor, header, sizeof header, 0) != (ssize_t)sizeof header)
        return refused(client, "it is no segment: it has no header");
    if (header[HEADER_MAGIC] != MAGIC || header[HEADER_WIRE_VERSION] != WIRE_VERSION) {
        (void)snprintf(
            text, sizeof text,
            "segment has magic %#llx and wire version %llu, this side %#llx and %d: install the same shmserve on "
            "both sides",
            (unsigned long long)header[HEADER_MAGIC], (unsigned long long)header[HEADER_WIRE_VERSION],
            (unsigned long long)MAGIC, WIRE_VERSION);
        return refused(client, text);
    }
    uint64_t slots = header[HEADER_SLOTS], metadata = header[HEADER_METADATA_BYTES],
             payload = header[HEADER_PAYLOAD_BYTES];
    if (slots < 1 || slots > MAX_SLOTS || metadata < 1 || metadata > MAX_METADATA_BYTES || metadata % CACHE_LINE ||
        payload > MAX_PAYLOAD_BYTES)
        return refused(client, "segment header makes no sense");
    uint64_t stride = slot_stride(metadata, payload), bytes = SLOTS_OFFSET + slots * stride;
    if ((uint64_t)found.st_size < bytes)
        return refused(client, "the segment is shorter than its header says");
    if (header[HEADER_EPOCH] != identity->epoch || header[HEADER_CHANNEL] != identity->channel ||
        header[HEADER_GENERATION] != identity->generation)
        return refused(client, "a segment belongs to another channel");
    void *memory = mmap(NULL, bytes, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED | MAP_POPULATE, descriptor, 0);
    if (memory == MAP_FAILED)
        return attach_error(client, errno, NULL);
    *segment = (Segment){.memory = memory, .bytes = bytes, .metadata_bytes = metadata, .payload_bytes = payload};
    segment->ring = (Ring){.line = (CounterLine *)((char *)memory + COUNTER_OFFSET),
                           .heads = (char *)memory + SLOTS_OFFSET,
                           .stride = stride,
                           .slots = slots};
    if (client->options.lock_memory && mlock(memory, bytes) != 0)
        return fail(client, SHMSERVE_MEMORY,
                    "the channel of '%s' cannot be locked in memory (%zu bytes: %s): raise the limit (ulimit -l, "
                    "LimitMEMLOCK=), or open the client without lock_memory",
                    client->service, (size_t)bytes, strerror(errno));
    return SHMSERVE_OK;
}

/* POSIX: one slash at the beginning, of characters that a file name of /dev/shm may have. */
static bool is_object_name(const char *name)
{
    if (name == NULL || name[0] != '/' || !name[1] || strlen(name) > 201)
        return false;
    for (const char *at = name + 1; *at; at++)
        if (!((*at >= '0' && *at <= '9') || (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') || *at == '_' ||
              *at == '.' || *at == '-'))
            return false;
    return true;
}

static int foreign(shmserve_client *client, const char *what, const char *name, uid_t uid)
{
    return fail(client, SHMSERVE_FOREIGN, "%s %s belongs to uid %u, whose daemon this is not: not used", what, name,
                (unsigned)uid);
}

static int open_segment(shmserve_client *client, Segment *segment, const char *name, bool writable,
                        const Identity *identity)
{
    struct stat found;
    int descriptor = shm_open(name, writable ? O_RDWR : O_RDONLY, 0), status;
    if (descriptor < 0 && errno == ENOENT)
        return fail(
            client, SHMSERVE_UNAVAILABLE,
            "shared memory %s is gone: the daemon stopped, or this process sees another /dev/shm (in a container share "
            "the host's, or use transport 'sealed')",
            name);
    if (descriptor < 0)
        return attach_error(client, errno, name);
    if (fstat(descriptor, &found) != 0)
        status = attach_error(client, errno, name);
    else if (!is_owner(&client->place, found.st_uid))
        status = foreign(client, "shared memory", name, found.st_uid);
    else
        status = map_segment(client, segment, descriptor, writable, identity);
    close(descriptor);
    return status;
}

static int open_bell(shmserve_client *client, sem_t **bell, const char *name)
{
    char file[300];
    struct stat found;
    sem_t *opened = sem_open(name, 0);
    if (opened == SEM_FAILED && errno == ENOENT)
        return fail(client, SHMSERVE_UNAVAILABLE, "semaphore %s is gone: the daemon stopped", name);
    if (opened == SEM_FAILED)
        return attach_error(client, errno, name);
    *bell = opened;
    (void)snprintf(file, sizeof file, "/dev/shm/sem.%s", name + 1);
    /* Names are random, and only the owner can remove one, so that another user cannot replace it. */
    if (client->place.owners_count && lstat(file, &found) != 0)
        return fail(client, SHMSERVE_UNAVAILABLE, "semaphore %s is gone: the daemon stopped", name);
    if (client->place.owners_count && !is_owner(&client->place, found.st_uid))
        return foreign(client, "semaphore", name, found.st_uid);
    return SHMSERVE_OK;
}

/* Take over this end of a pipe, which blocks no more. */
static int take_pipe(shmserve_client *client, int *pipe, int descriptor, int mode)
{
    struct stat found;
    int flags = fcntl(descriptor, F_GETFL);
    if (fstat(descriptor, &found) != 0 || !S_ISFIFO(found.st_mode) || (flags & O_ACCMODE) != mode)
        return refused(client, mode == O_WRONLY ? "a doorbell is the writing end of a pipe"
                                                : "a doorbell is the reading end of a pipe");
    if (!(flags & O_NONBLOCK) && fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) != 0)
        return attach_error(client, errno, NULL);
    *pipe = descriptor;
    return SHMSERVE_OK;
}

static int open_sealed(shmserve_client *client, Channel *channel, const Identity *identity, Descriptors *given,
                       const Channel *before)
{
    const char *problem;
    int status, expected = before != NULL ? 2 : CHANNEL_DESCRIPTORS;
    if (given->count != expected)
        return refused(client, "another number of descriptors came with a channel of transport 'sealed' than it has");
    for (int direction = 0; direction < 2; direction++) {
        bool writable = direction == 0;
        if ((problem = unsafe_to_map(given->descriptors[direction], writable)) != NULL)
            return refused(client, problem);
        if ((status = map_segment(client, writable ? &channel->requests : &channel->replies,
                                  given->descriptors[direction], writable, identity)) != SHMSERVE_OK)
            return status;
    }
    if (before != NULL) {
        channel->request_pipe = before->request_pipe;
        channel->reply_pipe = before->reply_pipe;
        return SHMSERVE_OK;
    }
    int reply_pipe = given->descriptors[3], request_pipe = given->descriptors[2];
    given->count = 3;
    if ((status = take_pipe(client, &channel->reply_pipe, reply_pipe, O_RDONLY)) != SHMSERVE_OK) {
        close(reply_pipe);
        return status;
    }
    given->count = 2;
    if ((status = take_pipe(client, &channel->request_pipe, request_pipe, O_WRONLY)) != SHMSERVE_OK)
        close(request_pipe);
    return status;
}

static int open_named(shmserve_client *client, Channel *channel, const Identity *identity, const JsonValue *names)
{
    static const char *const parts[] = {"requests", "replies", "request_bell", "reply_bell"};
    const char *found[4];
    int status;
    for (int part = 0; part < 4; part++) {
        found[part] = json_text(&client->reply, json_member(&client->reply, names, parts[part]));
        if (!is_object_name(found[part]))
            return unreadable(client, "Attach", "its channel is not described by numbers and names");
    }
    if ((status = open_segment(client, &channel->requests, found[0], true, identity)) != SHMSERVE_OK ||
        (status = open_segment(client, &channel->replies, found[1], false, identity)) != SHMSERVE_OK ||
        (status = open_bell(client, &channel->request_bell, found[2])) != SHMSERVE_OK)
        return status;
    return open_bell(client, &channel->reply_bell, found[3]);
}

int channel_open(shmserve_client *client, Channel *channel, const JsonValue *info, Descriptors *descriptors,
                 const Channel *before)
{
    const Json *json = &client->reply;
    const JsonValue *identified = json_member(json, info, "identity"), *names = json_member(json, info, "names");
    Identity identity;
    *channel = (Channel){.request_pipe = -1, .reply_pipe = -1};
    if (!json_is(identified, JSON_OBJECT) || identified->count != 3 || names == NULL ||
        (!json_is(names, JSON_NULL) && (!json_is(names, JSON_OBJECT) || names->count != 4)) ||
        !json_word(json_member(json, identified, "epoch"), &identity.epoch) ||
        !json_word(json_member(json, identified, "channel"), &identity.channel) ||
        !json_word(json_member(json, identified, "generation"), &identity.generation)) {
        close_descriptors(descriptors);
        return unreadable(client, "Attach", "its channel is not described by numbers and names");
    }
    bool is_sealed = json_is(names, JSON_NULL);
    int status = is_sealed ? open_sealed(client, channel, &identity, descriptors, before)
                           : open_named(client, channel, &identity, names);
    close_descriptors(descriptors);
    if (status == SHMSERVE_OK && channel->requests.ring.slots != channel->replies.ring.slots)
        status = refused(client, "its directions have different numbers of slots");
    if (status != SHMSERVE_OK) {
        channel_close(channel, is_sealed && before != NULL);
        return status;
    }
    uint64_t payload = channel->requests.payload_bytes ? channel->requests.payload_bytes : 1;
    uint64_t rotating = ROTATING_BYTES / payload;
    channel->rotating_slots = rotating < 1                              ? 1
                              : rotating > channel->requests.ring.slots ? channel->requests.ring.slots
                                                                        : rotating;
    return SHMSERVE_OK;
}

void channel_close(Channel *channel, bool keeps_bells)
{
    if (channel->requests.memory != NULL)
        munmap(channel->requests.memory, channel->requests.bytes);
    if (channel->replies.memory != NULL)
        munmap(channel->replies.memory, channel->replies.bytes);
    if (!keeps_bells) {
        if (channel->request_bell != NULL)
            sem_close(channel->request_bell);
        if (channel->reply_bell != NULL)
            sem_close(channel->reply_bell);
        if (channel->request_pipe >= 0)
            close(channel->request_pipe);
        if (channel->reply_pipe >= 0)
            close(channel->reply_pipe);
    }
    *channel = (Channel){.request_pipe = -1, .reply_pipe = -1};
}

/* A write into a pipe without a reader raises SIGPIPE, which ends a program that does not expect it. */
static void ring_pipe(int pipe)
{
    sigset_t ours, before, pending;
    struct timespec no_time = {0};
    sigemptyset(&ours);
    sigaddset(&ours, SIGPIPE);
    if (pthread_sigmask(SIG_BLOCK, &ours, &before) != 0)
        return;
    /* EAGAIN: 65,536 tokens wait already. EPIPE: the listener is gone, which the connection reports. */
    if (write(pipe, "", 1) < 0 && errno == EPIPE && sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) &&
        !sigismember(&before, SIGPIPE))
        (void)sigtimedwait(&ours, NULL, &no_time);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void ring_engine(const Channel *channel)
{
    if (channel->request_bell != NULL)
        (void)sem_post(channel->request_bell);
    else
        ring_pipe(channel->request_pipe);
}
