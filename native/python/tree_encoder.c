/* Encoder of trees: one walk describes a tree and flattens it, then its leaves are copied into a slot.
 *
 * The walk writes the metadata, which names the structure, and collects the sizes, numbers and leaves. The whole tree is
 * walked before the first byte is copied. A structure that is not remembered, or sizes that a contract does not allow,
 * are reported before anything is written, and so is a value that this walk cannot carry: Python then says why.
 *
 * A large write is announced, so that the engine can copy it cut-through while it goes on (cut_through.c).
 * shmserve/pure/tree_encoder.py does the same in Python.
 */

#include "tree_encoder.h"
#include "cut_through.h"
#include "dtypes.h"
#include "slots.h"
#include "state.h"

#include "core/schema.h"

enum { REMEMBERED = 64, FEW_ENTRIES = 24 };

/* The codes of TreeEncoder's `convert`. */
enum {
    CARRIED_AS = 0,
    CARRIED_AS_BFLOAT16 = 1,
    CARRIED_AS_BFLOAT16_SCALAR = 2,
    CARRIED_AS_LONG = 3,
    CARRIED_ON_DEVICE = 4
};

/* A leaf of the walked tree. */
typedef struct {
    PyObject *owner;   /* keeps the bytes */
    const char *bytes; /* of a text, of bytes and of a list; NULL: the owner is an array */
    PyObject *given;   /* the array that the owner is a copy of, or NULL: the end of one may run code */
} Source;

/* A described and flattened tree. */
typedef struct {
    MetadataWriter metadata;
    uint8_t *buffer;
    Leaf *leaves;
    Source *sources;
    Place *places;
    uint64_t *sizes, *numbers;
    size_t leaves_count, leaves_room, sizes_count, sizes_room, numbers_count, numbers_room;
    int nodes;
    int has_device; /* leaves in GPU memory, whose bytes the client copies */
} Walk;

/* A structure that was sent before. */
typedef struct {
    PyObject *metadata;
    uint64_t schema, used;
    int64_t *expected; /* for each size the one that is declared, or -1; NULL: none is */
} Known;

typedef struct {
    PyObject_HEAD
    PyObject *convert;
    Known known[REMEMBERED];
    int known_count, latest;
    uint64_t uses;
    Walk walk; /* kept from one tree to the next */
    int busy;
} TreeEncoder;

/* Construction */

static void free_walk(Walk *walk)
{
    PyMem_Free(walk->buffer);
    PyMem_Free(walk->leaves);
    PyMem_Free(walk->sources);
    PyMem_Free(walk->places);
    PyMem_Free(walk->sizes);
    PyMem_Free(walk->numbers);
    memset(walk, 0, sizeof *walk);
}

/* TreeEncoder(convert): `convert` gives a value of any other type as (code, value of a base type) */
static PyObject *encoder_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    TreeEncoder *self = new_instance(type, keywords);
    if (self != NULL && !PyArg_ParseTuple(args, "O", &self->convert)) {
        self->convert = NULL;
        Py_CLEAR(self);
    }
    if (self != NULL)
        Py_INCREF(self->convert);
    return (PyObject *)self;
}

static void forget_one(Known *known)
{
    Py_CLEAR(known->metadata);
    PyMem_Free(known->expected);
    known->expected = NULL;
}

static PyObject *encoder_forget(PyObject *object, PyObject *unused)
{
    (void)unused;
    TreeEncoder *self = (TreeEncoder *)object;
    while (self->known_count)
        forget_one(&self->known[--self->known_count]);
    Py_RETURN_NONE;
}

static void encoder_dealloc(PyObject *object)
{
    TreeEncoder *self = (TreeEncoder *)object;
    Py_XDECREF(encoder_forget(object, NULL));
    free_walk(&self->walk);
    Py_XDECREF(self->convert);
    free_instance(object);
}

/* The remembered structure of this metadata; -1 for none. */
static int find(TreeEncoder *self, const uint8_t *metadata, size_t bytes)
{
    for (int step = 0; step < self->known_count; step++) {
        int index = (self->latest + step) % self->known_count;
        PyObject *known = self->known[index].metadata;
        if ((size_t)PyBytes_GET_SIZE(known) == bytes && memcmp(PyBytes_AS_STRING(known), metadata, bytes) == 0) {
            self->known[index].used = ++self->uses;
            return self->latest = index;
        }
    }
    return -1;
}

/* remember(metadata, schema, expected): write trees of this structure from now on; in the place of the one that was used
 * longest ago if there are many. `expected`: for each size the one that is declared, or -1; None: none is */
