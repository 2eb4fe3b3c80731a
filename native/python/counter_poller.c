/* Counters that are looked at, without the interpreter: what the looks of loop.py and news.py do.
 *
 * While one thread looks here for long the others run: the interpreter is not held.
 */

#include "slots.h"
#include "cut_through.h"
#include "counter_poller.h"

#include <structmember.h>

/* Watches of a list that are looked at together; a service has no more clients. */
#define MOST 256
#define LOOKS_PER_CLOCK 16
/* Of looking, between two questions whether the writer has come to this processor, and whether there was a signal. */
#define LOOKING_NS 50000

enum { NONE = -1, FAILED = -2 };

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    uint64_t *counter; /* NULL once closed and nobody looks */
    unsigned long long last_seen;
    int lookers;
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

/* ORDER: the counter before what it tells of; pairs with the stores that end publish_request and complete_reply. */
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

/* Under a thread that looks, the memory stays until it has left. */
static void let_go(CounterPoller *self)
{
    if (self->counter != NULL && self->closed && !self->lookers) {
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
 * Whoever asks makes nothing that the collector of cycles counts while it looks at them: what it ends, and then runs,
 * may close a poller and take it off the list.
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

/* The place of the first poller that has moved by now; their number to `count`, and FAILED with an exception. */
static int first_moved(PyObject *given, CounterPoller **pollers, int *count)
{
    *count = pollers_of(given, pollers);
    for (int index = 0; index < *count; index++)
        if (has_moved(pollers[index]))
            return index;
    return *count < 0 ? FAILED : NONE;
}

/* poll_first(pollers): the place of the first whose counter is not what was seen; -1 if there is none */
PyObject *poll_first(PyObject *module, PyObject *given)
{
    (void)module;
    CounterPoller *pollers[MOST];
    int count, found = first_moved(given, pollers, &count);
    return found == FAILED ? NULL : PyLong_FromLong(found);
}

/* poll_all(pollers): the places of all of them */
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
} Looked;

/* same_cpu_writers(pollers): the places of those whose writer was last seen on this very processor: while this thread looks, that
 * one cannot run */
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

static int look_until(const Looked *at, uint64_t until_ns)
{
    do {
        for (int look = 0; look < LOOKS_PER_CLOCK; look++) {
            int copied = 0;
            for (int index = 0; index < at->count; index++)
                if (__atomic_load_n(at->counters[index], __ATOMIC_ACQUIRE) != at->seen[index])
                    return index;
            for (int index = 0; index < at->copiers_count; index++)
                copied |= copier_advance(at->copiers[index]);
            if (copied)
                break; /* a copy takes as long as many looks */
            relax();
        }
    } while (monotonic_ns() < until_ns);
    return NONE;
}

/* Whether a writer was last seen on this very processor. */
static int has_same_cpu_writer(const Looked *at)
{
    uint64_t here = processor();
    for (int index = 0; index < at->count; index++)
        if (here && __atomic_load_n(&at->counters[index][PROCESSOR], __ATOMIC_RELAXED) == here)
            return 1;
    return 0;
}

/* What is looked at stays where it is until it is left, whatever its owner does. */
static void enter(Looked *at, CounterPoller **pollers, int count)
{
    /* Private copies: the owner of a poller may note something else meanwhile. */
    at->count = count;
    for (int index = 0; index < count; index++) {
        at->counters[index] = pollers[index]->counter;
        at->seen[index] = pollers[index]->last_seen;
        pollers[index]->lookers++;
        Py_INCREF(pollers[index]);
    }
    for (int index = 0; index < at->copiers_count; index++)
        copier_enter(at->copiers[index]);
}

static void leave(Looked *at, CounterPoller **pollers)
{
    for (int index = 0; index < at->copiers_count; index++)
        copier_leave(at->copiers[index]);
    for (int index = 0; index < at->count; index++) {
        pollers[index]->lookers--;
        let_go(pollers[index]);
        Py_DECREF(pollers[index]);
    }
}

/* spin(pollers, until_ns, copiers): as `poll_first`, looking again and again until the clock (CLOCK_MONOTONIC) says so;
 * these copiers copy meanwhile
 *
 * Nothing else ends it: a caller that wants to hear of signals looks for a millisecond at a time.
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
    Looked at;
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
    found = look_until(&at, until_ns);
    Py_END_ALLOW_THREADS
    leave(&at, pollers);
    return PyLong_FromLong(found);
}

/* spin_unless_same_cpu(pollers, until_ns): the time at which one of them was seen to have moved; 0 if none has until then, or if a
 * writer comes to this very processor, where it cannot run while this thread looks
 *
 * Signals are heard meanwhile, and may end it with an exception.
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
        Looked at;
        at.copiers_count = 0;
        enter(&at, pollers, count);
        while (found == NONE && now_ns < until_ns && !has_same_cpu_writer(&at)) {
            uint64_t pause_ns = now_ns + LOOKING_NS < until_ns ? now_ns + LOOKING_NS : until_ns;
            Py_BEGIN_ALLOW_THREADS
            found = look_until(&at, pause_ns);
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
    {"close", poller_close, METH_NOARGS, "Let go of the memory, once nobody looks any more; may be called twice."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef poller_members[] = {
    {"last_seen", T_ULONGLONG, offsetof(CounterPoller, last_seen), 0, "The counter as its owner has seen it."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot poller_slots[] = {
    {Py_tp_doc, "One counter, and what was last seen of it."},
    {Py_tp_new, poller_new},
    {Py_tp_dealloc, poller_dealloc},
    {Py_tp_methods, poller_methods},
    {Py_tp_members, poller_members},
    {0, NULL},
};

PyType_Spec poller_spec = {"shmserve._core.CounterPoller", sizeof(CounterPoller), 0, TYPE_FLAGS, poller_slots};
