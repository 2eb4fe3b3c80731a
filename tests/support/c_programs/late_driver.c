/* A libcuda.so.1 without a GPU, for tests of the calls that shmserve makes (shmserve/cuda_driver.py).
 *
 * Memory of a device is memory of the host: what is created can be exported, imported and mapped by other processes, and is
 * inaccessible before cuMemSetAccess. Copies are late: they run when the host waits for an event behind them, and until then
 * their target holds nonsense. Streams are ordered as CUDA orders them: each by itself, and the legacy stream with all that
 * were not created as non-blocking.
 *
 * LATE_DRIVER_DEVICES: how many GPUs there are (1). LATE_DRIVER_FIRST: which of them this process sees first, as with
 * CUDA_VISIBLE_DEVICES. LATE_DRIVER_FAIL: "cuMemCreate=2" lets this call give this error. Functions named late_* are for tests.
 */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_SUPPORTED = 801
};
enum { PAGE = 1 << 21, NONSENSE = 0xAB, MOST = 4096, DEVICES = 8, LEGACY = 1, PER_THREAD = 2, FIRST_STREAM = 16 };

typedef struct {
    int type, id;
} Location;
typedef struct {
    int type, handle_types;
    Location location;
    void *unused;
    unsigned char flags[8];
} Properties;
typedef struct {
    Location location;
    int flags;
} Access;

/* Memory that tests and mappings have, by address. */
typedef struct {
    char *start;
    size_t size;
    int physical, is_mapped; /* -1: reserved alone */
} Range;

typedef struct {
    char *to;
    const char *from;
    size_t size;
    unsigned char value; /* without `from`: a kernel that fills */
    size_t stream;
    int is_done;
} Work;

typedef struct {
    size_t stream, behind; /* all work with a smaller number */
} Event;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int started;
static int handles[MOST];
static Range ranges[MOST];
static Work work[MOST];
static size_t work_count, streams_count, ranges_count;
static unsigned char non_blocking[MOST];
static _Thread_local size_t contexts[16];
static _Thread_local int depth;

static int number_of(const char *name, int otherwise)
{
    const char *text = getenv(name);
    return text != NULL && *text ? atoi(text) : otherwise;
}

static int physical_of(int device) { return device + number_of("LATE_DRIVER_FIRST", 0); }

static int is_device(int device) { return device >= 0 && physical_of(device) < number_of("LATE_DRIVER_DEVICES", 1); }

/* The error with which a call begins; 0 for none. */
static int refused(const char *call)
{
    const char *wanted = getenv("LATE_DRIVER_FAIL");
    size_t length = strlen(call);
    if (wanted != NULL && strncmp(wanted, call, length) == 0 && wanted[length] == '=')
        return atoi(wanted + length + 1);
    return started ? SUCCESS : NOT_INITIALIZED;
}

int cuGetErrorName(int error, const char **name)
{
    static const struct {
        int code;
        const char *name;
    } names[] = {
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},       {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},   {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
        {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},   {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    };
    *name = NULL;
    for (size_t index = 0; index < sizeof names / sizeof *names; index++)
        if (names[index].code == error)
            *name = names[index].name;
    return *name == NULL ? INVALID_VALUE : SUCCESS;
}

int cuInit(unsigned flags)
{
    started = 1;
    return flags ? INVALID_VALUE : refused("cuInit");
}

int cuDeviceGetCount(int *count)
{
    *count = number_of("LATE_DRIVER_DEVICES", 1) - number_of("LATE_DRIVER_FIRST", 0);
    return refused("cuDeviceGetCount");
}

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    *value = attribute == 103 && number_of("LATE_DRIVER_SHARES", 1);
    return is_device(device) ? refused("cuDeviceGetAttribute") : INVALID_DEVICE;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device)
{
    memset(uuid, 0x10 + physical_of(device), 16);
    return is_device(device) ? refused("cuDeviceGetUuid") : INVALID_DEVICE;
}

int cuDevicePrimaryCtxRetain(size_t *context, int device)
{
    *context = (size_t)(0xC0 + physical_of(device));
    return is_device(device) ? refused("cuDevicePrimaryCtxRetain") : INVALID_DEVICE;
}

int cuCtxPushCurrent_v2(size_t context)
{
    if (depth == 16)
        return INVALID_VALUE;
    contexts[depth++] = context;
    return refused("cuCtxPushCurrent");
}

int cuCtxPopCurrent_v2(size_t *context)
{
    if (!depth)
        return INVALID_CONTEXT;
    *context = contexts[--depth];
    return SUCCESS;
}

/* Memory */

int cuMemGetAllocationGranularity(size_t *size, const Properties *wanted, int option)
{
    (void)option;
    *size = PAGE;
    return is_device(wanted->location.id) ? refused("cuMemGetAllocationGranularity") : INVALID_DEVICE;
}