static PyObject *encoder_remember(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    TreeEncoder *self = (TreeEncoder *)object;
    int64_t *expected = NULL;
    uint64_t schema;
    if (count != 3 || !PyBytes_CheckExact(args[0]) || (args[2] != Py_None && !PyTuple_CheckExact(args[2]))) {
        PyErr_SetString(PyExc_TypeError, "remember(metadata, schema, expected)");
        return NULL;
    }
    if (to_word(args[1], &schema) < 0)
        return NULL;
    Schema described;
    if (!schema_read(&described, (const uint8_t *)PyBytes_AS_STRING(args[0]), (size_t)PyBytes_GET_SIZE(args[0]))) {
        PyErr_SetString(PyExc_ValueError, "expected metadata of a tree");
        return NULL;
    }
    Py_ssize_t sizes = described.sizes_count;
    schema_free(&described);
    if (args[2] != Py_None) {
        if (PyTuple_GET_SIZE(args[2]) != sizes) {
            PyErr_Format(PyExc_ValueError, "expected %zd sizes", sizes);
            return NULL;
        }
        if ((expected = PyMem_Calloc((size_t)sizes + 1, sizeof *expected)) == NULL)
            return PyErr_NoMemory();
        for (Py_ssize_t index = 0; index < sizes; index++) {
            expected[index] = PyLong_AsLongLong(PyTuple_GET_ITEM(args[2], index));
            if (expected[index] == -1 && PyErr_Occurred()) {
                PyMem_Free(expected);
                return NULL;
            }
        }
    }
    int index = find(self, (const uint8_t *)PyBytes_AS_STRING(args[0]), (size_t)PyBytes_GET_SIZE(args[0]));
    if (index < 0 && self->known_count < REMEMBERED)
        index = self->known_count++;
    if (index < 0) {
        index = 0;
        for (int other = 1; other < self->known_count; other++)
            if (self->known[other].used < self->known[index].used)
                index = other;
    }
    forget_one(&self->known[index]);
    self->known[index] = (Known){Py_NewRef(args[0]), schema, ++self->uses, expected};
    self->latest = index;
    Py_RETURN_NONE;
}

/* Walking. 1: described, 0: a value that is not carried, -1: an exception. */

