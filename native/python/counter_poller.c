/* Polling of counters that other processes advance (shmserve/pure/counter_poller.py).
 *
 * A spin releases the interpreter, so that the program's other threads run meanwhile.
 */

#include "counter_poller.h"
#include "core/waiting.h"
#include "cut_through.h"
#include "slots.h"
#include "state.h"

#include <structmember.h>

/* Beside the index of a counter and NONE_MOVED: there is an exception. */
enum { FAILED = -2 };

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    Watch watch; /* its line is NULL once closed and not polled */
    int users;
    char closed;
} CounterPoller;

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
    self->watch.line = (const CounterLine *)((uint64_t *)self->view.buf + place);
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

/* While a thread polls, the memory stays mapped until the thread leaves. */
static void let_go(CounterPoller *self)
{
    if (self->watch.line != NULL && self->closed && !self->users) {
        self->watch.line = NULL;
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

int is_poller(PyObject *object) { return is_of_type(object, POLLER_TYPE); }

int poller_is_open(PyObject *object)
{
    return ((CounterPoller *)object)->watch.line != NULL && !((CounterPoller *)object)->closed;
}

void poller_note(PyObject *object, uint64_t seen) { ((CounterPoller *)object)->watch.last_seen = seen; }

static PyObject *poller_load(PyObject *object, PyObject *unused)
{
    (void)unused;
    CounterPoller *self = (CounterPoller *)object;
    if (self->watch.line == NULL || self->closed) {
        PyErr_SetString(PyExc_ValueError, "this segment was closed");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(load_acquire(&self->watch.line->counter));
}

/* The open pollers of a list, borrowed; their number, or -1 with an exception.
 *
 * The caller must not allocate an object that the garbage collector tracks while it uses them: a collection may run
 * code that closes a poller and removes it from the list.
 */
static int pollers_of(PyObject *module, PyObject *given, CounterPoller **pollers)
{
    PyTypeObject *type = state_of(module)->types[POLLER_TYPE];
    if (!PyList_CheckExact(given) || PyList_GET_SIZE(given) > MOST_WATCHED) {
        PyErr_Format(PyExc_TypeError, "pollers are a list of %d at most", MOST_WATCHED);
        return -1;
    }
    int count = (int)PyList_GET_SIZE(given);
    for (int index = 0; index < count; index++) {
        CounterPoller *poller = (CounterPoller *)PyList_GET_ITEM(given, index);
        if (Py_TYPE(poller) != type) {
            PyErr_SetString(PyExc_TypeError, "a list of pollers holds something else");
            return -1;
        }
        if (poller->watch.line == NULL || poller->closed) {
            PyErr_SetString(PyExc_ValueError, "a poller of this list was closed");
            return -1;
        }
        pollers[index] = poller;
    }
    return count;
}

/* The index of the first poller whose counter has moved; their number to `count`, and FAILED with an exception. */
static int first_moved(PyObject *module, PyObject *given, CounterPoller **pollers, int *count)
{
    *count = pollers_of(module, given, pollers);
    for (int index = 0; index < *count; index++)
        if (has_moved(&pollers[index]->watch))
            return index;
    return *count < 0 ? FAILED : NONE_MOVED;
}

/* poll_first(pollers): the index of the first whose counter is not the last seen value; -1 if there is none */
PyObject *poll_first(PyObject *module, PyObject *given)
{
    CounterPoller *pollers[MOST_WATCHED];
    int count, found = first_moved(module, given, pollers, &count);
    return found == FAILED ? NULL : PyLong_FromLong(found);
}

/* poll_all(pollers): the indices of all of them */
PyObject *poll_all(PyObject *module, PyObject *given)
{
    CounterPoller *pollers[MOST_WATCHED];
    PyObject *places = PyList_New(0);
    int count = places == NULL ? -1 : pollers_of(module, given, pollers);
    if (count < 0)
        Py_CLEAR(places);
    for (int index = 0; places != NULL && index < count; index++)
        if (has_moved(&pollers[index]->watch)) {
            PyObject *place = PyLong_FromLong(index);
            if (place == NULL || PyList_Append(places, place) < 0)
                Py_CLEAR(places);
            Py_XDECREF(place);
        }
    return places;
}

/* The indices of the pollers whose writer is as asked. */
static PyObject *writers_that(PyObject *module, PyObject *given, bool (*is_so)(const Watch *, uint64_t))
{
    CounterPoller *pollers[MOST_WATCHED];
    PyObject *places = PyList_New(0);
    int count = places == NULL ? -1 : pollers_of(module, given, pollers);
    if (count < 0)
        Py_CLEAR(places);
    uint64_t here = processor();
    for (int index = 0; places != NULL && index < count; index++)
        if (is_so(&pollers[index]->watch, here)) {
            PyObject *place = PyLong_FromLong(index);
            if (place == NULL || PyList_Append(places, place) < 0)
                Py_CLEAR(places);
            Py_XDECREF(place);
        }
    return places;
}

static bool sleeps(const Watch *watch, uint64_t here)
{
    (void)here;
    return is_asleep(watch);
}

/* same_cpu_writers(pollers): the indices of those whose writer runs on this CPU: it cannot run while this thread
 * spins */
PyObject *same_cpu_writers(PyObject *module, PyObject *given)
{
    return writers_that(module, given, is_same_cpu);
}

/* sleeping_writers(pollers): the indices of those whose writer sleeps, or has not run since it was rung */
PyObject *sleeping_writers(PyObject *module, PyObject *given)
{
    return writers_that(module, given, sleeps);
}

static PyObject *note_writers(PyObject *module, PyObject *given, void (*note)(CounterLine *))
{
    if (!PyList_CheckExact(given)) {
        PyErr_SetString(PyExc_TypeError, "writers are a list of slots");
        return NULL;
    }
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(given); index++) {
        Slots *slots = (Slots *)PyList_GET_ITEM(given, index);
        if (Py_TYPE(slots) != state_of(module)->types[SLOTS_TYPE]) {
            PyErr_SetString(PyExc_TypeError, "a list of slots holds something else");
            return NULL;
        }
        /* Another thread may have closed them. */
        if (slots->ring.line != NULL && !slots->view.readonly)
            note(slots->ring.line);
    }
    Py_RETURN_NONE;
}

/* mark_asleep(slots), mark_awake(slots): note beside the counters that this side writes that it is about to sleep, or runs
 * here */
PyObject *mark_asleep(PyObject *module, PyObject *given)
{
    return note_writers(module, given, note_asleep);
}

PyObject *mark_awake(PyObject *module, PyObject *given)
{
    return note_writers(module, given, note_awake);
}

/* A set of counters while a thread without the interpreter uses it; its memory stays mapped. */
typedef struct {
    WatchSet set;
    CounterPoller *pollers[MOST_WATCHED];
    CutThroughCopier *copiers[MOST_WATCHED];
} PinnedSet;

/* Pin the memory until `leave`, although the owners may close it meanwhile; `pollers` and `copiers_count` are set. */
static void enter(PinnedSet *pinned, int count)
{
    WatchSet *set = &pinned->set;
    set->count = count;
    for (int index = 0; index < count; index++) {
        set->watches[index] = pinned->pollers[index]->watch;
        pinned->pollers[index]->users++;
        Py_INCREF(pinned->pollers[index]);
    }
    for (int index = 0; index < set->copiers_count; index++) {
        copier_enter(pinned->copiers[index]);
        set->copiers[index] = &pinned->copiers[index]->copy;
    }
}

static void leave(PinnedSet *pinned)
{
    for (int index = 0; index < pinned->set.copiers_count; index++)
        copier_leave(pinned->copiers[index]);
    for (int index = 0; index < pinned->set.count; index++) {
        pinned->pollers[index]->users--;
        let_go(pinned->pollers[index]);
        Py_DECREF(pinned->pollers[index]);
    }
}

/* spin(pollers, until_ns, copiers, yields): as `poll_first`, until a counter has moved or the time (CLOCK_MONOTONIC) is over;
 * the copiers copy meanwhile; with `yields` other threads of this CPU run between two polls
 *
 * A signal does not end it: a caller that must handle signals spins for a millisecond at a time.
 */
PyObject *spin(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    PinnedSet pinned;
    int count;
    if (given < 2 || given > 4 ||
        (given >= 3 && (!PyList_CheckExact(args[2]) || PyList_GET_SIZE(args[2]) > MOST_WATCHED))) {
        PyErr_SetString(PyExc_TypeError, "spin(pollers, until_ns, copiers, yields)");
        return NULL;
    }
    uint64_t until_ns;
    if (to_word(args[1], &until_ns) < 0)
        return NULL;
    int found = first_moved(module, args[0], pinned.pollers, &count);
    if (found == FAILED)
        return NULL;
    if (found != NONE_MOVED)
        return PyLong_FromLong(found);
    int yields = given == 4 ? PyObject_IsTrue(args[3]) : 0;
    if (yields < 0)
        return NULL;
    pinned.set.copiers_count = given >= 3 ? (int)PyList_GET_SIZE(args[2]) : 0;
    for (int index = 0; index < pinned.set.copiers_count; index++) {
        pinned.copiers[index] = (CutThroughCopier *)PyList_GET_ITEM(args[2], index);
        if (Py_TYPE(pinned.copiers[index]) != state_of(module)->types[COPIER_TYPE]) {
            PyErr_SetString(PyExc_TypeError, "a list of copiers holds something else");
            return NULL;
        }
    }
    enter(&pinned, count);
    SpinClock clock = {.now_ns = monotonic_ns()};
    Py_BEGIN_ALLOW_THREADS
    found = spin_until(&pinned.set, until_ns, &clock, yields);
    Py_END_ALLOW_THREADS
    leave(&pinned);
    return PyLong_FromLong(found);
}

/* spin_unless_blocked(pollers, until_ns, yields): how long it took until a counter was seen to have moved, at least 1 ns and
 * without the time during which this thread did not run; 0 if none has until then, or if a writer cannot run while this
 * thread spins; with `yields` other threads of this CPU run between two polls, and 0 once one of them has kept it: it would again
 *
 * It checks for signals, whose handlers may raise an exception.
 */
PyObject *spin_unless_blocked(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    PinnedSet pinned;
    SpinClock clock = {.now_ns = monotonic_ns()};
    int count, failed = 0;
    uint64_t until_ns, began_ns = clock.now_ns;
    if (given != 2 && given != 3) {
        PyErr_SetString(PyExc_TypeError, "spin_unless_blocked(pollers, until_ns, yields)");
        return NULL;
    }
    if (to_word(args[1], &until_ns) < 0)
        return NULL;
    bool yields = given == 3 && args[2] == Py_True;
    int found = first_moved(module, args[0], pinned.pollers, &count);
    if (found == FAILED)
        return NULL;
    if (found == NONE_MOVED && began_ns < until_ns) {
        pinned.set.copiers_count = 0;
        enter(&pinned, count);
        while (found == NONE_MOVED) {
            Py_BEGIN_ALLOW_THREADS
            found = spin_slice(&pinned.set, began_ns, until_ns, &clock, yields);
            Py_END_ALLOW_THREADS
            if (found == NONE_MOVED && (failed = PyErr_CheckSignals()) < 0)
                break;
        }
        leave(&pinned);
    }
    if (failed < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(found < 0 ? 0 : spun_ns(&clock, began_ns));
}

static PyMethodDef poller_methods[] = {
    {"load", poller_load, METH_NOARGS, "The counter as it is now."},
    {"close", poller_close, METH_NOARGS, "Release the memory once no thread polls it; may be called twice."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef poller_members[] = {
    {"last_seen", T_ULONGLONG, offsetof(CounterPoller, watch.last_seen), 0, "The value that the owner has seen last."},
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
