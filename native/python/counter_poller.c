/* Polling of counters that other processes advance (shmserve/counter_poller.py).
 *
 * A spin releases the interpreter, so that the program's other threads run meanwhile.
 */

#include "counter_poller.h"
#include "cut_through.h"
#include "slots.h"

#include <structmember.h>

/* Pollers of one list; a service has no more clients. */
#define MOST 256
#define POLLS_PER_CLOCK 16
/* Time of polling between two checks for signals and for a writer on this CPU. */
#define SPIN_SLICE_NS 50000

enum { NONE = -1, FAILED = -2 };

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    uint64_t *counter; /* NULL once closed and not polled */
    unsigned long long last_seen;
    int users;
    char closed;
} CounterPoller;

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* ORDER: the counter before the head and payload that it publishes; pairs with the stores that end publish_request and
 * complete_reply. */
static inline int has_moved(const CounterPoller *self)
{
    return __atomic_load_n(self->counter, __ATOMIC_ACQUIRE) != self->last_seen;
}

/* CounterPoller(memory, place of the counter in words of 8 bytes) */
static PyObject *poller_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *memory;
    Py_ssize_t place;
    CounterPoller *self = new_instance(type, keywords);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "On", &memory, &place) || PyObject_GetBuffer(memory, &self->view, PyBUF_SIMPLE) < 0)
        goto failed;
    if (place < 0 || place > self->view.len / (Py_ssize_t)sizeof(uint64_t) - (PROCESSOR + 1) ||
        (uintptr_t)self->view.buf % sizeof(uint64_t)) {
        PyBuffer_Release(&self->view);
        PyErr_SetString(PyExc_ValueError, "this counter is not in this memory");
        goto failed;
    }
    self->counter = (uint64_t *)self->view.buf + place;
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

/* While a thread polls, the memory stays mapped until the thread leaves. */
static void let_go(CounterPoller *self)
{
    if (self->counter != NULL && self->closed && !self->users) {
        self->counter = NULL;
        PyBuffer_Release(&self->view);
    }
}

static PyObject *poller_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    ((CounterPoller *)object)->closed = 1;
    let_go((CounterPoller *)object);
    Py_RETURN_NONE;
}

static void poller_dealloc(PyObject *object)
{
    ((CounterPoller *)object)->closed = 1;
    let_go((CounterPoller *)object);
    free_instance(object);
}

int is_poller(PyObject *object) { return Py_TYPE(object)->tp_dealloc == poller_dealloc; }

void poller_note(PyObject *object, uint64_t seen) { ((CounterPoller *)object)->last_seen = seen; }