/* Room for one more element of an array. */
static int make_room(void *array, size_t count, size_t *room, size_t element)
{
    void **memory = array;
    if (count < *room)
        return 1;
    size_t larger = *room ? 2 * *room : 64;
    void *moved = PyMem_Realloc(*memory, larger * element);
    if (moved == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    *memory = moved;
    *room = larger;
    return 1;
}

static int add_size(Walk *walk, uint64_t size)
{
    if (!make_room(&walk->sizes, walk->sizes_count, &walk->sizes_room, sizeof *walk->sizes))
        return -1;
    walk->sizes[walk->sizes_count++] = size;
    return 1;
}

static int add_number(Walk *walk, int kind, int dtype, uint64_t word)
{
    if (!make_room(&walk->numbers, walk->numbers_count, &walk->numbers_room, sizeof *walk->numbers))
        return -1;
    walk->numbers[walk->numbers_count++] = word;
    metadata_leaf(&walk->metadata, kind, dtype, 0);
    return 1;
}

/* Takes over `owner`. */
static int add_leaf(Walk *walk, int kind, int dtype, int dimensions, PyObject *owner, const char *bytes)
{
    if (walk->leaves_count == walk->leaves_room) {
        size_t room = walk->leaves_room, again = room, third = room;
        if (!make_room(&walk->leaves, room, &room, sizeof *walk->leaves) ||
            !make_room(&walk->sources, again, &again, sizeof *walk->sources) ||
            !make_room(&walk->places, third, &third, sizeof *walk->places)) {
            Py_DECREF(owner);
            return -1;
        }
        walk->leaves_room = room;
    }
    walk->leaves[walk->leaves_count] = (Leaf){(uint8_t)kind, (uint8_t)dtype, (uint8_t)dimensions};
    walk->sources[walk->leaves_count++] = (Source){owner, bytes, NULL};
    metadata_leaf(&walk->metadata, kind, dtype, dimensions);
    return 1;
}

/* A leaf of these bytes, of one dimension. Takes over `owner`. */
static int add_bytes(Walk *walk, int kind, int dtype, uint64_t length, PyObject *owner, const char *bytes)
{
    int added = add_leaf(walk, kind, dtype, 1, owner, bytes);
    return added == 1 ? add_size(walk, length) : added;
}

static int walk_text(Walk *walk, PyObject *text)
{
    Py_ssize_t length;
    const char *bytes = PyUnicode_AsUTF8AndSize(text, &length);
    if (bytes != NULL)
        return add_bytes(walk, LEAF_STR, DTYPE_U1, (uint64_t)length, Py_NewRef(text), bytes);
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
        return -1;
    PyErr_Clear();
    PyObject *encoded = PyUnicode_AsEncodedString(text, "utf-8", "surrogatepass");
    if (encoded == NULL)
        return -1;
    return add_bytes(walk, LEAF_STR, DTYPE_U1, (uint64_t)PyBytes_GET_SIZE(encoded), encoded, PyBytes_AS_STRING(encoded));
}

/* Takes over `array`, whose dtype is one of numpy's own; `dtype` is the wire's. */
static int walk_array(Walk *walk, int kind, int dtype, PyObject *array)
{
    int dimensions = PyArray_NDIM((PyArrayObject *)array);
    if (dimensions > DIMENSION_LIMIT) {
        Py_DECREF(array);
        return 0;
    }
    int added = add_leaf(walk, kind, dtype, dimensions, array, NULL);
    for (int index = 0; added == 1 && index < dimensions; index++)
        added = add_size(walk, (uint64_t)PyArray_DIM((PyArrayObject *)array, index));
    return added;
}

/* A list of numbers of one type as one leaf; 0 for any other list. */
static int walk_numbers(Walk *walk, PyObject *list, int *is_leaf)
{
    Py_ssize_t length = PyList_GET_SIZE(list);
    *is_leaf = 0;
    if (!length)
        return 1;
    PyTypeObject *type = Py_TYPE(PyList_GET_ITEM(list, 0));
    int dtype = type == &PyFloat_Type  ? DTYPE_F8
                : type == &PyLong_Type ? DTYPE_I8
                : type == &PyBool_Type ? DTYPE_B1
                                       : -1;
    if (dtype < 0)
        return 1;
    Py_ssize_t element = dtype == DTYPE_B1 ? 1 : 8;
    if (length > (Py_ssize_t)(PAYLOAD_LIMIT / 8))
        return 0;
    for (Py_ssize_t index = 1; index < length; index++)
        if (Py_TYPE(PyList_GET_ITEM(list, index)) != type)
            return 1;
    PyObject *packed = PyBytes_FromStringAndSize(NULL, length * element);
    if (packed == NULL)
        return -1;
    char *to = PyBytes_AS_STRING(packed);
    for (Py_ssize_t index = 0; index < length; index++) {
        PyObject *item = PyList_GET_ITEM(list, index);
        if (dtype == DTYPE_F8) {
            double number = PyFloat_AS_DOUBLE(item);
            memcpy(to + index * 8, &number, 8);
        }
        else if (dtype == DTYPE_B1)
            to[index] = item == Py_True;
        else {
            int overflow;
            int64_t number = PyLong_AsLongLongAndOverflow(item, &overflow);
            if (overflow) {
                Py_DECREF(packed);
                return 1;
            }
            memcpy(to + index * 8, &number, 8);
        }
    }
    *is_leaf = 1;
    return add_bytes(walk, LEAF_LIST, dtype, (uint64_t)length, packed, to);
}

static int walk_value(TreeEncoder *self, Walk *walk, PyObject *value, int depth, int converted);

/* The entries of a list or tuple; they are held, because a conversion may change the list. */
static int walk_items(TreeEncoder *self, Walk *walk, PyObject *sequence, int type, int depth)
{
    if (PySequence_Fast_GET_SIZE(sequence) > NODE_LIMIT)
        return 0;
    PyObject *items = type == NODE_LIST ? PyList_AsTuple(sequence) : Py_NewRef(sequence);
    if (items == NULL)
        return -1;
    int walked = 1;
    metadata_open(&walk->metadata, type);
    for (Py_ssize_t index = 0; walked == 1 && index < PyTuple_GET_SIZE(items); index++)
        walked = walk_value(self, walk, PyTuple_GET_ITEM(items, index), depth + 1, 0);
    metadata_close(&walk->metadata, type);
    Py_DECREF(items);
    return walked;
}

static int walk_key(Walk *walk, PyObject *key)
{
    if (PyUnicode_CheckExact(key)) {
        Py_ssize_t bytes;
        const char *text = PyUnicode_AsUTF8AndSize(key, &bytes);
        if (text == NULL) {
            PyErr_Clear(); /* a surrogate */
            return 0;
        }
        metadata_text_key(&walk->metadata, text, (size_t)bytes);
        return 1;
    }
    int overflow;
    int64_t number = PyLong_AsLongLongAndOverflow(key, &overflow);
    if (overflow)
        return 0;
    metadata_int_key(&walk->metadata, number);
    return 1;
}

static int walk_dict(TreeEncoder *self, Walk *walk, PyObject *dict, int depth)
{
    /* Held, because a conversion may change the dict. */
    PyObject *few[2 * FEW_ENTRIES], **entries = few, *key, *value;
    Py_ssize_t position = 0, count = 0, size = PyDict_GET_SIZE(dict);
    if (size > NODE_LIMIT)
        return 0;
    if (size > FEW_ENTRIES && (entries = PyMem_Calloc((size_t)size, 2 * sizeof *entries)) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int walked = 1;
    while (count < size && PyDict_Next(dict, &position, &key, &value)) {
        entries[2 * count] = Py_NewRef(key);
        entries[2 * count++ + 1] = Py_NewRef(value);
    }
    metadata_open(&walk->metadata, NODE_DICT);
    for (Py_ssize_t index = 0; walked == 1 && index < count; index++)
        if ((walked = walk_key(walk, entries[2 * index])) == 1)
            walked = walk_value(self, walk, entries[2 * index + 1], depth + 1, 0);
    metadata_close(&walk->metadata, NODE_DICT);
    for (Py_ssize_t index = 0; index < 2 * count; index++)
        Py_DECREF(entries[index]);
    if (entries != few)
        PyMem_Free(entries);
    return walked;
}

static int has_plain_keys(PyObject *dict)
{
    PyObject *key;
    for (Py_ssize_t position = 0; PyDict_Next(dict, &position, &key, NULL);)
        if (!PyUnicode_CheckExact(key) && !PyLong_CheckExact(key))
            return 0;
    return 1;
}

/* A leaf in GPU memory: (dtype, shape). */
static int walk_device(Walk *walk, PyObject *described)
{
    if (!PyTuple_CheckExact(described) || PyTuple_GET_SIZE(described) != 2 ||
        !PyUnicode_CheckExact(PyTuple_GET_ITEM(described, 0)) || !PyTuple_CheckExact(PyTuple_GET_ITEM(described, 1))) {
        PyErr_SetString(PyExc_TypeError, "an array in GPU memory is (dtype, shape)");
        return -1;
    }
    PyObject *shape = PyTuple_GET_ITEM(described, 1);
    Py_ssize_t dimensions = PyTuple_GET_SIZE(shape);
    int dtype = 0;
    while (dtype < DTYPES &&
           PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(described, 0), dtype_name(dtype)) != 0)
        dtype++;
    if (dtype == DTYPES || dimensions > DIMENSION_LIMIT)
        return 0;
    int added = add_leaf(walk, LEAF_DEVICE, dtype, (int)dimensions, Py_NewRef(described), "");
    for (Py_ssize_t index = 0; added == 1 && index < dimensions; index++) {
        uint64_t size;
        added = to_word(PyTuple_GET_ITEM(shape, index), &size) < 0 ? -1 : add_size(walk, size);
    }
    walk->has_device = 1;
    return added;
}

/* A value that is carried as another one. */
static int walk_other(TreeEncoder *self, Walk *walk, PyObject *value, int depth)
{
    PyObject *carried = PyObject_CallOneArg(self->convert, value), *base;
    if (carried == NULL)
        return -1;
    if (!PyTuple_CheckExact(carried) || PyTuple_GET_SIZE(carried) != 2 ||
        !PyLong_CheckExact(PyTuple_GET_ITEM(carried, 0))) {
        PyErr_SetString(PyExc_TypeError, "a conversion gives (code, value)");
        Py_DECREF(carried);
        return -1;
    }
    long code = PyLong_AsLong(PyTuple_GET_ITEM(carried, 0));
    base = Py_NewRef(PyTuple_GET_ITEM(carried, 1));
    Py_DECREF(carried);
    int walked = code == -1 && PyErr_Occurred() ? -1 : 0;
    if (walked < 0)
        ;
    else if (code == CARRIED_AS)
        walked = walk_value(self, walk, base, depth, 1);
    else if (code == CARRIED_AS_LONG && PyBytes_CheckExact(base)) {
        metadata_long(&walk->metadata, (const uint8_t *)PyBytes_AS_STRING(base), (size_t)PyBytes_GET_SIZE(base));
        walked = 1;
    }
    else if (code == CARRIED_ON_DEVICE)
        walked = walk_device(walk, base);
    else if (PyArray_CheckExact(base) && PyArray_TYPE((PyArrayObject *)base) == NPY_UINT16) {
        int kind = code == CARRIED_AS_BFLOAT16 ? LEAF_ARRAY : LEAF_SCALAR;
        walked = walk_array(walk, kind, DTYPE_BF2, Py_NewRef(base));
    }
    Py_DECREF(base);
    return walked;
}

static int walk_value(TreeEncoder *self, Walk *walk, PyObject *value, int depth, int converted)
{
    PyTypeObject *type = Py_TYPE(value);
    if (!converted && (depth > DEPTH_LIMIT || ++walk->nodes > NODE_LIMIT))
        return 0;
    if (type == &PyArray_Type) {
        int dtype = dtype_of(PyArray_DESCR((PyArrayObject *)value));
        if (dtype >= 0)
            return walk_array(walk, LEAF_ARRAY, dtype, Py_NewRef(value));
    }
    else if (type == &PyFloat_Type) {
        double number = PyFloat_AS_DOUBLE(value);
        uint64_t word;
        memcpy(&word, &number, sizeof word);
        return add_number(walk, LEAF_FLOAT, DTYPE_F8, word);
    }
    else if (type == &PyLong_Type) {
        int overflow;
        int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (!overflow)
            return add_number(walk, LEAF_INT, DTYPE_I8, (uint64_t)number);
    }
    else if (type == &PyBool_Type)
        return add_number(walk, LEAF_BOOL, DTYPE_I8, value == Py_True);
    else if (type == &PyUnicode_Type)
        return walk_text(walk, value);
    else if (type == &PyBytes_Type)
        return add_bytes(walk, LEAF_BYTES, DTYPE_U1, (uint64_t)PyBytes_GET_SIZE(value), Py_NewRef(value),
                         PyBytes_AS_STRING(value));
    else if (value == Py_None) {
        metadata_none(&walk->metadata);
        return 1;
    }
    else if (type == &PyDict_Type) {
        if (has_plain_keys(value))
            return walk_dict(self, walk, value, depth);
    }
    else if (type == &PyTuple_Type)
        return walk_items(self, walk, value, NODE_TUPLE, depth);
    else if (type == &PyList_Type) {
        int is_leaf, walked = walk_numbers(walk, value, &is_leaf);
        return is_leaf || walked != 1 ? walked : walk_items(self, walk, value, NODE_LIST, depth);
    }
    else if (PyArray_IsScalar(value, Generic)) {
        PyObject *array = PyArray_FromScalar(value, NULL);
        if (array == NULL)
            return -1;
        int dtype = PyArray_CheckExact(array) ? dtype_of(PyArray_DESCR((PyArrayObject *)array)) : -1;
        if (dtype >= 0)
            return walk_array(walk, LEAF_SCALAR, dtype, array);
        Py_DECREF(array);
    }
    return converted ? 0 : walk_other(self, walk, value, depth);
}

static int describe(TreeEncoder *self, Walk *walk, PyObject *tree)
{
    if (walk->buffer == NULL && (walk->buffer = PyMem_Malloc(METADATA_LIMIT)) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    metadata_begin(&walk->metadata, walk->buffer, METADATA_LIMIT);
    int walked = walk_value(self, walk, tree, 0, 0);
    return walked == 1 ? metadata_end(&walk->metadata) : walked;
}

static void release(Walk *walk)
{
    while (walk->leaves_count) {
        Source *source = &walk->sources[--walk->leaves_count];
        Py_XDECREF(source->given);
        Py_DECREF(source->owner);
    }
    walk->sizes_count = walk->numbers_count = 0;
    walk->nodes = walk->has_device = 0;
}

/* Copying */

static int is_contiguous(const Source *source)
{
    return source->bytes != NULL || PyArray_IS_C_CONTIGUOUS((PyArrayObject *)source->owner);
}

static const char *bytes_of(const Source *source)
{
    return source->bytes != NULL ? source->bytes : PyArray_BYTES((PyArrayObject *)source->owner);
}

/* Whether a flattened array still has the dtype and size of its leaf: a conversion or another thread may have changed it
 * since. */
static int still_fits(const Walk *walk, size_t index)
{
    const Source *source = &walk->sources[index];
    if (source->bytes != NULL)
        return 1;
    PyArrayObject *array = (PyArrayObject *)source->owner;
    int dtype = walk->leaves[index].dtype;
    return dtype_of(PyArray_DESCR(array)) == (dtype == DTYPE_BF2 ? DTYPE_U2 : dtype) &&
           (uint64_t)PyArray_SIZE(array) * dtype_bytes(dtype) == walk->places[index].size;
}

/* Whether the array, whose items have so many bytes, has bytes between these. */
static int lies_within(PyArrayObject *array, uint64_t item_bytes, const char *begin, const char *end)
{
    const char *first = PyArray_BYTES(array), *last = first + item_bytes;
    for (int index = 0; index < PyArray_NDIM(array); index++) {
        npy_intp span = PyArray_STRIDE(array, index) * (PyArray_DIM(array, index) - 1);
        if (PyArray_DIM(array, index) == 0)
            return 0;
        first += span < 0 ? span : 0;
        last += span > 0 ? span : 0;
    }
    return first < end && last > begin;
}

/* An array that is memory of the payload is copied to its place as it was before the first write: a private copy, unless
 * it lies there already. */
static int separate(Walk *walk, const char *payload, uint64_t payload_bytes)
{
    for (size_t index = 0; index < walk->leaves_count; index++) {
        Source *source = &walk->sources[index];
        if (source->bytes != NULL)
            continue;
        PyArrayObject *array = (PyArrayObject *)source->owner;
        uint64_t item_bytes = dtype_bytes(walk->leaves[index].dtype);
        if (!lies_within(array, item_bytes, payload, payload + payload_bytes) ||
            (PyArray_IS_C_CONTIGUOUS(array) && PyArray_BYTES(array) == payload + walk->places[index].offset))
            continue;
        PyObject *copy = PyArray_NewCopy(array, NPY_CORDER);
        if (copy == NULL)
            return -1;
        source->given = source->owner;
        source->owner = copy;
    }
    return 1;
}

/* Copy an array that is not contiguous, with numpy. */
static int copy_strided(const Place *place, PyArrayObject *array, char *payload)
{
    PyObject *to = PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)Py_NewRef(PyArray_DESCR(array)),
                                        PyArray_NDIM(array), PyArray_DIMS(array), NULL, payload + place->offset,
                                        NPY_ARRAY_WRITEABLE, NULL);
    int failed = to == NULL ? -1 : PyArray_CopyObject((PyArrayObject *)to, (PyObject *)array);
    Py_XDECREF(to);
    return failed;
}

