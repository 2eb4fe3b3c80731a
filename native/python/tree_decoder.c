/* Decoder of trees: makes the arrays of a payload and unflattens the tree, as Schema.unflatten (schema.py) does. */

#include "tree_decoder.h"
#include "cut_through.h"

typedef struct {
    PyObject *kind; /* dict, list or tuple */
    PyObject *keys; /* of a dict, a tuple */
    Py_ssize_t count;
    Py_ssize_t *entries; /* indices of the values */
} ContainerSpec;

typedef struct {
    Py_ssize_t offset, size;
    PyArray_Descr *stored_as;
    int dimensions;
    npy_intp *shape;
} LeafLayout;

typedef struct {
    PyObject_HEAD
    ContainerSpec *containers;
    LeafLayout *places;
    PyObject *constants; /* a tuple */
    char *numbers;       /* the kind of each: q, d, or ? for a bool */
    Py_ssize_t containers_count, numbers_count, places_count, payload_bytes;
    int is_leaf_root;
} TreeDecoder;

enum { LEAST_ROOM = 48 };

static int container_spec_of(TreeDecoder *self, PyObject *given, ContainerSpec *spec, Py_ssize_t before)
{
    PyObject *entries, *keys, *kind;
    if (!PyArg_ParseTuple(given, "O!OO", &PyTuple_Type, &entries, &keys, &kind))
        return -1;
    spec->kind = Py_NewRef(kind);
    spec->keys = Py_NewRef(keys);
    spec->count = PyTuple_GET_SIZE(entries);
    int is_dict = kind == (PyObject *)&PyDict_Type;
    if ((!is_dict && kind != (PyObject *)&PyList_Type && kind != (PyObject *)&PyTuple_Type) ||
        (is_dict && (!PyTuple_Check(keys) || PyTuple_GET_SIZE(keys) != spec->count))) {
        PyErr_SetString(PyExc_TypeError, "a container is a dict with its keys, a list or a tuple");
        return -1;
    }
    spec->entries = PyMem_Calloc((size_t)spec->count + 1, sizeof *spec->entries);
    if (spec->entries == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t index = 0; index < spec->count; index++) {
        spec->entries[index] = PyLong_AsSsize_t(PyTuple_GET_ITEM(entries, index));
        /* An entry must be an earlier value: inner containers come before outer ones. */
        if (spec->entries[index] < 0 || spec->entries[index] >= before) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "a container has an entry that comes after it");
            return -1;
        }
    }
    (void)self;
    return 0;
}

static int place_of(TreeDecoder *self, PyObject *given, LeafLayout *place)
{
    PyObject *stored_as, *shape;
    if (!PyArg_ParseTuple(given, "nnO!O!", &place->offset, &place->size, &PyArrayDescr_Type, &stored_as, &PyTuple_Type,
                          &shape))
        return -1;
    place->stored_as = (PyArray_Descr *)Py_NewRef(stored_as);
    if (PyTuple_GET_SIZE(shape) > NPY_MAXDIMS) {
        PyErr_SetString(PyExc_ValueError, "an array of too many dimensions");
        return -1;
    }
    place->dimensions = (int)PyTuple_GET_SIZE(shape);
    place->shape = PyMem_Calloc((size_t)place->dimensions + 1, sizeof *place->shape);
    if (place->shape == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    npy_intp bytes = PyDataType_ELSIZE(place->stored_as);
    for (int index = 0; index < place->dimensions; index++) {
        npy_intp length = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, index));
        if (length < 0) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "a negative length");
            return -1;
        }
        place->shape[index] = length;
        if (__builtin_mul_overflow(bytes, length, &bytes))
            bytes = -1;
    }
    if (bytes != place->size || PyDataType_REFCHK(place->stored_as) || place->offset < self->numbers_count * 8 ||
        place->size < 0 || place->size > self->payload_bytes - place->offset) {
        PyErr_SetString(PyExc_ValueError, "an array lies outside of its payload");
        return -1;
    }
    return 0;
}

