/* Encoder of trees of a known structure: checks the structure guard, then copies the leaves into a slot's payload.
 *
 * It does the work of StructureGuard.flatten (structure_guard.py) and Encoder._write (codec.py). The whole tree is
 * checked before the first byte is copied. A tree that differs in any way has another structure, and Python infers its
 * schema.
 *
 * A large write is announced, so that the engine can copy it cut-through while it goes on (cut_through.c).
 */

#include "tree_encoder.h"
#include "cut_through.h"
#include "slots.h"

enum { LEAST_ROOM = 32, MOST_DEPTH = 64 };

typedef struct {
    Py_ssize_t position;
    PyObject *value;   /* of a base type */
    PyObject *convert; /* to that type; None if it has it */
} Constant;

typedef struct {
    Py_ssize_t position;
    PyObject *dtype;   /* to compare with; None for a leaf without one */
    PyObject *convert; /* None if numpy takes it unchanged */
    int dimensions;
    npy_intp *shape;
} ArrayLeaf;

typedef struct Container Container;

typedef struct {
    Py_ssize_t position;
    Container *container;
    PyObject *convert; /* to the container's kind; None if it has it */
} Nested;

struct Container {
    PyTypeObject *kind;
    Py_ssize_t size;
    PyObject **keys; /* NULL unless it is a dict */
    PyTypeObject **types;
    Py_ssize_t constants_count, numbers_count, arrays_count, nested_count;
    Constant *constants;
    Py_ssize_t *numbers;
    ArrayLeaf *arrays;
    Nested *nested;
};

typedef struct {
    Py_ssize_t offset, size;
    PyArray_Descr *stored_as;
} LeafLayout;

typedef struct {
    PyObject_HEAD
    Container *root;
    LeafLayout *places;
    Py_ssize_t numbers_count, arrays_count, payload_bytes;
    int is_leaf_root;
} TreeEncoder;

/* The flattened leaves of one tree. */
typedef struct {
    uint64_t *numbers;
    PyArrayObject **arrays; /* owned */
    Py_ssize_t numbers_found, arrays_found;
} Leaves;

/* Construction */

static void *zeroed(Py_ssize_t count, size_t size)
{
    void *memory = PyMem_Calloc((size_t)(count > 0 ? count : 1), size);
    if (memory == NULL)
        PyErr_NoMemory();
    return memory;
}

static void free_container(Container *container)
{
    if (container == NULL)
        return;
    for (Py_ssize_t index = 0; index < container->size; index++) {
        if (container->keys != NULL)
            Py_XDECREF(container->keys[index]);
        if (container->types != NULL)
            Py_XDECREF(container->types[index]);
    }
    for (Py_ssize_t index = 0; container->constants != NULL && index < container->constants_count; index++) {
        Py_XDECREF(container->constants[index].value);
        Py_XDECREF(container->constants[index].convert);
    }
    for (Py_ssize_t index = 0; container->arrays != NULL && index < container->arrays_count; index++) {
        Py_XDECREF(container->arrays[index].dtype);
        Py_XDECREF(container->arrays[index].convert);
        PyMem_Free(container->arrays[index].shape);
    }
    for (Py_ssize_t index = 0; container->nested != NULL && index < container->nested_count; index++) {
        free_container(container->nested[index].container);
        Py_XDECREF(container->nested[index].convert);
    }
    Py_XDECREF(container->kind);
    PyMem_Free(container->keys);
    PyMem_Free(container->types);
    PyMem_Free(container->constants);
    PyMem_Free(container->numbers);
    PyMem_Free(container->arrays);
    PyMem_Free(container->nested);
    PyMem_Free(container);
}

static int is_position(Container *container, Py_ssize_t position)
{
    if (position >= 0 && position < container->size)
        return 1;
    PyErr_SetString(PyExc_ValueError, "a guard has a position outside its container");
    return 0;
}