/* The sizes and numbers, at the front. */
static void copy_words(const Walk *walk, char *payload)
{
    if (walk->sizes_count)
        memcpy(payload, walk->sizes, walk->sizes_count * 8);
    if (walk->numbers_count)
        memcpy(payload + walk->sizes_count * 8, walk->numbers, walk->numbers_count * 8);
}

static void copy_whole(const Walk *walk, char *payload)
{
    copy_words(walk, payload);
    for (size_t index = 0; index < walk->leaves_count; index++) {
        const Place *place = &walk->places[index];
        const char *from = bytes_of(&walk->sources[index]);
        if (walk->leaves[index].kind != LEAF_DEVICE && place->size && is_contiguous(&walk->sources[index]) &&
            from != payload + place->offset)
            memcpy(payload + place->offset, from, place->size);
    }
}

/* As `copy_whole`, in pieces, with the byte count after each one until an array is left for `copy_strided`. The line
 * lies in the payload's segment and is mapped while the payload is. */
static void copy_in_pieces(const Walk *walk, char *payload, CounterLine *line)
{
    int in_order = 1;
    copy_words(walk, payload);
    for (size_t index = 0; index < walk->leaves_count; index++) {
        const Place *place = &walk->places[index];
        if (walk->leaves[index].kind == LEAF_DEVICE)
            continue;
        if (!is_contiguous(&walk->sources[index])) {
            in_order = 0;
            continue;
        }
        const char *from = bytes_of(&walk->sources[index]);
        char *to = payload + place->offset;
        size_t piece = 0;
        for (size_t done = 0; done < place->size; done += piece) {
            piece = place->size - done > CUT_THROUGH_PIECE ? CUT_THROUGH_PIECE : place->size - done;
            if (from != to)
                memcpy(to + done, from + done, piece);
            if (in_order)
                announce_progress(line, place->offset + done + piece);
        }
    }
}