static int new_handle(int descriptor, unsigned long long *handle)
{
    int found = OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    for (int index = 1; found && index < MOST; index++)
        if (!handles[index]) {
            handles[index] = descriptor;
            *handle = (unsigned long long)index;
            found = SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    if (found)
        close(descriptor);
    return found;
}

int cuMemCreate(unsigned long long *handle, size_t size, const Properties *wanted, unsigned long long flags)
{
    char name[32];
    int error = refused("cuMemCreate");
    if (error)
        return error;
    if (wanted->type != 1 || wanted->handle_types != 1 || wanted->location.type != 1 || flags || !size || size % PAGE)
        return INVALID_VALUE;
    if (!is_device(wanted->location.id))
        return INVALID_DEVICE;
    snprintf(name, sizeof name, "late-gpu-%d", physical_of(wanted->location.id));
    int descriptor = memfd_create(name, MFD_CLOEXEC);
    if (descriptor < 0 || ftruncate(descriptor, (off_t)size) < 0)
        return OUT_OF_MEMORY;
    char *memory = mmap(NULL, size, PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (memory != MAP_FAILED) {
        memset(memory, NONSENSE, size);
        munmap(memory, size);
    }
    return new_handle(descriptor, handle);
}

int cuMemRelease(unsigned long long handle)
{
    if (handle >= MOST || !handles[handle])
        return INVALID_HANDLE;
    close(handles[handle]);
    handles[handle] = 0;
    return SUCCESS;
}

int cuMemExportToShareableHandle(void *to, unsigned long long handle, int type, unsigned long long flags)
{
    int error = refused("cuMemExportToShareableHandle");
    if (error)
        return error;
    if (handle >= MOST || !handles[handle] || type != 1 || flags)
        return INVALID_VALUE;
    *(int *)to = fcntl(handles[handle], F_DUPFD_CLOEXEC, 3);
    return *(int *)to < 0 ? OUT_OF_MEMORY : SUCCESS;
}

/* The GPU whose memory a descriptor stands for; -1: it is another file. */
static int gpu_of(int descriptor)
{
    char link[64], name[64] = {0};
    int physical;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    if (readlink(link, name, sizeof name - 1) < 0 || sscanf(name, "/memfd:late-gpu-%d", &physical) != 1)
        return -1;
    return physical;
}

int cuMemImportFromShareableHandle(unsigned long long *handle, void *from, int type)
{
    int error = refused("cuMemImportFromShareableHandle"), descriptor = (int)(size_t)from;
    if (error)
        return error;
    if (type != 1 || gpu_of(descriptor) < 0)
        return INVALID_VALUE;
    return new_handle(fcntl(descriptor, F_DUPFD_CLOEXEC, 3), handle);
}

static Range *range_of(const char *address, size_t size)
{
    for (size_t index = 0; index < ranges_count; index++) {
        Range *range = &ranges[index];
        if (range->start != NULL && range->start <= address && address + size <= range->start + range->size)
            return range;
    }
    return NULL;
}

static int add_range(char *start, size_t size, int physical)
{
    pthread_mutex_lock(&lock);
    size_t index = 0;
    while (index < ranges_count && ranges[index].start != NULL)
        index++;
    if (index < MOST) {
        ranges[index] = (Range){start, size, physical, 0};
        ranges_count += index == ranges_count;
    }
    pthread_mutex_unlock(&lock);
    return index < MOST ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemAddressReserve(unsigned long long *address, size_t size, size_t alignment, unsigned long long wanted,
                        unsigned long long flags)
{
    int error = refused("cuMemAddressReserve");
    if (error)
        return error;
    if (!size || size % PAGE || alignment || wanted || flags)
        return INVALID_VALUE;
    char *start = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return OUT_OF_MEMORY;
    *address = (unsigned long long)(size_t)start;
    return add_range(start, size, -1);
}

int cuMemAddressFree(unsigned long long address, size_t size)
{
    Range *range = range_of((char *)(size_t)address, size);
    if (range == NULL || range->size != size || range->is_mapped)
        return INVALID_VALUE;
    munmap(range->start, size);
    range->start = NULL;
    return SUCCESS;
}

int cuMemMap(unsigned long long address, size_t size, size_t offset, unsigned long long handle,
             unsigned long long flags)
{
    Range *range = range_of((char *)(size_t)address, size);
    struct stat file;
    int error = refused("cuMemMap");
    if (error)
        return error;
    if (range == NULL || range->is_mapped || handle >= MOST || !handles[handle] || offset || flags ||
        fstat(handles[handle], &file) < 0 || (size_t)file.st_size != size)
        return INVALID_VALUE;
    if (mmap(range->start, size, PROT_NONE, MAP_SHARED | MAP_FIXED, handles[handle], 0) == MAP_FAILED)
        return OUT_OF_MEMORY;
    range->physical = gpu_of(handles[handle]);
    range->is_mapped = 1;
    return SUCCESS;
}

int cuMemUnmap(unsigned long long address, size_t size)
{
    Range *range = range_of((char *)(size_t)address, size);
    int error = refused("cuMemUnmap");
    if (error)
        return error;
    if (range == NULL || range->size != size || range->is_mapped != 1)
        return INVALID_VALUE;
    for (size_t index = 0; index < work_count; index++)
        if (!work[index].is_done && work[index].to >= range->start && work[index].to < range->start + size)
            abort(); /* unmapped under a copy: on a GPU an illegal address */
    mmap(range->start, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    range->physical = -1;
    range->is_mapped = 0;
    return SUCCESS;
}

int cuMemSetAccess(unsigned long long address, size_t size, const Access *access, size_t count)
{
    Range *range = range_of((char *)(size_t)address, size);
    int error = refused("cuMemSetAccess");
    if (error)
        return error;
    if (range == NULL || !range->is_mapped || count != 1 || access->location.type != 1 || access->flags != 3)
        return INVALID_VALUE;
    if (!is_device(access->location.id) || physical_of(access->location.id) != range->physical)
        return INVALID_DEVICE;
    return mprotect(range->start, size, PROT_READ | PROT_WRITE) < 0 ? INVALID_VALUE : SUCCESS;
}

int cuMemHostGetDevicePointer_v2(unsigned long long *address, void *host, unsigned flags)
{
    (void)address, (void)host, (void)flags;
    return NOT_SUPPORTED;
}

int cuPointerGetAttribute(void *data, int attribute, unsigned long long address)
{
    Range *range = range_of((char *)(size_t)address, 1);
    if (attribute != 9 || range == NULL || range->physical < 0)
        return INVALID_VALUE;
    *(int *)data = range->physical - number_of("LATE_DRIVER_FIRST", 0);
    return refused("cuPointerGetAttribute");
}

/* Work */

static size_t stream_number(size_t stream) { return stream ? stream : LEGACY; }

static int are_ordered(size_t one, size_t other)
{
    if (one == other)
        return 1;
    return (one == LEGACY && !non_blocking[other]) || (other == LEGACY && !non_blocking[one]);
}

static void run(size_t number)
{
    Work *each = &work[number];
    if (each->is_done)
        return;
    each->is_done = 1;
    for (size_t before = 0; before < number; before++)
        if (are_ordered(work[before].stream, each->stream))
            run(before);
    if (each->from != NULL)
        memmove(each->to, each->from, each->size);
    else
        memset(each->to, each->value, each->size);
}

static int put(Work item)
{
    int error = depth ? SUCCESS : INVALID_CONTEXT;
    if (item.stream >= FIRST_STREAM + streams_count || (item.stream > PER_THREAD && item.stream < FIRST_STREAM))
        error = INVALID_HANDLE;
    if (range_of(item.to, item.size) == NULL || (item.from != NULL && range_of(item.from, item.size) == NULL))
        error = INVALID_VALUE;
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    if (work_count == MOST) { /* all of it is done or nobody waits for it */
        for (size_t number = 0; number < MOST; number++)
            run(number);
        work_count = 0;
    }
    work[work_count++] = item;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t size, size_t stream)
{
    int error = refused("cuMemcpyDtoDAsync");
    if (!error)
        error = put((Work){(char *)(size_t)to, (char *)(size_t)from, size, 0, stream_number(stream), 0});
    if (!error)
        memset((char *)(size_t)to, NONSENSE, size);
    return error;
}

int cuStreamCreate(size_t *stream, unsigned flags)
{
    if (!depth)
        return INVALID_CONTEXT;
    *stream = FIRST_STREAM + streams_count++;
    non_blocking[*stream] = flags == 1;
    return refused("cuStreamCreate");
}

int cuEventCreate(Event **event, unsigned flags)
{
    (void)flags;
    if (!depth)
        return INVALID_CONTEXT;
    *event = calloc(1, sizeof **event);
    return refused("cuEventCreate");
}

int cuEventRecord(Event *event, size_t stream)
{
    if (!depth)
        return INVALID_CONTEXT;
    *event = (Event){stream_number(stream), work_count};
    return refused("cuEventRecord");
}

int cuEventSynchronize(Event *event)
{
    int error = refused("cuEventSynchronize");
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    for (size_t number = 0; number < event->behind && number < work_count; number++)
        if (are_ordered(work[number].stream, event->stream))
            run(number);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

/* For tests */

/* Memory of a device that nobody shares, as a camera's or another network's. */
void *late_allocate(size_t size, int device)
{
    char *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || add_range(start, size, physical_of(device)) != SUCCESS)
        return NULL;
    return start;
}

/* A kernel in a stream that sets bytes, late. */
int late_fill(void *to, int value, size_t size, size_t stream)
{
    return put((Work){to, NULL, size, (unsigned char)value, stream_number(stream), 0});
}

/* Bytes that are mapped in this process. */
size_t late_mapped_bytes(void)
{
    size_t bytes = 0;
    for (size_t index = 0; index < ranges_count; index++)
        if (ranges[index].start != NULL && ranges[index].is_mapped == 1)
            bytes += ranges[index].size;
    return bytes;
}