static int array_of(Container *container, PyObject *given, ArrayLeaf *leaf)
{
    PyObject *dtype, *shape, *convert;
    if (!PyArg_ParseTuple(given, "nOO!O", &leaf->position, &dtype, &PyTuple_Type, &shape, &convert) ||
        !is_position(container, leaf->position))
        return -1;
    leaf->dtype = Py_NewRef(dtype);
    leaf->convert = Py_NewRef(convert);
    if (PyTuple_GET_SIZE(shape) > NPY_MAXDIMS) {
        PyErr_SetString(PyExc_ValueError, "an array of too many dimensions");
        return -1;
    }
    leaf->dimensions = (int)PyTuple_GET_SIZE(shape);
    leaf->shape = zeroed(leaf->dimensions, sizeof *leaf->shape);
    if (leaf->shape == NULL)
        return -1;
    for (int index = 0; index < leaf->dimensions; index++) {
        leaf->shape[index] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, index));
        if (leaf->shape[index] < 0) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "a negative length");
            return -1;
        }
    }
    return 0;
}

/* A container of `ContainerGuard.spec()`: (kind, keys or None, types, constants, numbers, arrays, nested). */
static Container *container_of(PyObject *given, TreeEncoder *encoder, int depth)
{
    PyObject *kind, *keys, *types, *constants, *numbers, *arrays, *nested;
    if (depth > MOST_DEPTH) {
        PyErr_SetString(PyExc_ValueError, "a guard that is too deep");
        return NULL;
    }
    if (!PyTuple_Check(given)) {
        PyErr_SetString(PyExc_TypeError, "a guard is a tuple");
        return NULL;
    }
    if (!PyArg_ParseTuple(given, "O!OO!O!O!O!O!", &PyType_Type, &kind, &keys, &PyTuple_Type, &types, &PyTuple_Type,
                          &constants, &PyTuple_Type, &numbers, &PyTuple_Type, &arrays, &PyTuple_Type, &nested))
        return NULL;
    Container *container = zeroed(1, sizeof *container);
    if (container == NULL)
        return NULL;
    container->kind = (PyTypeObject *)Py_NewRef(kind);
    int is_dict = kind == (PyObject *)&PyDict_Type;
    if ((!is_dict && kind != (PyObject *)&PyList_Type && kind != (PyObject *)&PyTuple_Type) ||
        (is_dict && (!PyTuple_Check(keys) || PyTuple_GET_SIZE(keys) != PyTuple_GET_SIZE(types)))) {
        PyErr_SetString(PyExc_TypeError, "a guard is of a dict with its keys, a list or a tuple");
        goto failed;
    }
    container->types = zeroed(PyTuple_GET_SIZE(types), sizeof *container->types);
    container->keys = is_dict ? zeroed(PyTuple_GET_SIZE(types), sizeof *container->keys) : NULL;
    if (container->types == NULL || (is_dict && container->keys == NULL))
        goto failed;
    container->size = PyTuple_GET_SIZE(types);
    for (Py_ssize_t index = 0; index < container->size; index++) {
        if (is_dict)
            container->keys[index] = Py_NewRef(PyTuple_GET_ITEM(keys, index));
        container->types[index] = (PyTypeObject *)Py_NewRef(PyTuple_GET_ITEM(types, index));
        if (!PyType_Check(container->types[index]) || (is_dict && !PyUnicode_CheckExact(container->keys[index]))) {
            PyErr_SetString(PyExc_TypeError, "a guard's types are types, and its keys str");
            goto failed;
        }
    }
    container->constants = zeroed(PyTuple_GET_SIZE(constants), sizeof *container->constants);
    container->numbers = zeroed(PyTuple_GET_SIZE(numbers), sizeof *container->numbers);
    container->arrays = zeroed(PyTuple_GET_SIZE(arrays), sizeof *container->arrays);
    container->nested = zeroed(PyTuple_GET_SIZE(nested), sizeof *container->nested);
    if (container->constants == NULL || container->numbers == NULL || container->arrays == NULL ||
        container->nested == NULL)
        goto failed;
    for (; container->constants_count < PyTuple_GET_SIZE(constants); container->constants_count++) {
        Constant *constant = &container->constants[container->constants_count];
        PyObject *value, *convert;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(constants, container->constants_count), "nOO", &constant->position,
                              &value, &convert) ||
            !is_position(container, constant->position))
            goto failed;
        constant->value = Py_NewRef(value);
        constant->convert = Py_NewRef(convert);
    }
    for (; container->numbers_count < PyTuple_GET_SIZE(numbers); container->numbers_count++) {
        Py_ssize_t position = PyLong_AsSsize_t(PyTuple_GET_ITEM(numbers, container->numbers_count));
        if (!is_position(container, position))
            goto failed;
        PyTypeObject *type = container->types[position];
        if (!PyType_IsSubtype(type, &PyLong_Type) && !PyType_IsSubtype(type, &PyFloat_Type)) {
            PyErr_SetString(PyExc_TypeError, "a guard's numbers are int, float or bool");
            goto failed;
        }
        container->numbers[container->numbers_count] = position;
    }
    encoder->numbers_count += container->numbers_count;
    while (container->arrays_count < PyTuple_GET_SIZE(arrays)) {
        PyObject *leaf = PyTuple_GET_ITEM(arrays, container->arrays_count);
        if (array_of(container, leaf, &container->arrays[container->arrays_count++]) < 0)
            goto failed;
    }
    encoder->arrays_count += container->arrays_count;
    for (; container->nested_count < PyTuple_GET_SIZE(nested); container->nested_count++) {
        Nested *inner = &container->nested[container->nested_count];
        PyObject *guard, *convert;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(nested, container->nested_count), "nOO", &inner->position, &guard,
                              &convert) ||
            !is_position(container, inner->position))
            goto failed;
        inner->container = container_of(guard, encoder, depth + 1);
        if (inner->container == NULL)
            goto failed;
        inner->convert = Py_NewRef(convert);
        if (convert == Py_None && container->types[inner->position] != inner->container->kind) {
            container->nested_count++;
            PyErr_SetString(PyExc_TypeError, "a nested container differs from the type at its position");
            goto failed;
        }
    }
    return container;
