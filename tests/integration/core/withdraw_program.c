/* A client that withdraws a request and an engine that takes it, at the same moment (test_core_between_processes.py).
 *
 *     withdraw_program ROUNDS
 *
 * One of the two sees the other in every round. If neither does, the program ends with a message and status 1.
 */

#include "core/ring.h"

#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* Polls until the other process may have this processor. */
#define POLLS 10000

typedef struct {
    _Alignas(4096) RequestHead request;
    _Alignas(4096) ReplyHead reply;
    /* The round that each process has come to, and whether the client missed the mark in its last one. */
    _Alignas(4096) Word client_round;
    _Alignas(4096) Word engine_round;
    _Alignas(4096) Word missed;
} Shared;

/* Begin a round together with the other process. */
static void meet(Word *own, const Word *other, uint64_t round)
{
    store_release(own, round);
    for (int poll = 1; load_acquire(other) < round; poll++)
        if (poll % POLLS == 0)
            sched_yield();
}

static void client(Shared *shared, uint64_t rounds)
{
    for (uint64_t round = 1; round <= rounds; round++) {
        meet(&shared->client_round, &shared->engine_round, 2 * round - 1);
        ring_cancel(&shared->request, sequence_of(round, 0));
        store_relaxed(&shared->missed, !ring_is_taken(&shared->reply, sequence_of(round, 0)));
        meet(&shared->client_round, &shared->engine_round, 2 * round);
    }
}

static int engine(Shared *shared, uint64_t rounds)
{
    for (uint64_t round = 1; round <= rounds; round++) {
        meet(&shared->engine_round, &shared->client_round, 2 * round - 1);
        ring_take(&shared->reply, sequence_of(round, 0));
        bool runs = !ring_is_cancelled(&shared->request, sequence_of(round, 0));
        meet(&shared->engine_round, &shared->client_round, 2 * round);
        if (runs && load_relaxed(&shared->missed)) {
            printf("request %" PRIu64 " runs, and its client says that it does not\n", round);
            return 1;
        }
    }
    printf("%" PRIu64 " requests\n", rounds);
    return 0;
}

int main(int count, char **args)
{
    uint64_t rounds = count == 2 ? strtoull(args[1], NULL, 0) : 0;
    Shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = !rounds || shared == MAP_FAILED ? -1 : fork();
    if (child < 0)
        return 2;
    if (child == 0) {
        client(shared, rounds);
        _exit(0);
    }
    int failed = engine(shared, rounds), status = 0;
    fflush(stdout);
    if (failed)
        kill(child, SIGKILL);
    return waitpid(child, &status, 0) != child || failed || !WIFEXITED(status) || WEXITSTATUS(status);
}