static int copy(const Walk *walk, char *payload, uint64_t payload_bytes, CounterLine *line)
{
    for (size_t index = 0; index < walk->leaves_count; index++)
        if (!still_fits(walk, index))
            return OTHER;
    if (payload_bytes < RELEASING_BYTES)
        copy_whole(walk, payload);
    else {
        Py_BEGIN_ALLOW_THREADS
        if (line != NULL)
            copy_in_pieces(walk, payload, line);
        else
            copy_whole(walk, payload);
        Py_END_ALLOW_THREADS
    }
    for (size_t index = 0; index < walk->leaves_count; index++) {
        if (is_contiguous(&walk->sources[index]))
            continue;
        if (!still_fits(walk, index))
            return OTHER;
        if (copy_strided(&walk->places[index], (PyArrayObject *)walk->sources[index].owner, payload) < 0)
            return -1;
    }
    return WRITTEN;
}

/* The writable bytes of a one-dimensional uint8 array that the memory has under this name, and the array. */
static char *memory_bytes(PyObject *memory, PyObject *name, Py_ssize_t *room, PyObject **array)
{
    if ((*array = PyObject_GetAttr(memory, name)) == NULL)
        return NULL;
    char *bytes = payload_bytes_of(*array, 0);
    if (bytes != NULL && !PyArray_ISWRITEABLE((PyArrayObject *)*array)) {
        PyErr_SetString(PyExc_ValueError, "this payload may only be read");
        bytes = NULL;
    }
    if (bytes == NULL)
        Py_CLEAR(*array);
    else
        *room = PyArray_DIM((PyArrayObject *)*array, 0);
    return bytes;
}

