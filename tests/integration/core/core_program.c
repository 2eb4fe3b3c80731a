/* One step of one ring end on a mapped segment, made with native/core/ alone (test_core_in_c.py).
 *
 *     core_program STEP FILE SEQUENCE [WORD...]
 *
 * It prints what the step returned, one number a word.
 */

#include "core/cut_through.h"
#include "core/ring.h"
#include "core/waiting.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

static void print(const uint64_t *words, int count)
{
    for (int index = 0; index < count; index++)
        printf("%" PRIu64 " ", words[index]);
}

int main(int count, char **args)
{
    uint64_t words[32] = {0}, copied[32];
    struct stat found;
    int file = count < 4 || count > 36 ? -1 : open(args[2], O_RDWR);
    if (file < 0 || fstat(file, &found) < 0)
        return 2;
    char *segment = mmap(NULL, (size_t)found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (segment == MAP_FAILED)
        return 2;
    const char *step = args[1];
    uint64_t sequence = strtoull(args[3], NULL, 0);
    for (int index = 4; index < count; index++)
        words[index - 4] = strtoull(args[index], NULL, 0);

    SegmentHeader *header = (SegmentHeader *)segment;
    uint64_t metadata_bytes = load_relaxed(&header->metadata_bytes);
    uint64_t payload_bytes = load_relaxed(&header->payload_bytes);
    CounterLine *line = (CounterLine *)(segment + COUNTER_OFFSET);
    Ring ring = {line, segment + SLOTS_OFFSET, slot_stride(metadata_bytes, payload_bytes),
                 load_relaxed(&header->slots)};
    void *head = ring_head(&ring, sequence);
    char *payloads = ring.heads + SLOT_HEAD_BYTES + metadata_bytes;

    if (strcmp(step, "identity") == 0) {
        const Word *word = &header->magic;
        for (int index = 0; index < HEADER_WORDS; index++)
            copied[index] = load_relaxed(&word[index]);
        print(copied, HEADER_WORDS);
    }
    else if (head == NULL)
        printf("no such slot");
    else if (strcmp(step, "publish") == 0)
        ring_publish(line, head, words);
    else if (strcmp(step, "cancel") == 0)
        ring_cancel(head, sequence);
    else if (strcmp(step, "keep") == 0)
        ring_keep(head);
    else if (strcmp(step, "cancelled") == 0)
        printf("%d", ring_is_cancelled(head, sequence));
    else if (strcmp(step, "request") == 0) {
        ring_copy_request(head, copied);
        print(copied, REQUEST_WORDS);
    }
    else if (strcmp(step, "take") == 0)
        printf("%" PRIu64, ring_take(head, sequence));
    else if (strcmp(step, "taken") == 0)
        printf("%d", ring_is_taken(head, sequence));
    else if (strcmp(step, "complete") == 0)
        ring_complete(line, head, words);
    else if (strcmp(step, "reply") == 0) {
        if (ring_copy_reply(head, sequence, copied))
            print(copied, REPLY_WORDS);
        else
            printf("none");
    }
    else if (strcmp(step, "wait") == 0) {
        WatchSet set = {.count = 1, .watches = {{line, words[0]}}};
        SpinClock clock = {monotonic_ns(), 0};
        printf("%d", spin_until(&set, 0, &clock, false));
    }
    else if (strcmp(step, "announce") == 0) {
        uint64_t write_id = announce_write(line, slot_of(sequence));
        memset(payloads + slot_of(sequence) * ring.stride, (int)words[0], payload_bytes);
        announce_progress(line, words[1]);
        printf("%" PRIu64, write_id);
    }
    else if (strcmp(step, "copy") == 0) {
        char *target = calloc(1, payload_bytes);
        CutThrough copy = {line, payloads, ring.stride, ring.slots, payload_bytes, target, payload_bytes, 0, 0, 0};
        while (target != NULL && cut_through_advance(&copy))
            ;
        size_t done = cut_through_take(&copy, words[0]);
        uint64_t bytes = 0;
        for (size_t index = 0; index < done; index++)
            bytes += (unsigned char)target[index];
        copied[0] = done;
        copied[1] = bytes;
        print(copied, 2);
        free(target);
    }
    else
        return 2;
    return 0;
}
