/* A counter of the instructions that a thread runs between marks, one step at a time.
 *
 *     step_counter PID SEGMENTS >COUNTS
 *
 * The thread marks its beginnings and ends by the system call getppid, which does nothing. Prints "ready" when it has
 * the thread, then for each stretch between two marks a line: the instructions before its first long sleep (0 if it did
 * not sleep) and after its last one, the fewest between two sleeps (0 if there are none), and the 64-byte lines and pages
 * of code of the first two. A repeated string instruction counts once. The kernel's instructions are not counted.
 * Exit status 2: the thread cannot be traced, or ended. x86-64 only. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>

enum { LINE_BITS = 6, PAGE_BITS = 12, PLACES = 1 << 20, ASLEEP_NS = 5000000 };

/* A set of numbers above 0, open addressing; it never fills, because a path through code is short. */
typedef struct {
    uint64_t *places;
    size_t count;
} Set;

static void add(Set *set, uint64_t number) {
    size_t at = (number * 0x9E3779B97F4A7C15ull) >> 44;
    while (set->places[at] && set->places[at] != number) at = (at + 1) % PLACES;
    if (set->places[at]) return;
    if (set->count == PLACES / 2) {
        fprintf(stderr, "step_counter: more than %d lines of code in one stretch\n", PLACES / 2);
        exit(2);
    }
    set->places[at] = number;
    set->count++;
}

static void empty(Set *set) {
    memset(set->places, 0, PLACES * sizeof *set->places);
    set->count = 0;
}

static void add_all(Set *set, const Set *more) {
    for (size_t i = 0; i < PLACES; i++)
        if (more->places[i]) add(set, more->places[i]);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int failed(const char *what) {
    fprintf(stderr, "step_counter: %s: %s\n", what, errno == ESRCH ? "the process ended" : strerror(errno));
    return 2;
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "step_counter: want PID SEGMENTS\n"), 2;
    pid_t pid = atoi(argv[1]);
    int wanted = atoi(argv[2]), status;
    /* The first leg and the last one of a stretch. Pages are found from the lines. */
    Set before = {calloc(PLACES, sizeof(uint64_t)), 0}, after = {calloc(PLACES, sizeof(uint64_t)), 0};
    Set pages = {calloc(PLACES, sizeof(uint64_t)), 0};
    if (!before.places || !after.places || !pages.places) return failed("memory");
    if (ptrace(PTRACE_SEIZE, pid, 0, 0)) return failed("ptrace");
    if (ptrace(PTRACE_INTERRUPT, pid, 0, 0)) return failed("ptrace");
    if (waitpid(pid, &status, __WALL) < 0) return failed("waitpid");
    puts("ready");
    fflush(stdout);

    uint64_t last = 0, count = 0, until_asleep = 0, between = 0;
    int marks = 0, signal = 0;
    while (marks <= wanted) {
        int64_t began = now();
        if (ptrace(PTRACE_SINGLESTEP, pid, 0, signal)) return failed("step");
        if (waitpid(pid, &status, __WALL) < 0) return failed("waitpid");
        if (!WIFSTOPPED(status)) return fprintf(stderr, "step_counter: the process ended\n"), 2;
        signal = status >> 16 || WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
        if (status >> 16 || signal) continue;
        struct user_regs_struct regs;
        if (ptrace(PTRACE_GETREGS, pid, 0, &regs)) return failed("registers");
        if ((long)regs.orig_rax == SYS_getppid) {
            if (marks++) {
                add_all(&before, &after);
                for (size_t i = 0; i < PLACES; i++)
                    if (before.places[i]) add(&pages, before.places[i] >> (PAGE_BITS - LINE_BITS));
                printf("%lu %lu %lu %zu %zu\n", until_asleep, count, between, before.count, pages.count);
                fflush(stdout);
            }
            count = until_asleep = between = 0;
            empty(&before);
            empty(&after);
            empty(&pages);
            continue;
        }
        if (regs.rip == last) continue;
        last = regs.rip;
        count++;
        add(&after, regs.rip >> LINE_BITS);
        if ((long)regs.orig_rax >= 0 && now() - began > ASLEEP_NS) {
            if (!until_asleep) {
                until_asleep = count;
                add_all(&before, &after);
            } else if (!between || count < between) {
                between = count;
            }
            count = 0;
            empty(&after);
        }
    }
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return 0;
}