static int fill(TreeDecoder *self, PyObject *args)
{
    PyObject *containers, *places, *constants;
    const char *numbers;
    if (!PyArg_ParseTuple(args, "O!s#O!O!pn", &PyTuple_Type, &containers, &numbers, &self->numbers_count, &PyTuple_Type,
                          &places, &PyTuple_Type, &constants, &self->is_leaf_root, &self->payload_bytes))
        return -1;
    self->constants = Py_NewRef(constants);
    for (Py_ssize_t index = 0; index < self->numbers_count; index++)
        if (strchr("qd?", numbers[index]) == NULL || !numbers[index]) {
            PyErr_SetString(PyExc_ValueError, "numbers are q, d or ?");
            return -1;
        }
    if (self->payload_bytes < 0 || self->numbers_count > self->payload_bytes / 8 || !PyTuple_GET_SIZE(containers)) {
        PyErr_SetString(PyExc_ValueError, "a structure without containers, or larger than its payload");
        return -1;
    }
    self->numbers = PyMem_Calloc((size_t)self->numbers_count + 1, 1);
    self->places = PyMem_Calloc((size_t)PyTuple_GET_SIZE(places) + 1, sizeof *self->places);
    self->containers = PyMem_Calloc((size_t)PyTuple_GET_SIZE(containers) + 1, sizeof *self->containers);
    if (self->numbers == NULL || self->places == NULL || self->containers == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(self->numbers, numbers, (size_t)self->numbers_count);
    while (self->places_count < PyTuple_GET_SIZE(places)) {
        PyObject *place = PyTuple_GET_ITEM(places, self->places_count);
        if (place_of(self, place, &self->places[self->places_count++]) < 0)
            return -1;
    }
    Py_ssize_t there = self->numbers_count + self->places_count + PyTuple_GET_SIZE(constants);
    while (self->containers_count < PyTuple_GET_SIZE(containers)) {
        PyObject *spec = PyTuple_GET_ITEM(containers, self->containers_count);
        if (container_spec_of(self, spec, &self->containers[self->containers_count], there + self->containers_count) <
            0) {
            self->containers_count++;
            return -1;
        }
        self->containers_count++;
    }
    if (self->is_leaf_root && (self->containers[self->containers_count - 1].count != 1 ||
                               self->containers[self->containers_count - 1].kind != (PyObject *)&PyTuple_Type)) {
        PyErr_SetString(PyExc_ValueError, "a leaf root is alone in a tuple");
        return -1;
    }
    return 0;
}

/* TreeDecoder(containers, numbers, places, constants, is_leaf_root, payload_bytes) */
static PyObject *decoder_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    TreeDecoder *self = new_instance(type, keywords);
    if (self != NULL && fill(self, args) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void decoder_dealloc(PyObject *object)
{
    TreeDecoder *self = (TreeDecoder *)object;
    for (Py_ssize_t index = 0; index < self->containers_count; index++) {
        Py_XDECREF(self->containers[index].kind);
        Py_XDECREF(self->containers[index].keys);
        PyMem_Free(self->containers[index].entries);
    }
    for (Py_ssize_t index = 0; index < self->places_count; index++) {
        Py_XDECREF(self->places[index].stored_as);
        PyMem_Free(self->places[index].shape);
    }
    PyMem_Free(self->containers);
    PyMem_Free(self->places);
    PyMem_Free(self->numbers);
    Py_XDECREF(self->constants);
    free_instance(object);
}

static PyObject *number_at(const char *payload, Py_ssize_t index, char kind)
{
    int64_t word;
    memcpy(&word, payload + index * 8, sizeof word);
    if (kind == 'q')
        return PyLong_FromLongLong(word);
    if (kind == '?')
        return PyBool_FromLong(word != 0);
    double number;
    memcpy(&number, &word, sizeof number);
    return PyFloat_FromDouble(number);
}

static PyObject *container_from(ContainerSpec *spec, PyObject **values)
{
    PyObject *made;
    if (spec->kind == (PyObject *)&PyDict_Type) {
        made = PyDict_New();
        for (Py_ssize_t index = 0; made != NULL && index < spec->count; index++)
            if (PyDict_SetItem(made, PyTuple_GET_ITEM(spec->keys, index), values[spec->entries[index]]) < 0)
                Py_CLEAR(made);
        return made;
    }
    if (spec->kind == (PyObject *)&PyList_Type) {
        made = PyList_New(spec->count);
        for (Py_ssize_t index = 0; made != NULL && index < spec->count; index++)
            PyList_SET_ITEM(made, index, Py_NewRef(values[spec->entries[index]]));
        return made;
    }
    made = PyTuple_New(spec->count);
    for (Py_ssize_t index = 0; made != NULL && index < spec->count; index++)
        PyTuple_SET_ITEM(made, index, Py_NewRef(values[spec->entries[index]]));
    return made;
}

/* The tree with these arrays for its leaves; steals their references. */
static PyObject *tree_of(TreeDecoder *self, const char *payload, PyObject **arrays)
{
    PyObject *few[LEAST_ROOM], **values = few, *tree = NULL;
    Py_ssize_t there = self->numbers_count + self->places_count + PyTuple_GET_SIZE(self->constants);
    Py_ssize_t room = there + self->containers_count, found = 0;
    if (room > LEAST_ROOM && (values = PyMem_Calloc((size_t)room, sizeof *values)) == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t index = 0; values != NULL && index < self->numbers_count; index++)
        if ((values[found] = number_at(payload, index, self->numbers[index])) != NULL)
            found++;
        else
            break;
    if (values == NULL || found < self->numbers_count) {
        for (Py_ssize_t index = 0; index < self->places_count; index++)
            Py_DECREF(arrays[index]);
        goto end;
    }
    for (Py_ssize_t index = 0; index < self->places_count; index++)
        values[found++] = arrays[index];
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(self->constants); index++)
        values[found++] = Py_NewRef(PyTuple_GET_ITEM(self->constants, index));
    for (Py_ssize_t index = 0; index < self->containers_count; index++)
        if ((values[found] = container_from(&self->containers[index], values)) != NULL)
            found++;
        else
            break;
    if (found == room)
        tree = Py_NewRef(self->is_leaf_root ? PyTuple_GET_ITEM(values[found - 1], 0) : values[found - 1]);
end:
    while (found)
        Py_DECREF(values[--found]);
    if (values != few)
        PyMem_Free(values);
    return tree;
}

static PyArrayObject *own_array(LeafLayout *place)
{
    return (PyArrayObject *)PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)Py_NewRef(place->stored_as),
                                                 place->dimensions, place->shape, NULL, NULL, 0, NULL);
}

