/* A round trip through shared memory and two semaphores, with nothing of a server in it.
 *
 *     floor BYTES COPIES SPIN CLIENT_CPU SERVER_CPU SECONDS [PERIOD_NS] >ROUND_TRIPS
 *
 * The client copies BYTES into shared memory and posts; the server reads every byte, from its own copy (COPIES 2) or
 * in place (COPIES 1), writes 16 x 7 floats and the sum, and posts; the client copies those out. SPIN 0 sleeps in
 * sem_wait, SPIN 1 tries again and again. The first word counts the requests, so a reply to another request is seen:
 * exit status 3. With PERIOD_NS the client sleeps until the next beat of an absolute clock before each request. Writes
 * the processor time of the client and of the server, the beats that passed before the reply to an earlier request,
 * then each round trip, all as uint64, times in nanoseconds. */
#define _GNU_SOURCE
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ACTIONS = 16 * 7, WARM_UP = 50, LEAD_IN = 8, MOST = 1 << 22 };

struct shared {
    _Alignas(64) sem_t asked;
    _Alignas(64) sem_t answered;
    _Alignas(64) volatile int stop;
    _Alignas(64) uint64_t sum;
    float actions[ACTIONS];
    _Alignas(64) uint64_t request[];
};

static int spin;

static void wait_for(sem_t *semaphore) {
    if (spin)
        while (sem_trywait(semaphore)) {}
    else
        while (sem_wait(semaphore)) {}
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void sleep_until(uint64_t ns) {
    struct timespec t = {(time_t)(ns / 1000000000ull), (long)(ns % 1000000000ull)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0)) {}
}

static uint64_t processor_time(int who) {
    struct rusage u;
    getrusage(who, &u);
    uint64_t seconds = u.ru_utime.tv_sec + u.ru_stime.tv_sec, us = u.ru_utime.tv_usec + u.ru_stime.tv_usec;
    return seconds * 1000000000ull + us * 1000ull;
}

static void run_on(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set)) {
        perror("floor: sched_setaffinity");
        exit(2);
    }
}

static uint64_t sum_of(const uint64_t *words, size_t count) {
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) sum += words[i];
    return sum;
}

static void *memory(size_t bytes) {
    void *found = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (found == MAP_FAILED) {
        perror("floor: mmap");
        exit(2);
    }
    return found;
}

static void serve(struct shared *s, size_t bytes, int copies, uint64_t *own) {
    for (;;) {
        wait_for(&s->asked);
        if (s->stop) _exit(0);
        if (copies == 2) memcpy(own, s->request, bytes);
        s->sum = sum_of(copies == 2 ? own : s->request, bytes / 8);
        for (int i = 0; i < ACTIONS; i++) s->actions[i] = (float)(s->sum & 0xFFFF);
        sem_post(&s->answered);
    }
}

int main(int argc, char **argv) {
    if (argc != 7 && argc != 8)
        return fprintf(stderr, "floor: want BYTES COPIES SPIN CLIENT_CPU SERVER_CPU SECONDS [PERIOD_NS]\n"), 2;
    size_t bytes = (strtoul(argv[1], 0, 10) + 7) & ~7ul;
    int copies = atoi(argv[2]);
    spin = atoi(argv[3]);
    double seconds = atof(argv[6]);
    uint64_t period = argc == 8 ? strtoul(argv[7], 0, 10) : 0, lead_in = period ? LEAD_IN : 0;
    alarm(30 + 3 * (unsigned)seconds); /* Whatever goes wrong, this ends. */

    struct shared *s = memory(sizeof *s + bytes);
    uint64_t *own = memory(bytes), *observation = memory(bytes), *took = memory(MOST * sizeof *took);
    sem_init(&s->asked, 1, 0);
    sem_init(&s->answered, 1, 0);
    for (size_t i = 1; i < bytes / 8; i++) observation[i] = i * 0x9E3779B97F4A7C15ull;
    uint64_t base = sum_of(observation, bytes / 8);

    pid_t parent = getpid(), server = fork();
    if (server < 0) return perror("floor: fork"), 2;
    if (!server) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(2);
        run_on(atoi(argv[5]));
        serve(s, bytes, copies, own);
    }
    run_on(atoi(argv[4]));

    float actions[ACTIONS];
    uint64_t end = 0, processor = 0, missed = 0, due = 0;
    size_t count = 0;
    for (uint64_t request = 0; count < MOST; request++) {
        if (period && request >= WARM_UP) sleep_until(due = request == WARM_UP ? now() + period : due + period);
        if (request == WARM_UP + lead_in) {
            end = now() + (uint64_t)(seconds * 1e9);
            processor = processor_time(RUSAGE_SELF);
        }
        observation[0] = request;
        uint64_t start = now();
        memcpy(s->request, observation, bytes);
        sem_post(&s->asked);
        wait_for(&s->answered);
        memcpy(actions, s->actions, sizeof actions);
        uint64_t sum = s->sum, stop = now();
        if (sum != base + request || actions[ACTIONS - 1] != (float)(sum & 0xFFFF)) return kill(server, SIGKILL), 3;
        uint64_t passed = period && due && stop > due ? (stop - due) / period : 0;
        due += passed * period;
        if (request >= WARM_UP + lead_in) {
            took[count++] = stop - start;
            missed += passed;
            if (stop >= end) break;
        }
    }
    processor = processor_time(RUSAGE_SELF) - processor;
    s->stop = 1;
    sem_post(&s->asked);
    waitpid(server, 0, 0);
    uint64_t head[] = {processor, processor_time(RUSAGE_CHILDREN) * count / (count + WARM_UP + lead_in), missed};
    fwrite(head, sizeof *head, 3, stdout);
    fwrite(took, sizeof *took, count, stdout);
    return ferror(stdout) ? 2 : 0;
}