failed:
    free_container(container);
    return NULL;
}

static int places_of(TreeEncoder *self, PyObject *given)
{
    if (PyTuple_GET_SIZE(given) != self->arrays_count) {
        PyErr_SetString(PyExc_ValueError, "a guard has other arrays than its schema");
        return -1;
    }
    self->places = zeroed(self->arrays_count, sizeof *self->places);
    if (self->places == NULL)
        return -1;
    for (Py_ssize_t index = 0; index < self->arrays_count; index++) {
        LeafLayout *place = &self->places[index];
        PyObject *stored_as;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(given, index), "nnO!", &place->offset, &place->size, &PyArrayDescr_Type,
                              &stored_as))
            return -1;
        place->stored_as = (PyArray_Descr *)Py_NewRef(stored_as);
        if (PyDataType_REFCHK(place->stored_as) || place->offset < self->numbers_count * 8 || place->size < 0 ||
            place->size > self->payload_bytes - place->offset) {
            PyErr_SetString(PyExc_ValueError, "an array lies outside of its payload");
            return -1;
        }
    }
    return 0;
}

static int fill(TreeEncoder *self, PyObject *args)
{
    PyObject *guard, *places;
    if (!PyArg_ParseTuple(args, "OpO!n", &guard, &self->is_leaf_root, &PyTuple_Type, &places, &self->payload_bytes))
        return -1;
    self->root = container_of(guard, self, 0);
    if (self->root == NULL || places_of(self, places) < 0)
        return -1;
    if (self->payload_bytes < self->numbers_count * 8 ||
        (self->is_leaf_root && (self->root->size != 1 || self->root->kind != &PyTuple_Type))) {
        PyErr_SetString(PyExc_ValueError, "a guard and its schema do not agree");
        return -1;
    }
    return 0;
}