/* A new array over the same memory, as `view[...]` makes. */
static PyArrayObject *another(PyArrayObject *view)
{
    PyArrayObject *array = (PyArrayObject *)PyArray_NewFromDescr(
        &PyArray_Type, (PyArray_Descr *)Py_NewRef(PyArray_DESCR(view)), PyArray_NDIM(view), PyArray_DIMS(view),
        PyArray_STRIDES(view), PyArray_DATA(view), PyArray_FLAGS(view) & (NPY_ARRAY_WRITEABLE | NPY_ARRAY_ALIGNED),
        NULL);
    if (array != NULL && PyArray_SetBaseObject(array, Py_NewRef(view)) < 0)
        Py_CLEAR(array);
    return array;
}

static PyArrayObject **room_for_arrays(TreeDecoder *self, PyArrayObject **few)
{
    PyArrayObject **arrays = few;
    if (self->places_count > LEAST_ROOM && (arrays = PyMem_Calloc((size_t)self->places_count, sizeof *arrays)) == NULL)
        PyErr_NoMemory();
    return arrays;
}

static void copy_out(TreeDecoder *self, const char *payload, PyArrayObject **arrays)
{
    for (Py_ssize_t index = 0; index < self->places_count; index++)
        memcpy(PyArray_BYTES(arrays[index]), payload + self->places[index].offset, (size_t)self->places[index].size);
}

