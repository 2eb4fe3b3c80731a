/* A POSIX named semaphore as a doorbell: NamedDoorbell (shmserve/doorbell.py). */

#include "core/clock.h"
#include "core/doorbell.h"
#include "semaphore.h"
#include "slots.h"
#include "state.h"

typedef struct {
    PyObject_HEAD
    sem_t *bell; /* NULL once closed */
} Semaphore;

/* Semaphore(name): open an existing one; raises OSError */
static PyObject *semaphore_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    const char *name;
    Semaphore *self = new_instance(type, keywords);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "s", &name)) {
        Py_DECREF(self);
        return NULL;
    }
    sem_t *bell = sem_open(name, 0);
    if (bell == SEM_FAILED) {
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, name);
        Py_DECREF(self);
        return NULL;
    }
    self->bell = bell;
    return (PyObject *)self;
}

static PyObject *semaphore_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    Semaphore *self = (Semaphore *)object;
    sem_t *bell = self->bell;
    self->bell = NULL;
    if (bell != NULL)
        sem_close(bell);
    Py_RETURN_NONE;
}

static void semaphore_dealloc(PyObject *object)
{
    Py_XDECREF(semaphore_close(object, NULL));
    free_instance(object);
}

/* Its semaphore; NULL with an exception once it is closed. */
static sem_t *semaphore_of(PyObject *object)
{
    sem_t *bell = ((Semaphore *)object)->bell;
    if (bell == NULL)
        PyErr_SetString(PyExc_ValueError, "this semaphore was closed");
    return bell;
}

static PyObject *semaphore_ring(PyObject *object, PyObject *unused)
{
    (void)unused;
    sem_t *bell = semaphore_of(object);
    if (bell == NULL)
        return NULL;
    doorbell_ring(bell);
    Py_RETURN_NONE;
}

static PyObject *semaphore_count(PyObject *object, PyObject *unused)
{
    (void)unused;
    sem_t *bell = semaphore_of(object);
    return bell == NULL ? NULL : PyLong_FromLong(doorbell_count(bell));
}

static PyObject *semaphore_try_take(PyObject *object, PyObject *unused)
{
    (void)unused;
    sem_t *bell = semaphore_of(object);
    return bell == NULL ? NULL : PyBool_FromLong(doorbell_try_take(bell));
}

int is_semaphore(PyObject *object) { return is_of_type(object, SEMAPHORE_TYPE); }

void semaphore_try_ring(PyObject *object)
{
    sem_t *bell = ((Semaphore *)object)->bell;
    if (bell != NULL)
        doorbell_ring(bell);
}

void semaphore_try_take_token(PyObject *object)
{
    sem_t *bell = ((Semaphore *)object)->bell;
    if (bell != NULL)
        doorbell_try_take(bell);
}

int semaphore_wait_until(PyObject *object, uint64_t until_ns)
{
    sem_t *bell = semaphore_of(object);
    if (bell == NULL)
        return -1;
    int taken;
    Py_BEGIN_ALLOW_THREADS
    taken = doorbell_wait(bell, until_ns);
    Py_END_ALLOW_THREADS
    if (taken < 0)
        PyErr_SetFromErrno(PyExc_OSError);
    return taken;
}

/* wait(timeout_ns): as doorbell_wait */
static PyObject *semaphore_wait(PyObject *object, PyObject *timeout)
{
    uint64_t timeout_ns;
    if (to_word(timeout, &timeout_ns) < 0)
        return NULL;
    int taken = semaphore_wait_until(object, monotonic_ns() + timeout_ns);
    if (taken < 0)
        return NULL;
    /* The token stays taken, although a handler raises. */
    return PyErr_CheckSignals() < 0 ? NULL : PyBool_FromLong(taken);
}

static PyObject *semaphore_is_monotonic(PyObject *object, PyObject *unused)
{
    (void)object, (void)unused;
    return PyBool_FromLong(doorbell_is_monotonic());
}

static PyMethodDef semaphore_methods[] = {
    {"ring", semaphore_ring, METH_NOARGS, "Leave a token and wake the waiting process."},
    {"count", semaphore_count, METH_NOARGS, "The tokens that wait."},
    {"try_take", semaphore_try_take, METH_NOARGS, "Take a token if there is one."},
    {"wait", semaphore_wait, METH_O,
     "Sleep until a token came (and take it), a signal arrived, or this time (ns) has passed. True: took one."},
    {"is_monotonic", semaphore_is_monotonic, METH_NOARGS, "Whether no step of the clock changes a wait."},
    {"close", semaphore_close, METH_NOARGS, "May be called twice."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot semaphore_slots[] = {
    {Py_tp_doc, "A POSIX named semaphore, opened."}, {Py_tp_new, semaphore_new},
    {Py_tp_dealloc, semaphore_dealloc},              {Py_tp_methods, semaphore_methods},
    {0, NULL},
};

PyType_Spec semaphore_spec = {"shmserve._core.Semaphore", sizeof(Semaphore), 0, TYPE_FLAGS, semaphore_slots};