/* TreeEncoder(guard, is_leaf_root, places, payload_bytes) */
static PyObject *encoder_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    TreeEncoder *self = new_instance(type, keywords);
    if (self != NULL && fill(self, args) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void encoder_dealloc(PyObject *object)
{
    TreeEncoder *self = (TreeEncoder *)object;
    free_container(self->root);
    for (Py_ssize_t index = 0; self->places != NULL && index < self->arrays_count; index++)
        Py_XDECREF(self->places[index].stored_as);
    PyMem_Free(self->places);
    free_instance(object);
}

/* Flattening. 1: the guard holds, 0: another structure, -1: an exception. */

static int same_dtype(PyObject *found, PyObject *described)
{
    if (found == described)
        return 1;
    if (PyArray_DescrCheck(found) && PyArray_DescrCheck(described))
        return PyArray_EquivTypes((PyArray_Descr *)found, (PyArray_Descr *)described);
    return PyObject_RichCompareBool(found, described, Py_EQ);
}

/* The leaf as an array, owned; NULL without an exception for another structure. */
static PyArrayObject *leaf_array(ArrayLeaf *leaf, PyObject *value)
{
    if (leaf->dtype != Py_None) {
        int same;
        if (PyArray_CheckExact(value))
            same = same_dtype((PyObject *)PyArray_DESCR((PyArrayObject *)value), leaf->dtype);
        else {
            PyObject *dtype = PyObject_GetAttrString(value, "dtype");
            if (dtype == NULL)
                return NULL;
            same = same_dtype(dtype, leaf->dtype);
            Py_DECREF(dtype);
        }
        if (same <= 0)
            return NULL;
    }
    PyObject *array = leaf->convert == Py_None ? Py_NewRef(value) : PyObject_CallOneArg(leaf->convert, value);
    if (array != NULL && !PyArray_Check(array)) {
        PyObject *scalar = array;
        array = PyArray_IsScalar(scalar, Generic) ? PyArray_FromScalar(scalar, NULL) : NULL;
        Py_DECREF(scalar);
    }
    return (PyArrayObject *)array;
}

static int flatten_array(TreeEncoder *self, ArrayLeaf *leaf, PyObject *value, Leaves *leaves)
{
    PyArrayObject *array = leaf_array(leaf, value);
    if (array == NULL)
        return PyErr_Occurred() ? -1 : 0;
    leaves->arrays[leaves->arrays_found] = array;
    LeafLayout *place = &self->places[leaves->arrays_found++];
    if (PyArray_NDIM(array) != leaf->dimensions || PyArray_NBYTES(array) != place->size)
        return 0;
    for (int index = 0; index < leaf->dimensions; index++)
        if (PyArray_DIM(array, index) != leaf->shape[index])
            return 0;
    return PyArray_DESCR(array) == place->stored_as || PyArray_EquivTypes(PyArray_DESCR(array), place->stored_as);
}

static int flatten_number(PyObject *value, Leaves *leaves)
{
    uint64_t *word = &leaves->numbers[leaves->numbers_found++];
    if (PyFloat_Check(value)) {
        double number = PyFloat_AS_DOUBLE(value);
        memcpy(word, &number, sizeof number);
        return 1;
    }
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    *word = (uint64_t)number;
    return overflow ? 0 : 1;
}

/* The values of `tree`, owned, in the order of the guard; 0 and none of them for another structure. */
static int values_of(Container *container, PyObject *tree, PyObject **values)
{
    if (Py_TYPE(tree) != container->kind)
        return 0;
    Py_ssize_t found = 0;
    if (container->keys != NULL) {
        PyObject *key, *value;
        Py_ssize_t cursor = 0;
        if (PyDict_GET_SIZE(tree) != container->size)
            return 0;
        while (found < container->size && PyDict_Next(tree, &cursor, &key, &value)) {
            if (key != container->keys[found] &&
                (!PyUnicode_CheckExact(key) || PyUnicode_Compare(key, container->keys[found])))
                break;
            if (Py_TYPE(value) != container->types[found])
                break;
            values[found++] = Py_NewRef(value);
        }
    }
    else if (Py_SIZE(tree) == container->size) {
        PyObject **items = PySequence_Fast_ITEMS(tree);
        while (found < container->size && Py_TYPE(items[found]) == container->types[found]) {
            values[found] = Py_NewRef(items[found]);
            found++;
        }
    }
    else
        return 0;
    if (found == container->size)
        return 1;
    while (found)
        Py_DECREF(values[--found]);
    return 0;
}

/* The value as its base type, owned; NULL with an exception. */
static PyObject *as_base(PyObject *value, PyObject *convert)
{
    return convert == Py_None ? Py_NewRef(value) : PyObject_CallOneArg(convert, value);
}

static int flatten(TreeEncoder *self, Container *container, PyObject *tree, Leaves *leaves)
{
    PyObject *few[LEAST_ROOM], **values = few;
    if (container->size > LEAST_ROOM && (values = zeroed(container->size, sizeof *values)) == NULL)
        return -1;
    int same = values_of(container, tree, values);
    if (same == 1) {
        for (Py_ssize_t index = 0; same == 1 && index < container->constants_count; index++) {
            Constant *constant = &container->constants[index];
            PyObject *value = as_base(values[constant->position], constant->convert);
            if (value == NULL)
                same = -1;
            else if (value != constant->value)
                same = PyObject_RichCompareBool(value, constant->value, Py_EQ);
            Py_XDECREF(value);
        }
        for (Py_ssize_t index = 0; same == 1 && index < container->numbers_count; index++)
            same = flatten_number(values[container->numbers[index]], leaves);
        for (Py_ssize_t index = 0; same == 1 && index < container->arrays_count; index++)
            same = flatten_array(self, &container->arrays[index], values[container->arrays[index].position], leaves);
        for (Py_ssize_t index = 0; same == 1 && index < container->nested_count; index++) {
            Nested *nested = &container->nested[index];
            PyObject *inner = as_base(values[nested->position], nested->convert);
            same = inner == NULL ? -1 : flatten(self, nested->container, inner, leaves);
            Py_XDECREF(inner);
        }
        for (Py_ssize_t index = 0; index < container->size; index++)
            Py_DECREF(values[index]);
    }
    if (values != few)
        PyMem_Free(values);
    return same;
}

/* Copying */

/* Whether a flattened array still has the size of its leaf: a conversion or another thread may have resized it since.
 */
static int still_fits(LeafLayout *place, PyArrayObject *array)
{
    return PyArray_NBYTES(array) == place->size &&
           PyArray_SIZE(array) * PyDataType_ELSIZE(place->stored_as) == place->size;
}

/* Copy an array that is not contiguous, with numpy. */
static int copy_strided(LeafLayout *place, PyArrayObject *array, char *payload)
{
    PyObject *to =
        PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)Py_NewRef(place->stored_as), PyArray_NDIM(array),
                             PyArray_DIMS(array), NULL, payload + place->offset, NPY_ARRAY_WRITEABLE, NULL);
    int failed = to == NULL ? -1 : PyArray_CopyInto((PyArrayObject *)to, array);
    Py_XDECREF(to);
    return failed;
}

