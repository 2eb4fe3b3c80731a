/* Two processes that exchange requests and replies through the core's ring ends (test_core_between_processes.py).
 *
 *     exchange_program REQUESTS
 *
 * Every word of a request, and of its reply, is computed from its number. The client rotates through the slots and announces each
 * write; the engine copies while it spins. A word of another request ends the program with a message and status 1.
 */

#include "core/cut_through.h"
#include "core/ring.h"
#include "core/waiting.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOTS 3
#define METADATA_BYTES 64
#define PAYLOAD_BYTES (3 * CUT_THROUGH_PIECE)
#define PAYLOAD_WORDS (PAYLOAD_BYTES / 8)
/* Polls until the other process may have this processor. */
#define POLLS 100

static uint64_t word_of(uint64_t number, uint64_t place) { return number * 0x9E3779B97F4A7C15u + place; }

static void expect(uint64_t found, uint64_t expected, const char *what, uint64_t number)
{
    if (found == expected)
        return;
    printf("%s of request %" PRIu64 ": %" PRIu64 " instead of %" PRIu64 "\n", what, number, found, expected);
    fflush(stdout);
    _exit(1);
}

static void fill(uint64_t *payload, uint64_t number, CounterLine *announced)
{
    for (uint64_t place = 0; place < PAYLOAD_WORDS; place++) {
        payload[place] = word_of(number, place);
        if (announced != NULL && (place + 1) * 8 % CUT_THROUGH_PIECE == 0)
            announce_progress(announced, (place + 1) * 8);
    }
}

static void check(const uint64_t *payload, uint64_t number, const char *what)
{
    for (uint64_t place = 0; place < PAYLOAD_WORDS; place++)
        expect(payload[place], word_of(number, place), what, number);
}

static uint64_t *payload_of(const Ring *ring, uint64_t sequence)
{
    return (uint64_t *)((char *)ring_head(ring, sequence) + SLOT_HEAD_BYTES + METADATA_BYTES);
}

/* Wait until this counter is not the value that was seen last; the copier copies meanwhile. */
static uint64_t wait_for(const CounterLine *line, uint64_t last_seen, CutThrough *copier)
{
    Watch watch = {.line = line, .last_seen = last_seen};
    for (int poll = 1; !has_moved(&watch); poll++) {
        if (copier != NULL)
            cut_through_advance(copier);
        if (poll % POLLS == 0)
            sched_yield();
    }
    return load_relaxed(&line->counter);
}

static void client(Ring *requests, Ring *replies, uint64_t count)
{
    for (uint64_t number = 1; number <= count; number++) {
        uint64_t sequence = sequence_of(number, number % SLOTS), seen = load_relaxed(&replies->line->counter);
        uint64_t write_id = announce_write(requests->line, slot_of(sequence));
        fill(payload_of(requests, sequence), number, requests->line);
        uint64_t words[REQUEST_WORDS], reply[REPLY_WORDS];
        for (int index = 0; index < REQUEST_WORDS; index++)
            words[index] = word_of(number, (uint64_t)index);
        words[REQUEST_SEQUENCE] = sequence;
        words[REQUEST_CANCELLED] = 0;
        words[REQUEST_WRITE_ID] = write_id;
        ring_publish(requests->line, ring_head(requests, sequence), words);
        wait_for(replies->line, seen, NULL);
        if (!ring_copy_reply(ring_head(replies, sequence), sequence, reply))
            expect(0, sequence, "reply behind its count", number);
        for (int index = 1; index <= REPLY_PUBLISHED; index++)
            expect(reply[index], word_of(number, (uint64_t)index), "reply's head", number);
        expect(reply[REPLY_ATTEMPTS], 1, "attempts", number);
        check(payload_of(replies, sequence), number, "reply's payload");
    }
}

/* Returns the bytes that were copied before their request was published. */
static uint64_t engine(Ring *requests, Ring *replies, uint64_t count)
{
    static uint64_t arena[PAYLOAD_WORDS];
    CutThrough copier;
    memset(&copier, 0, sizeof copier);
    copier.line = requests->line;
    copier.payloads = (const char *)payload_of(requests, 0);
    copier.stride = requests->stride;
    copier.slots = SLOTS;
    copier.room = PAYLOAD_BYTES;
    copier.target = (char *)arena;
    copier.target_bytes = sizeof arena;
    uint64_t seen = 0, early = 0;
    for (uint64_t number = 1; number <= count; number++) {
        uint64_t sequence = wait_for(requests->line, seen, &copier), words[REQUEST_WORDS], reply[REPLY_PUBLISHED + 1];
        expect(number_of(sequence), number, "number", number);
        ring_copy_request(ring_head(requests, sequence), words);
        expect(words[REQUEST_SEQUENCE], sequence, "sequence", number);
        for (int index = 1; index < REQUEST_CANCELLED; index++)
            expect(words[index], word_of(number, (uint64_t)index), "request's head", number);
        copier.committed = words[REQUEST_WRITE_ID];
        ring_take(ring_head(replies, sequence), sequence);
        size_t done = cut_through_take(&copier, words[REQUEST_WRITE_ID]);
        memcpy((char *)arena + done, (char *)payload_of(requests, sequence) + done, sizeof arena - done);
        check(arena, number, "request's payload");
        early += done;
        fill(payload_of(replies, sequence), number, NULL);
        for (int index = 0; index <= REPLY_PUBLISHED; index++)
            reply[index] = word_of(number, (uint64_t)index);
        reply[REPLY_SEQUENCE] = sequence;
        ring_complete(replies->line, ring_head(replies, sequence), reply);
        seen = sequence;
    }
    return early;
}

int main(int count, char **args)
{
    uint64_t requests_count = count == 2 ? strtoull(args[1], NULL, 0) : 0;
    size_t stride = slot_stride(METADATA_BYTES, PAYLOAD_BYTES), size = SLOTS_OFFSET + SLOTS * stride;
    char *memory = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!requests_count || memory == MAP_FAILED)
        return 2;
    Ring rings[2];
    for (int index = 0; index < 2; index++) {
        char *segment = memory + (size_t)index * size;
        rings[index] = (Ring){(CounterLine *)(segment + COUNTER_OFFSET), segment + SLOTS_OFFSET, stride, SLOTS};
    }
    pid_t child = fork();
    if (child < 0)
        return 2;
    if (child == 0) {
        client(&rings[0], &rings[1], requests_count);
        _exit(0);
    }
    uint64_t early = engine(&rings[0], &rings[1], requests_count);
    int status = 0;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status))
        return 1;
    printf("%" PRIu64 " requests, %" PRIu64 " bytes copied while they were written\n", requests_count, early);
    return 0;
}