/* decode(payload): the tree, its arrays copied */
PyObject *decoder_decode(PyObject *object, PyObject *payload)
{
    TreeDecoder *self = (TreeDecoder *)object;
    PyArrayObject *few[LEAST_ROOM], **arrays;
    PyObject *tree = NULL;
    const char *bytes;
    if ((bytes = payload_bytes_of(payload, self->payload_bytes)) == NULL ||
        (arrays = room_for_arrays(self, few)) == NULL)
        return NULL;
    Py_ssize_t found = 0;
    while (found < self->places_count && (arrays[found] = own_array(&self->places[found])) != NULL)
        found++;
    if (found < self->places_count)
        while (found)
            Py_DECREF(arrays[--found]);
    else {
        if (self->payload_bytes < RELEASING_BYTES)
            copy_out(self, bytes, arrays);
        else {
            Py_BEGIN_ALLOW_THREADS
            copy_out(self, bytes, arrays);
            Py_END_ALLOW_THREADS
        }
        tree = tree_of(self, bytes, (PyObject **)arrays);
    }
    if (arrays != few)
        PyMem_Free(arrays);
    return tree;
}

/* Whether this is a list with one array for each leaf. */
static int is_list_of_places(TreeDecoder *self, PyObject *given)
{
    if (PyList_CheckExact(given) && PyList_GET_SIZE(given) == self->places_count)
        return 1;
    PyErr_Format(PyExc_TypeError, "a list of %zd arrays is needed", self->places_count);
    return 0;
}

/* The tree over the memory of these views: each array a new view of it, or the result of `wrap`. */
PyObject *decoder_over(PyObject *object, PyObject *payload, PyObject *views, PyObject *wrap)
{
    TreeDecoder *self = (TreeDecoder *)object;
    PyArrayObject *few[LEAST_ROOM], **arrays;
    PyObject *tree = NULL;
    const char *bytes;
    if ((bytes = payload_bytes_of(payload, self->payload_bytes)) == NULL || !is_list_of_places(self, views))
        return NULL;
    for (Py_ssize_t index = 0; index < self->places_count; index++)
        if (!PyArray_CheckExact(PyList_GET_ITEM(views, index))) {
            PyErr_SetString(PyExc_TypeError, "expected views that are arrays");
            return NULL;
        }
    if ((arrays = room_for_arrays(self, few)) == NULL)
        return NULL;
    Py_ssize_t found = 0;
    /* `wrap` may run code that changes the list. */
    while (found < self->places_count && found < PyList_GET_SIZE(views)) {
        PyObject *view = Py_NewRef(PyList_GET_ITEM(views, found));
        arrays[found] =
            wrap == Py_None ? another((PyArrayObject *)view) : (PyArrayObject *)PyObject_CallOneArg(wrap, view);
        Py_DECREF(view);
        if (arrays[found] == NULL)
            break;
        found++;
    }
    if (found == self->places_count)
        tree = tree_of(self, bytes, (PyObject **)arrays);
    else {
        while (found)
            Py_DECREF(arrays[--found]);
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "a list of views changed while it was read");
    }
    if (arrays != few)
        PyMem_Free(arrays);
    return tree;
}

/* decode_in_place(payload, views) */
static PyObject *decoder_decode_in_place(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "decode_in_place(payload, views)");
        return NULL;
    }
    return decoder_over(object, args[0], args[1], Py_None);
}

