/* The traps of programs whose real-time calls may allocate nothing, lock nothing and make few system calls. C and C++.
 */

#ifndef REAL_TIME_CALLS_H
#define REAL_TIME_CALLS_H

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of tests/support/c_programs/traps.c, where that is preloaded. */
extern void shmserve_test_arm(int armed) __attribute__((weak));

static inline void arm(int armed)
{
    if (shmserve_test_arm != NULL)
        shmserve_test_arm(armed);
}

#ifdef __cplusplus
}
#endif

#define ALLOW(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* `asks_daemon`: and those by which a wait asks the daemon whether a model agrees with the robot. */
static inline void allow_real_time_calls_only(int asks_daemon)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_futex), /* a semaphore: one wake-up, one sleep */
        ALLOW(SYS_ppoll), /* a pipe: one sleep */
#ifdef SYS_poll
        ALLOW(SYS_poll), /* a look at the lease */
#endif
        ALLOW(SYS_recvfrom),       /* once, after the daemon has gone: why it has */
        ALLOW(SYS_read),           /* tokens of a pipe */
        ALLOW(SYS_write),          /* a token; and the lines that this program prints */
        ALLOW(SYS_rt_sigprocmask), /* around the token */
        ALLOW(SYS_sched_yield),    /* a spin beside a peer that sleeps */
        ALLOW(SYS_clock_gettime),  /* where there is no vdso */
        ALLOW(SYS_getcpu),
#ifdef PAUSES_BETWEEN_STEPS
        ALLOW(SYS_clock_nanosleep), /* of the program; no call of the library sleeps so */
#endif
        ALLOW(SYS_exit_group),
        ALLOW((unsigned)(asks_daemon ? SYS_sendto : SYS_futex)),
        ALLOW((unsigned)(asks_daemon ? SYS_recvmsg : SYS_futex)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog filter = {(unsigned short)(sizeof program / sizeof *program), program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
        perror("no filter");
        exit(3);
    }
}

#endif