static PyObject *poller_load(PyObject *object, PyObject *unused)
{
    (void)unused;
    CounterPoller *self = (CounterPoller *)object;
    if (self->counter == NULL || self->closed) {
        PyErr_SetString(PyExc_ValueError, "this segment was closed");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(__atomic_load_n(self->counter, __ATOMIC_ACQUIRE));
}

/* The open pollers of a list, borrowed; their number, or -1 with an exception.
 *
 * The caller must not allocate an object that the garbage collector tracks while it uses them: a collection may run
 * code that closes a poller and removes it from the list.
 */
static int pollers_of(PyObject *given, CounterPoller **pollers)
{
    if (!PyList_CheckExact(given) || PyList_GET_SIZE(given) > MOST) {
        PyErr_Format(PyExc_TypeError, "pollers are a list of %d at most", MOST);
        return -1;
    }
    int count = (int)PyList_GET_SIZE(given);
    for (int index = 0; index < count; index++) {
        CounterPoller *poller = (CounterPoller *)PyList_GET_ITEM(given, index);
        if (!is_poller((PyObject *)poller)) {
            PyErr_SetString(PyExc_TypeError, "a list of pollers holds something else");
            return -1;
        }
        if (poller->counter == NULL || poller->closed) {
            PyErr_SetString(PyExc_ValueError, "a poller of this list was closed");
            return -1;
        }
        pollers[index] = poller;
    }
    return count;
}

/* The index of the first poller whose counter has moved; their number to `count`, and FAILED with an exception. */
static int first_moved(PyObject *given, CounterPoller **pollers, int *count)
{
    *count = pollers_of(given, pollers);
    for (int index = 0; index < *count; index++)
        if (has_moved(pollers[index]))
            return index;
    return *count < 0 ? FAILED : NONE;
}

/* poll_first(pollers): the index of the first whose counter is not the last seen value; -1 if there is none */
PyObject *poll_first(PyObject *module, PyObject *given)
{
    (void)module;
    CounterPoller *pollers[MOST];
    int count, found = first_moved(given, pollers, &count);
    return found == FAILED ? NULL : PyLong_FromLong(found);
}

/* poll_all(pollers): the indices of all of them */
PyObject *poll_all(PyObject *module, PyObject *given)
{
    (void)module;
    CounterPoller *pollers[MOST];
    PyObject *places = PyList_New(0);
    int count = places == NULL ? -1 : pollers_of(given, pollers);
    if (count < 0)
        Py_CLEAR(places);
    for (int index = 0; places != NULL && index < count; index++)
        if (has_moved(pollers[index])) {
            PyObject *place = PyLong_FromLong(index);
            if (place == NULL || PyList_Append(places, place) < 0)
                Py_CLEAR(places);
            Py_XDECREF(place);
        }
    return places;
}

typedef struct {
    int count, copiers_count;
    uint64_t *counters[MOST], seen[MOST];
    CutThroughCopier *copiers[MOST];
} PollSet;

/* same_cpu_writers(pollers): the indices of those whose writer last ran on this CPU: it cannot run while this thread
 * spins */
PyObject *same_cpu_writers(PyObject *module, PyObject *given)
{
    (void)module;
    CounterPoller *pollers[MOST];
    PyObject *places = PyList_New(0);
    int count = places == NULL ? -1 : pollers_of(given, pollers);
    if (count < 0)
        Py_CLEAR(places);
    uint64_t here = processor();
    for (int index = 0; places != NULL && index < count; index++)
        if (here && __atomic_load_n(&pollers[index]->counter[PROCESSOR], __ATOMIC_RELAXED) == here) {
            PyObject *place = PyLong_FromLong(index);
            if (place == NULL || PyList_Append(places, place) < 0)
                Py_CLEAR(places);
            Py_XDECREF(place);
        }
    return places;
}

static int poll_until(const PollSet *at, uint64_t until_ns)
{
    do {
        for (int poll = 0; poll < POLLS_PER_CLOCK; poll++) {
            int copied = 0;
            for (int index = 0; index < at->count; index++)
                if (__atomic_load_n(at->counters[index], __ATOMIC_ACQUIRE) != at->seen[index])
                    return index;
            for (int index = 0; index < at->copiers_count; index++)
                copied |= copier_advance(at->copiers[index]);
            if (copied)
                break; /* a copy takes as long as many polls */
            relax();
        }
    } while (monotonic_ns() < until_ns);
    return NONE;
}

/* Whether the last known CPU of a writer is this one. */
static int has_same_cpu_writer(const PollSet *at)
{
    uint64_t here = processor();
    for (int index = 0; index < at->count; index++)
        if (here && __atomic_load_n(&at->counters[index][PROCESSOR], __ATOMIC_RELAXED) == here)
            return 1;
    return 0;
}

/* Pin the memory until `leave`, although the owner may close it meanwhile. */
static void enter(PollSet *at, CounterPoller **pollers, int count)
{
    /* Private copies: the owner of a poller may set `last_seen` meanwhile. */
    at->count = count;
    for (int index = 0; index < count; index++) {
        at->counters[index] = pollers[index]->counter;
        at->seen[index] = pollers[index]->last_seen;
        pollers[index]->users++;
        Py_INCREF(pollers[index]);
    }
    for (int index = 0; index < at->copiers_count; index++)
        copier_enter(at->copiers[index]);
}

static void leave(PollSet *at, CounterPoller **pollers)
{
    for (int index = 0; index < at->copiers_count; index++)
        copier_leave(at->copiers[index]);
    for (int index = 0; index < at->count; index++) {
        pollers[index]->users--;
        let_go(pollers[index]);
        Py_DECREF(pollers[index]);
    }
}

/* spin(pollers, until_ns, copiers): as `poll_first`, until a counter has moved or the time (CLOCK_MONOTONIC) is over;
 * the copiers copy meanwhile
 *
 * A signal does not end it: a caller that must handle signals spins for a millisecond at a time.
 */
PyObject *spin(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    (void)module;
    CounterPoller *pollers[MOST];
    int count;
    if (given < 2 || given > 3 || (given == 3 && (!PyList_CheckExact(args[2]) || PyList_GET_SIZE(args[2]) > MOST))) {
        PyErr_SetString(PyExc_TypeError, "spin(pollers, until_ns, copiers)");
        return NULL;
    }
    uint64_t until_ns;
    if (to_word(args[1], &until_ns) < 0)
        return NULL;
    int found = first_moved(args[0], pollers, &count);
    if (found == FAILED)
        return NULL;
    if (found != NONE)
        return PyLong_FromLong(found);
    PollSet at;
    at.copiers_count = given == 3 ? (int)PyList_GET_SIZE(args[2]) : 0;
    for (int index = 0; index < at.copiers_count; index++) {
        at.copiers[index] = (CutThroughCopier *)PyList_GET_ITEM(args[2], index);
        if (!is_copier((PyObject *)at.copiers[index])) {
            PyErr_SetString(PyExc_TypeError, "a list of copiers holds something else");
            return NULL;
        }
    }
    enter(&at, pollers, count);
    Py_BEGIN_ALLOW_THREADS
    found = poll_until(&at, until_ns);
    Py_END_ALLOW_THREADS
    leave(&at, pollers);
    return PyLong_FromLong(found);
}

/* spin_unless_same_cpu(pollers, until_ns): the time at which a counter was seen to have moved; 0 if none has until
 * then, or if a writer last ran on this CPU, where it cannot run while this thread spins
 *
 * It checks for signals, whose handlers may raise an exception.
 */
PyObject *spin_unless_same_cpu(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    (void)module;
    CounterPoller *pollers[MOST];
    int count, failed = 0;
    uint64_t until_ns, now_ns = monotonic_ns();
    if (given != 2) {
        PyErr_SetString(PyExc_TypeError, "spin_unless_same_cpu(pollers, until_ns)");
        return NULL;
    }
    if (to_word(args[1], &until_ns) < 0)
        return NULL;
    int found = first_moved(args[0], pollers, &count);
    if (found == FAILED)
        return NULL;
    if (found == NONE && now_ns < until_ns) {
        PollSet at;
        at.copiers_count = 0;
        enter(&at, pollers, count);
        while (found == NONE && now_ns < until_ns && !has_same_cpu_writer(&at)) {
            uint64_t pause_ns = now_ns + SPIN_SLICE_NS < until_ns ? now_ns + SPIN_SLICE_NS : until_ns;
            Py_BEGIN_ALLOW_THREADS
            found = poll_until(&at, pause_ns);
            now_ns = monotonic_ns();
            Py_END_ALLOW_THREADS
            if (found == NONE && (failed = PyErr_CheckSignals()) < 0)
                break;
        }
        leave(&at, pollers);
    }
    return failed < 0 ? NULL : PyLong_FromUnsignedLongLong(found == NONE ? 0 : now_ns);
}

static PyMethodDef poller_methods[] = {
    {"load", poller_load, METH_NOARGS, "The counter as it is now."},
    {"close", poller_close, METH_NOARGS, "Release the memory once no thread polls it; may be called twice."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef poller_members[] = {
    {"last_seen", T_ULONGLONG, offsetof(CounterPoller, last_seen), 0, "The value that the owner has seen last."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot poller_slots[] = {
    {Py_tp_doc, "A counter of another process and its last seen value."},
    {Py_tp_new, poller_new},
    {Py_tp_dealloc, poller_dealloc},
    {Py_tp_methods, poller_methods},
    {Py_tp_members, poller_members},
    {0, NULL},
};

PyType_Spec poller_spec = {"shmserve._core.CounterPoller", sizeof(CounterPoller), 0, TYPE_FLAGS, poller_slots};