/* unflatten(payload, leaves): the tree with these for its arrays */
static PyObject *decoder_unflatten(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    TreeDecoder *self = (TreeDecoder *)object;
    PyArrayObject *few[LEAST_ROOM], **leaves;
    const char *bytes;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "unflatten(payload, leaves)");
        return NULL;
    }
    if ((bytes = payload_bytes_of(args[0], self->payload_bytes)) == NULL || !is_list_of_places(self, args[1]) ||
        (leaves = room_for_arrays(self, few)) == NULL)
        return NULL;
    for (Py_ssize_t index = 0; index < self->places_count; index++)
        leaves[index] = (PyArrayObject *)Py_NewRef(PyList_GET_ITEM(args[1], index));
    PyObject *tree = tree_of(self, bytes, (PyObject **)leaves);
    if (leaves != few)
        PyMem_Free(leaves);
    return tree;
}

Py_ssize_t decoder_copy(PyObject *object, PyObject *payload, PyObject *arena, PyObject *copier, uint64_t write_id)
{
    TreeDecoder *self = (TreeDecoder *)object;
    char *from, *to;
    if ((from = payload_bytes_of(payload, self->payload_bytes)) == NULL ||
        (to = payload_bytes_of(arena, self->payload_bytes)) == NULL)
        return -1;
    if (!PyArray_ISWRITEABLE((PyArrayObject *)arena)) {
        PyErr_SetString(PyExc_ValueError, "this arena may only be read");
        return -1;
    }
    Py_ssize_t done = 0;
    if (copier != Py_None)
        done = copier_take((CutThroughCopier *)copier, (PyArrayObject *)arena, write_id);
    if (done > self->payload_bytes)
        done = self->payload_bytes;
    size_t rest = (size_t)(self->payload_bytes - done);
    if (rest < RELEASING_BYTES)
        memmove(to + done, from + done, rest);
    else {
        Py_BEGIN_ALLOW_THREADS
        memmove(to + done, from + done, rest);
        Py_END_ALLOW_THREADS
    }
    return done;
}

int is_decoder(PyObject *object) { return Py_TYPE(object)->tp_dealloc == decoder_dealloc; }

uint64_t decoder_bytes(PyObject *object) { return (uint64_t)((TreeDecoder *)object)->payload_bytes; }

/* stage(payload, arena, copier, write_id): copy the payload, except for the bytes of this write that the copier has
 * copied; their number */
static PyObject *decoder_stage(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    if ((count != 2 && count != 4) || (count == 4 && args[2] != Py_None && !is_copier(args[2]))) {
        PyErr_SetString(PyExc_TypeError, "stage(payload, arena), or with copier, write_id");
        return NULL;
    }
    uint64_t write_id = count == 4 ? PyLong_AsUnsignedLongLong(args[3]) : 0;
    if (write_id == (uint64_t)-1 && PyErr_Occurred())
        return NULL;
    Py_ssize_t done = decoder_copy(object, args[0], args[1], count == 4 ? args[2] : Py_None, write_id);
    return done < 0 ? NULL : PyLong_FromSsize_t(done);
}

static PyMethodDef decoder_methods[] = {
    {"decode", decoder_decode, METH_O, "The tree of a payload, its arrays copied."},
    {"decode_in_place", (PyCFunction)(void (*)(void))decoder_decode_in_place, METH_FASTCALL,
     "The tree over the memory of these views."},
    {"unflatten", (PyCFunction)(void (*)(void))decoder_unflatten, METH_FASTCALL, "The tree with these for its arrays."},
    {"stage", (PyCFunction)(void (*)(void))decoder_stage, METH_FASTCALL, "Copy a payload of this structure."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot decoder_slots[] = {
    {Py_tp_doc, "Decodes trees of one structure."},
    {Py_tp_new, decoder_new},
    {Py_tp_dealloc, decoder_dealloc},
    {Py_tp_methods, decoder_methods},
    {0, NULL},
};

PyType_Spec decoder_spec = {"shmserve._core.TreeDecoder", sizeof(TreeDecoder), 0, TYPE_FLAGS, decoder_slots};