static void copy_whole(TreeEncoder *self, Leaves *leaves, char *payload)
{
    memcpy(payload, leaves->numbers, (size_t)self->numbers_count * 8);
    for (Py_ssize_t index = 0; index < self->arrays_count; index++) {
        PyArrayObject *array = leaves->arrays[index];
        LeafLayout *place = &self->places[index];
        if (place->size && PyArray_IS_C_CONTIGUOUS(array) && PyArray_BYTES(array) != payload + place->offset)
            memmove(payload + place->offset, PyArray_BYTES(array), (size_t)place->size);
    }
}

/* As `copy_whole`, in pieces, with the byte count after each one until an array is left for `copy_strided`. The word
 * lies in the payload's segment and is mapped while the payload is. */
static void copy_in_pieces(TreeEncoder *self, Leaves *leaves, char *payload, uint64_t *written)
{
    int in_order = 1;
    memcpy(payload, leaves->numbers, (size_t)self->numbers_count * 8);
    for (Py_ssize_t index = 0; index < self->arrays_count; index++) {
        PyArrayObject *array = leaves->arrays[index];
        LeafLayout *place = &self->places[index];
        if (!PyArray_IS_C_CONTIGUOUS(array)) {
            in_order = 0;
            continue;
        }
        const char *from = PyArray_BYTES(array);
        char *to = payload + place->offset;
        Py_ssize_t piece = 0;
        /* Arrays that overlap their place are copied whole, as memmove does. */
        int apart = from >= to + place->size || to >= from + place->size;
        for (Py_ssize_t done = 0; done < place->size; done += piece) {
            piece = apart && place->size - done > CUT_THROUGH_PIECE ? CUT_THROUGH_PIECE : place->size - done;
            memmove(to + done, from + done, (size_t)piece);
            /* ORDER: bytes before their number; pairs with copier_advance. */
            if (in_order)
                __atomic_store_n(written, (uint64_t)(place->offset + done + piece), __ATOMIC_RELEASE);
        }
    }
}

