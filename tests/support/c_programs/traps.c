/* Preloaded before a program: allocating or locking ends it while it is armed. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void __libc_free(void *);
extern void *__libc_memalign(size_t, size_t);

static _Thread_local int is_armed;

void shmserve_test_arm(int armed);
void shmserve_test_arm(int armed) { is_armed = armed; }

static void trap(const char *name)
{
    if (!is_armed)
        return;
    is_armed = 0;
    (void)!write(2, "trapped: ", 9);
    (void)!write(2, name, strlen(name));
    (void)!write(2, "\n", 1);
    abort();
}

void *malloc(size_t bytes)
{
    trap("malloc");
    return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
    trap("calloc");
    return __libc_calloc(count, bytes);
}

void *realloc(void *memory, size_t bytes)
{
    trap("realloc");
    return __libc_realloc(memory, bytes);
}

void free(void *memory)
{
    trap("free");
    __libc_free(memory);
}

void *memalign(size_t alignment, size_t bytes)
{
    trap("memalign");
    return __libc_memalign(alignment, bytes);
}

int pthread_mutex_lock(pthread_mutex_t *mutex)
{
    static int (*found)(pthread_mutex_t *);
    trap("pthread_mutex_lock");
    if (found == NULL)
        *(void **)&found = dlsym(RTLD_NEXT, "pthread_mutex_lock");
    return found(mutex);
}

int pthread_mutex_trylock(pthread_mutex_t *mutex)
{
    static int (*found)(pthread_mutex_t *);
    trap("pthread_mutex_trylock");
    if (found == NULL)
        *(void **)&found = dlsym(RTLD_NEXT, "pthread_mutex_trylock");
    return found(mutex);
}