/* Write the metadata, unless the slot has it. */
static int write_metadata(TreeEncoder *self, const Known *known, PyObject *memory)
{
    PyObject *written_name = name_for((PyObject *)self, WRITTEN_SCHEMA_NAME), *array;
    PyObject *metadata_name = name_for((PyObject *)self, METADATA_NAME);
    PyObject *written = PyObject_GetAttr(memory, written_name);
    if (written == NULL)
        return -1;
    uint64_t schema_written;
    int same = PyLong_CheckExact(written) && to_word(written, &schema_written) == 0 && schema_written == known->schema;
    Py_DECREF(written);
    PyErr_Clear(); /* of a number that is no schema's */
    if (same)
        return WRITTEN;
    Py_ssize_t room, bytes = PyBytes_GET_SIZE(known->metadata);
    if (memory_bytes(memory, metadata_name, &room, &array) == NULL)
        return -1;
    Py_DECREF(array);
    if (bytes > room)
        return TOO_LARGE;
    /* An interrupt may come between the bytes and the note. */
    if (PyObject_SetAttr(memory, written_name, Py_None) < 0)
        return -1;
    char *metadata = memory_bytes(memory, metadata_name, &room, &array);
    if (metadata == NULL)
        return -1;
    if (bytes <= room)
        memcpy(metadata, PyBytes_AS_STRING(known->metadata), (size_t)bytes);
    Py_DECREF(array);
    PyObject *schema = PyLong_FromUnsignedLongLong(known->schema);
    int result = schema == NULL ? -1 : bytes > room ? TOO_LARGE : WRITTEN;
    if (result == WRITTEN && PyObject_SetAttr(memory, written_name, schema) < 0)
        result = -1;
    Py_XDECREF(schema);
    return result;
}