/* Announce a write into this slot, with a unique write id. */
static uint64_t begin_write(uint64_t *counter, uint64_t slot)
{
    uint64_t write_id = sequence_of(number_of(counter[WRITE_ID]) + 1, slot);
    /* ORDER: the write id before any byte; pairs with copier_advance. */
    __atomic_store_n(&counter[WRITTEN_BYTES], 0, __ATOMIC_RELAXED);
    __atomic_store_n(&counter[PROCESSOR], processor(), __ATOMIC_RELAXED);
    __atomic_store_n(&counter[WRITE_ID], write_id, __ATOMIC_RELEASE);
    /* Nor may a byte of this write be visible under the id of an earlier one. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return write_id;
}

static int copy(TreeEncoder *self, Leaves *leaves, char *payload, uint64_t *counter)
{
    for (Py_ssize_t index = 0; index < self->arrays_count; index++)
        if (!still_fits(&self->places[index], leaves->arrays[index]))
            return OTHER;
    if (self->payload_bytes < RELEASING_BYTES)
        copy_whole(self, leaves, payload);
    else {
        Py_BEGIN_ALLOW_THREADS
        if (counter != NULL)
            copy_in_pieces(self, leaves, payload, &counter[WRITTEN_BYTES]);
        else
            copy_whole(self, leaves, payload);
        Py_END_ALLOW_THREADS
    }
    for (Py_ssize_t index = 0; index < self->arrays_count; index++) {
        PyArrayObject *array = leaves->arrays[index];
        if (PyArray_IS_C_CONTIGUOUS(array))
            continue;
        if (!still_fits(&self->places[index], array))
            return OTHER;
        if (copy_strided(&self->places[index], array, payload) < 0)
            return -1;
    }
    return WRITTEN;
}

/* Whether the payload is large enough; copy_into checks its type. */
static int does_fit(TreeEncoder *self, PyObject *payload)
{
    return PyArray_Check(payload) && PyArray_NBYTES((PyArrayObject *)payload) >= self->payload_bytes;
}

/* Announce the write, and wake the engine for a long one: 1, or -1 with an exception. */
static int begin_cut_through(TreeEncoder *self, PyObject *slots, uint64_t slot, PyObject *wake, uint64_t **counter,
                             uint64_t *write_id)
{
    if (self->payload_bytes >= WAKE_BYTES && wake != Py_None) {
        /* Before the first word is written, because it runs Python code. */
        PyObject *woken = PyObject_CallNoArgs(wake);
        if (woken == NULL)
            return -1;
        Py_DECREF(woken);
    }
    Slots *open = writable_slots(slots);
    if (open == NULL)
        return -1;
    *counter = open->counter;
    *write_id = begin_write(*counter, slot);
    return 1;
}

/* The payload is checked after the last Python code has run. */
static int copy_into(TreeEncoder *self, Leaves *leaves, PyObject *payload, uint64_t *counter)
{
    char *bytes = payload_bytes_of(payload, 0);
    if (bytes == NULL)
        return -1;
    if (!PyArray_ISWRITEABLE((PyArrayObject *)payload)) {
        PyErr_SetString(PyExc_ValueError, "this payload may only be read");
        return -1;
    }
    return PyArray_DIM((PyArrayObject *)payload, 0) < self->payload_bytes ? TOO_LARGE
                                                                          : copy(self, leaves, bytes, counter);
}

int encoder_put(PyObject *object, PyObject *given, PyObject *payload, PyObject *slots, uint64_t slot, PyObject *wake,
                uint64_t *write_id)
{
    TreeEncoder *self = (TreeEncoder *)object;
    uint64_t few_numbers[LEAST_ROOM];
    PyArrayObject *few_arrays[LEAST_ROOM];
    Leaves leaves = {few_numbers, few_arrays, 0, 0};
    uint64_t *counter = NULL;
    int found = -1;
    *write_id = 0;
    if (self->numbers_count > LEAST_ROOM &&
        (leaves.numbers = zeroed(self->numbers_count, sizeof *leaves.numbers)) == NULL)
        goto end;
    if (self->arrays_count > LEAST_ROOM && (leaves.arrays = zeroed(self->arrays_count, sizeof *leaves.arrays)) == NULL)
        goto end;
    PyObject *tree = self->is_leaf_root ? PyTuple_Pack(1, given) : Py_NewRef(given);
    if (tree == NULL)
        goto end;
    found = flatten(self, self->root, tree, &leaves);
    Py_DECREF(tree);
    if (found == 1 && slots != Py_None && self->payload_bytes >= CUT_THROUGH_BYTES && does_fit(self, payload))
        found = begin_cut_through(self, slots, slot, wake, &counter, write_id);
    if (found == 1)
        found = copy_into(self, &leaves, payload, counter);
end:
    while (leaves.arrays_found)
        Py_DECREF(leaves.arrays[--leaves.arrays_found]);
    if (leaves.numbers != few_numbers)
        PyMem_Free(leaves.numbers);
    if (leaves.arrays != few_arrays)
        PyMem_Free(leaves.arrays);
    return found;
}

int is_encoder(PyObject *object) { return Py_TYPE(object)->tp_dealloc == encoder_dealloc; }

uint64_t encoder_bytes(PyObject *object) { return (uint64_t)((TreeEncoder *)object)->payload_bytes; }

static PyObject *encoder_encode_into(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 && count != 5) {
        PyErr_SetString(PyExc_TypeError, "encode_into(tree, payload), or with slots, slot, wake");
        return NULL;
    }
    unsigned long slot = 0;
    if (count == 5 && args[2] != Py_None) {
        slot = PyLong_AsUnsignedLong(args[3]);
        if (slot >= MAX_SLOTS) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "no such slot");
            return NULL;
        }
    }
    uint64_t write_id;
    int found = encoder_put(object, args[0], args[1], count == 5 ? args[2] : Py_None, slot,
                            count == 5 ? args[4] : Py_None, &write_id);
    if (found == WRITTEN && write_id)
        return PyLong_FromUnsignedLongLong(write_id);
    return found < 0 ? NULL : PyLong_FromLong(found);
}

static PyMethodDef encoder_methods[] = {
    {"encode_into", (PyCFunction)(void (*)(void))encoder_encode_into, METH_FASTCALL,
     "Write a tree: 0 another structure, 1 written, 2 the payload is too small, above 2: written under this write id."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot encoder_slots[] = {
    {Py_tp_doc, "Encodes trees of one structure."},
    {Py_tp_new, encoder_new},
    {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_methods, encoder_methods},
    {0, NULL},
};

PyType_Spec encoder_spec = {"shmserve._core.TreeEncoder", sizeof(TreeEncoder), 0, TYPE_FLAGS, encoder_slots};
