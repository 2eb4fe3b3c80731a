/* Makes the N-th call of one function of the C library fail in one process, as the words of a shared file say. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

/* pid 0: no process; function: its number below; nth: the failing call; number: its errno; calls, fired: counts. */
struct words { volatile uint64_t pid, function, nth, number, calls, fired; };
static struct words *words;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHAOS_FAILING_CALLS");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *(*map)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap");
    void *found = map(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED) words = found;
}

static int fails(uint64_t function) {
    if (!words || words->function != function || words->pid != (uint64_t)getpid()) return 0;
    if (__atomic_add_fetch(&words->calls, 1, __ATOMIC_SEQ_CST) != words->nth) return 0;
    words->fired++;
    return (int)words->number;
}

#define NEXT(name) __typeof__(name) *next = dlsym(RTLD_NEXT, #name)
#define OR_FAIL(function, failed) { int number = fails(function); if (number) { errno = number; return failed; } }

int posix_fallocate(int f, off_t o, off_t n) { NEXT(posix_fallocate); int e = fails(1); return e ? e : next(f, o, n); }
int posix_fallocate64(int f, off64_t o, off64_t n) { NEXT(posix_fallocate64); int e = fails(1); return e ? e : next(f, o, n); }
int ftruncate(int f, off_t n) { NEXT(ftruncate); OR_FAIL(2, -1) return next(f, n); }
int ftruncate64(int f, off64_t n) { NEXT(ftruncate64); OR_FAIL(2, -1) return next(f, n); }
int memfd_create(const char *s, unsigned int x) { NEXT(memfd_create); OR_FAIL(3, -1) return next(s, x); }
int shm_open(const char *s, int x, mode_t m) { NEXT(shm_open); OR_FAIL(4, -1) return next(s, x, m); }
int pipe2(int *p, int x) { NEXT(pipe2); OR_FAIL(5, -1) return next(p, x); }
ssize_t pwrite(int f, const void *b, size_t n, off_t o) { NEXT(pwrite); OR_FAIL(6, -1) return next(f, b, n, o); }
ssize_t pwrite64(int f, const void *b, size_t n, off64_t o) { NEXT(pwrite64); OR_FAIL(6, -1) return next(f, b, n, o); }
sem_t *sem_open(const char *s, int x, ...) {
    NEXT(sem_open);
    OR_FAIL(7, SEM_FAILED)
    va_list a;
    va_start(a, x);
    mode_t m = x & O_CREAT ? va_arg(a, mode_t) : 0;
    unsigned int v = x & O_CREAT ? va_arg(a, unsigned int) : 0;
    va_end(a);
    return next(s, x, m, v);
}
void *mmap(void *h, size_t n, int p, int x, int f, off_t o) { NEXT(mmap); OR_FAIL(8, MAP_FAILED) return next(h, n, p, x, f, o); }
void *mmap64(void *h, size_t n, int p, int x, int f, off64_t o) { NEXT(mmap64); OR_FAIL(8, MAP_FAILED) return next(h, n, p, x, f, o); }
int fchmod(int f, mode_t m) { NEXT(fchmod); OR_FAIL(9, -1) return next(f, m); }