/* Wake the engine for a long write: it runs Python code, so before the first word is written. */
static int wake_for(TreeEncoder *self, PyObject *memory, uint64_t payload_bytes)
{
    if (payload_bytes < WAKE_BYTES)
        return 1;
    PyObject *wake = PyObject_GetAttr(memory, name_for((PyObject *)self, WAKE_NAME)), *woken = NULL;
    if (wake != NULL)
        woken = wake == Py_None ? Py_NewRef(wake) : PyObject_CallNoArgs(wake);
    Py_XDECREF(wake);
    Py_XDECREF(woken);
    return woken == NULL ? -1 : 1;
}

static int is_expected(const Known *known, const Walk *walk)
{
    for (size_t index = 0; known->expected != NULL && index < walk->sizes_count; index++)
        if (known->expected[index] >= 0 && (uint64_t)known->expected[index] != walk->sizes[index])
            return 0;
    return 1;
}

/* Write a walked tree of a known structure, whose metadata the caller holds: Python code that runs may forget it. */
static int write_known(TreeEncoder *self, Walk *walk, const Known *known, PyObject *memory, PyObject *slots,
                       uint64_t slot, Encoded *encoded)
{
    /* A conversion may have replaced the payload, and `wake` may: it is fetched after the last Python code. */
    CounterLine *line = NULL;
    PyObject *array;
    Py_ssize_t room;
    char *payload = memory_bytes(memory, name_for((PyObject *)self, PAYLOAD_NAME), &room, &array);
    if (payload == NULL)
        return -1;
    int is_too_large = encoded->payload_bytes > (uint64_t)room;
    Py_DECREF(array);
    if (is_too_large)
        return TOO_LARGE;
    int result = write_metadata(self, known, memory);
    int is_announced = slots != Py_None && encoded->payload_bytes >= CUT_THROUGH_BYTES;
    if (result == WRITTEN && is_announced)
        result = wake_for(self, memory, encoded->payload_bytes);
    if (result != WRITTEN || (payload = memory_bytes(memory, name_for((PyObject *)self, PAYLOAD_NAME), &room, &array)) == NULL)
        return result != WRITTEN ? result : -1;
    if (encoded->payload_bytes > (uint64_t)room)
        result = TOO_LARGE;
    else
        result = separate(walk, payload, encoded->payload_bytes);
    if (result == WRITTEN && is_announced) {
        Slots *open = writable_slots(slots);
        if (open == NULL)
            result = -1;
        else {
            line = open->ring.line;
            encoded->write_id = announce_write(line, slot);
        }
    }
    if (result == WRITTEN)
        result = copy(walk, payload, encoded->payload_bytes, line);
    Py_DECREF(array);
    return result;
}

static int write_into(TreeEncoder *self, Walk *walk, PyObject *memory, PyObject *slots, uint64_t slot, int examined,
                      Encoded *encoded)
{
    int index = find(self, walk->metadata.bytes, walk->metadata.count);
    if (index < 0)
        return UNKNOWN;
    Known known = self->known[index];
    if (!examined && !is_expected(&known, walk))
        return UNEXPECTED;
    if (!lay_out(walk->leaves, walk->leaves_count, walk->sizes, walk->sizes_count, walk->numbers_count, walk->places,
                 &encoded->payload_bytes))
        return OTHER;
    encoded->schema = known.schema;
    encoded->metadata_bytes = walk->metadata.count;
    encoded->write_id = 0;
    Py_INCREF(known.metadata);
    int result = write_known(self, walk, &known, memory, slots, slot, encoded);
    Py_DECREF(known.metadata);
    return result;
}

int encoder_put(PyObject *object, PyObject *tree, PyObject *memory, PyObject *slots, uint64_t slot, int examined,
                Encoded *encoded, PyObject **metadata)
{
    TreeEncoder *self = (TreeEncoder *)object;
    /* A conversion may encode another tree meanwhile. */
    Walk other = {0}, *walk = self->busy ? &other : &self->walk;
    self->busy++;
    int result = describe(self, walk, tree);
    if (result == 1 && walk->has_device && metadata == NULL)
        result = OTHER;
    if (result == 1)
        result = write_into(self, walk, memory, slots, slot, examined, encoded);
    if (metadata != NULL && (result == UNKNOWN || result == UNEXPECTED) &&
        (*metadata = PyBytes_FromStringAndSize((const char *)walk->metadata.bytes, (Py_ssize_t)walk->metadata.count)) ==
            NULL)
        result = -1;
    release(walk);
    self->busy--;
    if (walk == &other)
        free_walk(&other);
    return result;
}

/* Of a structure with more leaves or sizes, the first ones. */
#define TOUCHED_ITEMS 256

void encoder_touch(PyObject *object)
{
    const TreeEncoder *self = (const TreeEncoder *)object;
    const Walk *walk = &self->walk;
    touch(self, sizeof *self);
    if (self->latest < self->known_count) {
        PyObject *metadata = self->known[self->latest].metadata;
        touch(PyBytes_AS_STRING(metadata), (size_t)PyBytes_GET_SIZE(metadata));
    }
    /* The room that it has, not the counts: those of the next tree may be larger. */
    size_t leaves = walk->leaves_room < TOUCHED_ITEMS ? walk->leaves_room : TOUCHED_ITEMS;
    touch(walk->leaves, leaves * sizeof *walk->leaves);
    touch(walk->sources, leaves * sizeof *walk->sources);
    touch(walk->places, leaves * sizeof *walk->places);
    touch(walk->sizes, (walk->sizes_room < TOUCHED_ITEMS ? walk->sizes_room : TOUCHED_ITEMS) * sizeof *walk->sizes);
}

int is_encoder(PyObject *object) { return is_of_type(object, ENCODER_TYPE); }

/* describe(tree): the metadata of its structure, or None if it cannot be carried */
static PyObject *encoder_describe(PyObject *object, PyObject *tree)
{
    TreeEncoder *self = (TreeEncoder *)object;
    Walk walk = {0};
    PyObject *metadata = NULL;
    int described = describe(self, &walk, tree);
    if (described == 1)
        metadata = PyBytes_FromStringAndSize((const char *)walk.metadata.bytes, (Py_ssize_t)walk.metadata.count);
    else if (described == 0)
        metadata = Py_NewRef(Py_None);
    release(&walk);
    free_walk(&walk);
    return metadata;
}

/* encode_into(tree, memory, slots, slot, examined) */
static PyObject *encoder_encode_into(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    uint64_t slot = 0;
    Encoded encoded;
    PyObject *metadata = NULL;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "encode_into(tree, memory, slots, slot, examined)");
        return NULL;
    }
    if (args[2] != Py_None && !is_slots(args[2])) {
        PyErr_SetString(PyExc_TypeError, "expected slots, or None");
        return NULL;
    }
    if (args[2] != Py_None && (to_word(args[3], &slot) < 0 || slot >= MAX_SLOTS)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "no such slot");
        return NULL;
    }
    int examined = PyObject_IsTrue(args[4]);
    if (examined < 0)
        return NULL;
    switch (encoder_put(object, args[0], args[1], args[2], slot, examined, &encoded, &metadata)) {
    case OTHER:
        Py_RETURN_NONE;
    case WRITTEN:
        return Py_BuildValue("KKKK", encoded.schema, encoded.metadata_bytes, encoded.payload_bytes, encoded.write_id);
    case TOO_LARGE:
        return Py_BuildValue("KK", encoded.metadata_bytes, encoded.payload_bytes);
    case UNKNOWN:
    case UNEXPECTED:
        return metadata;
    default:
        return NULL;
    }
}

static PyMethodDef encoder_methods[] = {
    {"encode_into", (PyCFunction)(void (*)(void))encoder_encode_into, METH_FASTCALL,
     "Write a tree: (schema, metadata bytes, payload bytes, write id), or (metadata bytes, payload bytes) that it needs, "
     "the metadata of a structure that is new or of other sizes than declared, or None if it cannot be carried."},
    {"describe", encoder_describe, METH_O, "The metadata of a tree's structure; None if it cannot be carried."},
    {"remember", (PyCFunction)(void (*)(void))encoder_remember, METH_FASTCALL, "Write trees of this structure."},
    {"forget", encoder_forget, METH_NOARGS, "Forget every structure."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot encoder_slots[] = {
    {Py_tp_doc, "Describes and encodes trees."}, {Py_tp_new, encoder_new}, {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_methods, encoder_methods},            {0, NULL},
};

PyType_Spec encoder_spec = {"shmserve._core.TreeEncoder", sizeof(TreeEncoder), 0, TYPE_FLAGS, encoder_slots};
