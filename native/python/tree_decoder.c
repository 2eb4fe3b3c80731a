/* Decoder of trees: lays a payload out by its sizes, and unflattens the tree.
 *
 * The sizes are the other side's words, which may change meanwhile: they are copied once, checked against the number of
 * bytes that the slot's head has, and only the copy is used. shmserve/pure/tree_decoder.py does the same in Python.
 */

#include "tree_decoder.h"
#include "cut_through.h"
#include "dtypes.h"
#include "slots.h"
#include "state.h"

#include <structmember.h>

enum { FEW_SIZES = 64, FEW_LEAVES = 32 };

typedef struct {
    PyObject_HEAD
    Schema schema;
    PyObject **keys;  /* of each node in a dict: its key */
    PyObject **longs; /* of each NODE_LONG: its number */
    PyArray_Descr *descrs[DTYPES];
    unsigned long long last_used;
    Py_ssize_t arrays_count;
    char is_complete;
} TreeDecoder;

/* The order in which decoders are used, for those that remember a few. */
static unsigned long long uses;

/* The layout of one payload. */
typedef struct {
    uint64_t few_sizes[FEW_SIZES], *sizes;
    Place few_places[FEW_LEAVES], *places;
    PyObject *few_arrays[FEW_LEAVES], **arrays; /* of each leaf that is an array */
} Layout;

/* Construction */

static PyObject *key_of(const Node *node, const char *metadata)
{
    if (node->key_type == KEY_TEXT)
        return PyUnicode_DecodeUTF8(metadata + node->key_at, node->key_bytes, NULL);
    return PyLong_FromLongLong(node->key);
}

static PyObject *long_of(const Node *node, const char *metadata)
{
    return PyObject_CallMethod((PyObject *)&PyLong_Type, "from_bytes", "y#s", metadata + node->at,
                               (Py_ssize_t)node->bytes, "little");
}

/* int.from_bytes takes its sign as a keyword alone. */
static PyObject *signed_long(const Node *node, const char *metadata)
{
    PyObject *number = long_of(node, metadata);
    if (number == NULL || !(metadata[node->at + node->bytes - 1] & 0x80))
        return number;
    PyObject *one = PyLong_FromLong(1), *bits = PyLong_FromUnsignedLong(8 * node->bytes), *least = NULL, *result = NULL;
    if (one != NULL && bits != NULL)
        least = PyNumber_Lshift(one, bits);
    if (least != NULL)
        result = PyNumber_Subtract(number, least);
    Py_XDECREF(least);
    Py_XDECREF(bits);
    Py_XDECREF(one);
    Py_DECREF(number);
    return result;
}

static int fill(TreeDecoder *self, const char *metadata, Py_ssize_t bytes)
{
    if (!schema_read(&self->schema, (const uint8_t *)metadata, (size_t)bytes)) {
        PyErr_SetString(PyExc_ValueError, "not the metadata of a tree");
        return -1;
    }
    uint32_t count = self->schema.nodes_count;
    self->keys = PyMem_Calloc(count, sizeof *self->keys);
    self->longs = PyMem_Calloc(count, sizeof *self->longs);
    if (self->keys == NULL || self->longs == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->is_complete = 1;
    for (uint32_t index = 0; index < count; index++) {
        Node *node = &self->schema.nodes[index];
        if (node->key_type != KEY_NONE && (self->keys[index] = key_of(node, metadata)) == NULL)
            return -1;
        if (node->type == NODE_LONG && (self->longs[index] = signed_long(node, metadata)) == NULL)
            return -1;
        if (node->type != NODE_LEAF)
            continue;
        int dtype = node->leaf.dtype;
        if (dtype == DTYPE_BF2 || node->leaf.kind == LEAF_DEVICE)
            self->is_complete = 0;
        if (self->descrs[dtype] == NULL && (self->descrs[dtype] = descr_of(dtype)) == NULL)
            return -1;
        self->arrays_count += node->leaf.kind == LEAF_ARRAY;
    }
    return 0;
}

/* TreeDecoder(metadata) */
static PyObject *decoder_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *metadata;
    TreeDecoder *self = new_instance(type, keywords);
    if (self != NULL && (!PyArg_ParseTuple(args, "S", &metadata) ||
                         fill(self, PyBytes_AS_STRING(metadata), PyBytes_GET_SIZE(metadata)) < 0))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void decoder_dealloc(PyObject *object)
{
    TreeDecoder *self = (TreeDecoder *)object;
    for (uint32_t index = 0; index < self->schema.nodes_count; index++) {
        if (self->keys != NULL)
            Py_XDECREF(self->keys[index]);
        if (self->longs != NULL)
            Py_XDECREF(self->longs[index]);
    }
    for (int dtype = 0; dtype < DTYPES; dtype++)
        Py_XDECREF(self->descrs[dtype]);
    PyMem_Free(self->keys);
    PyMem_Free(self->longs);
    schema_free(&self->schema);
    free_instance(object);
}

/* Layout */

static void forget_layout(TreeDecoder *self, Layout *layout)
{
    for (uint32_t index = 0; layout->arrays != NULL && index < self->schema.leaves_count; index++)
        Py_XDECREF(layout->arrays[index]);
    if (layout->sizes != layout->few_sizes)
        PyMem_Free(layout->sizes);
    if (layout->places != layout->few_places)
        PyMem_Free(layout->places);
    if (layout->arrays != layout->few_arrays)
        PyMem_Free(layout->arrays);
}

/* Lay out a payload of that many bytes: the payload's bytes, or NULL with an exception, and then there is nothing to forget.
 */
static const char *lay_payload_out(TreeDecoder *self, PyObject *payload, uint64_t payload_bytes, Layout *layout)
{
    const Schema *schema = &self->schema;
    uint64_t described = 0;
    if (payload_bytes > PAYLOAD_LIMIT) {
        PyErr_SetString(PyExc_ValueError, "a payload of more bytes than a slot can have");
        return NULL;
    }
    const char *bytes = payload_bytes_of(payload, (Py_ssize_t)payload_bytes);
    if (bytes == NULL)
        return NULL;
    layout->sizes = layout->few_sizes;
    layout->places = layout->few_places;
    layout->arrays = layout->few_arrays;
    if (schema->sizes_count > FEW_SIZES)
        layout->sizes = PyMem_Calloc(schema->sizes_count, sizeof *layout->sizes);
    if (schema->leaves_count > FEW_LEAVES) {
        layout->places = PyMem_Calloc(schema->leaves_count, sizeof *layout->places);
        layout->arrays = PyMem_Calloc(schema->leaves_count, sizeof *layout->arrays);
    }
    else
        memset(layout->few_arrays, 0, schema->leaves_count * sizeof *layout->arrays);
    if (layout->sizes == NULL || layout->places == NULL || layout->arrays == NULL)
        PyErr_NoMemory();
    else if (payload_bytes / 8 >= schema->sizes_count) {
        memcpy(layout->sizes, bytes, schema->sizes_count * 8);
        if (!lay_out(schema->leaves, schema->leaves_count, layout->sizes, schema->sizes_count, schema->numbers_count,
                     layout->places, &described) ||
            described != payload_bytes)
            PyErr_Format(PyExc_ValueError, "the sizes do not describe a payload of %llu bytes",
                         (unsigned long long)payload_bytes);
        else {
            self->last_used = ++uses;
            return bytes;
        }
    }
    else
        PyErr_Format(PyExc_ValueError, "a payload of %llu bytes is shorter than its sizes",
                     (unsigned long long)payload_bytes);
    forget_layout(self, layout);
    return NULL;
}

/* The dimensions of an array leaf whose sizes begin here. */
static const npy_intp *dimensions_of(const Leaf *leaf, const uint64_t *sizes, npy_intp *dimensions)
{
    for (int index = 0; index < leaf->dimensions; index++)
        dimensions[index] = (npy_intp)sizes[index];
    return dimensions;
}

/* Unflattening */

typedef struct {
    TreeDecoder *decoder;
    Layout *layout;
    const char *bytes;
    uint32_t node, leaf, number, size;
} Builder;

static PyObject *number_at(Builder *builder, int kind)
{
    int64_t word;
    memcpy(&word, builder->bytes + 8 * (size_t)(builder->decoder->schema.sizes_count + builder->number++), sizeof word);
    if (kind == LEAF_INT)
        return PyLong_FromLongLong(word);
    if (kind == LEAF_BOOL)
        return PyBool_FromLong(word != 0);
    double number;
    memcpy(&number, &word, sizeof number);
    return PyFloat_FromDouble(number);
}

static PyObject *text_of(const char *from, Py_ssize_t bytes)
{
    /* Of a private copy, because it is read more than once. */
    PyObject *copy = PyBytes_FromStringAndSize(from, bytes), *text = NULL;
    if (copy != NULL)
        text = PyUnicode_DecodeUTF8(PyBytes_AS_STRING(copy), bytes, "surrogatepass");
    Py_XDECREF(copy);
    return text;
}

static PyObject *list_of(const char *from, Py_ssize_t length, int dtype)
{
    PyObject *list = PyList_New(length);
    for (Py_ssize_t index = 0; list != NULL && index < length; index++) {
        PyObject *item;
        if (dtype == DTYPE_B1)
            item = PyBool_FromLong(from[index] != 0);
        else if (dtype == DTYPE_I8) {
            int64_t number;
            memcpy(&number, from + 8 * index, 8);
            item = PyLong_FromLongLong(number);
        }
        else {
            double number;
            memcpy(&number, from + 8 * index, 8);
            item = PyFloat_FromDouble(number);
        }
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, index, item);
    }
    return list;
}

static PyObject *leaf_value(Builder *builder, const Leaf *leaf)
{
    if (is_number(leaf->kind))
        return number_at(builder, leaf->kind);
    uint32_t index = builder->leaf++;
    const Place *place = &builder->layout->places[index];
    const char *from = builder->bytes + place->offset;
    Py_ssize_t length = leaf->dimensions ? (Py_ssize_t)builder->layout->sizes[builder->size] : 0;
    builder->size += leaf->dimensions;
    PyObject *array = builder->layout->arrays[index];
    switch (leaf->kind) {
    case LEAF_ARRAY:
        builder->layout->arrays[index] = NULL;
        return array;
    case LEAF_SCALAR: {
        char item[16];
        memcpy(item, from, place->size);
        return PyArray_Scalar(item, builder->decoder->descrs[leaf->dtype], NULL);
    }
    case LEAF_STR:
        return text_of(from, length);
    case LEAF_BYTES:
        return PyBytes_FromStringAndSize(from, length);
    default:
        return list_of(from, length, leaf->dtype);
    }
}

static PyObject *build(Builder *builder)
{
    TreeDecoder *self = builder->decoder;
    const Node *node = &self->schema.nodes[builder->node++];
    PyObject *made, *value;
    switch (node->type) {
    case NODE_NONE:
        return Py_NewRef(Py_None);
    case NODE_LONG:
        return Py_NewRef(self->longs[node - self->schema.nodes]);
    case NODE_LEAF:
        return leaf_value(builder, &node->leaf);
    case NODE_DICT:
        made = PyDict_New();
        for (uint32_t index = 0; made != NULL && index < node->count; index++) {
            PyObject *key = self->keys[builder->node];
            value = build(builder);
            if (value == NULL || PyDict_SetItem(made, key, value) < 0)
                Py_CLEAR(made);
            Py_XDECREF(value);
        }
        return made;
    case NODE_LIST:
        made = PyList_New(node->count);
        for (uint32_t index = 0; made != NULL && index < node->count; index++)
            if ((value = build(builder)) == NULL)
                Py_CLEAR(made);
            else
                PyList_SET_ITEM(made, index, value);
        return made;
    default:
        made = PyTuple_New(node->count);
        for (uint32_t index = 0; made != NULL && index < node->count; index++)
            if ((value = build(builder)) == NULL)
                Py_CLEAR(made);
            else
                PyTuple_SET_ITEM(made, index, value);
        return made;
    }
}

/* The tree with these arrays. */
static PyObject *tree_of(TreeDecoder *self, Layout *layout, const char *bytes)
{
    Builder builder = {.decoder = self, .layout = layout, .bytes = bytes};
    return build(&builder);
}

/* Make an array, with memory of its own, for each array leaf. */
static int make_arrays(TreeDecoder *self, Layout *layout)
{
    const uint64_t *sizes = layout->sizes;
    for (uint32_t index = 0; index < self->schema.leaves_count; index++) {
        const Leaf *leaf = &self->schema.leaves[index];
        npy_intp dimensions[DIMENSION_LIMIT];
        if (leaf->kind == LEAF_ARRAY) {
            layout->arrays[index] = PyArray_NewFromDescr(
                &PyArray_Type, (PyArray_Descr *)Py_NewRef(self->descrs[leaf->dtype]), leaf->dimensions,
                dimensions_of(leaf, sizes, dimensions), NULL, NULL, 0, NULL);
            if (layout->arrays[index] == NULL)
                return -1;
        }
        sizes += leaf->dimensions;
    }
    return 0;
}

static void copy_out(TreeDecoder *self, Layout *layout, const char *bytes)
{
    for (uint32_t index = 0; index < self->schema.leaves_count; index++)
        if (layout->arrays[index] != NULL && layout->places[index].size)
            memcpy(PyArray_BYTES((PyArrayObject *)layout->arrays[index]), bytes + layout->places[index].offset,
                   layout->places[index].size);
}

static int check_native(TreeDecoder *self)
{
    if (!self->is_complete)
        PyErr_SetString(PyExc_TypeError, "numpy has no bfloat16 and no GPU memory: this structure is read in Python");
    return self->is_complete;
}

PyObject *decoder_decode(PyObject *object, PyObject *payload, uint64_t payload_bytes)
{
    TreeDecoder *self = (TreeDecoder *)object;
    Layout layout;
    PyObject *tree = NULL;
    const char *bytes = check_native(self) ? lay_payload_out(self, payload, payload_bytes, &layout) : NULL;
    if (bytes == NULL)
        return NULL;
    if (make_arrays(self, &layout) == 0) {
        if (payload_bytes < RELEASING_BYTES)
            copy_out(self, &layout, bytes);
        else {
            Py_BEGIN_ALLOW_THREADS
            copy_out(self, &layout, bytes);
            Py_END_ALLOW_THREADS
        }
        tree = tree_of(self, &layout, bytes);
    }
    forget_layout(self, &layout);
    return tree;
}

/* A view of one array leaf in the payload. Its base, if it has any bytes, is an array of the leaf alone, made of the memory
 * and not of another array: numpy makes it the base of every array derived from the view, so its reference count shows
 * whether the leaf is still held. */
static PyObject *view_of(TreeDecoder *self, const Leaf *leaf, const Place *place, const uint64_t *sizes, char *bytes,
                         PyObject *memory, int flags)
{
    npy_intp dimensions[DIMENSION_LIMIT], size = (npy_intp)place->size;
    PyArray_Descr *descr = (PyArray_Descr *)Py_NewRef(self->descrs[leaf->dtype]);
    dimensions_of(leaf, sizes, dimensions);
    if (!size)
        return PyArray_NewFromDescr(&PyArray_Type, descr, leaf->dimensions, dimensions, NULL, NULL, 0, NULL);
    PyObject *root = PyArray_NewFromDescr(&PyArray_Type, PyArray_DescrFromType(NPY_UINT8), 1, &size, NULL,
                                          bytes + place->offset, flags, NULL);
    if (root == NULL || PyArray_SetBaseObject((PyArrayObject *)root, Py_NewRef(memory)) < 0) {
        Py_XDECREF(root);
        Py_DECREF(descr);
        return NULL;
    }
    PyObject *view = PyArray_NewFromDescr(&PyArray_Type, descr, leaf->dimensions, dimensions, NULL,
                                          bytes + place->offset, flags, NULL);
    if (view == NULL)
        Py_DECREF(root);
    else if (PyArray_SetBaseObject((PyArrayObject *)view, root) < 0)
        Py_CLEAR(view);
    else
        PyArray_UpdateFlags((PyArrayObject *)view, NPY_ARRAY_ALIGNED);
    return view;
}

PyObject *decoder_views(PyObject *object, PyObject *payload, uint64_t payload_bytes)
{
    TreeDecoder *self = (TreeDecoder *)object;
    Layout layout;
    const char *bytes = lay_payload_out(self, payload, payload_bytes, &layout);
    if (bytes == NULL)
        return NULL;
    PyObject *views = PyList_New(self->arrays_count), *memory = views == NULL ? NULL : PyMemoryView_FromObject(payload);
    if (memory == NULL)
        Py_CLEAR(views);
    const uint64_t *sizes = layout.sizes;
    int flags = PyArray_FLAGS((PyArrayObject *)payload) & (NPY_ARRAY_WRITEABLE | NPY_ARRAY_ALIGNED);
    Py_ssize_t found = 0;
    for (uint32_t index = 0; views != NULL && index < self->schema.leaves_count; index++) {
        const Leaf *leaf = &self->schema.leaves[index];
        if (leaf->kind == LEAF_ARRAY) {
            PyObject *view = view_of(self, leaf, &layout.places[index], sizes, (char *)bytes, memory, flags);
            if (view == NULL)
                Py_CLEAR(views);
            else
                PyList_SET_ITEM(views, found++, view);
        }
        sizes += leaf->dimensions;
    }
    Py_XDECREF(memory);
    forget_layout(self, &layout);
    return views;
}

/* A new array over the same memory, as `view[...]` makes. */
static PyObject *another(PyArrayObject *view)
{
    PyObject *array = PyArray_NewFromDescr(
        &PyArray_Type, (PyArray_Descr *)Py_NewRef(PyArray_DESCR(view)), PyArray_NDIM(view), PyArray_DIMS(view),
        PyArray_STRIDES(view), PyArray_DATA(view), PyArray_FLAGS(view) & (NPY_ARRAY_WRITEABLE | NPY_ARRAY_ALIGNED),
        NULL);
    if (array != NULL && PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(view)) < 0)
        Py_CLEAR(array);
    return array;
}

/* Whether this is a list with one array for each array leaf. */
static int are_views(TreeDecoder *self, PyObject *given)
{
    int same = PyList_CheckExact(given) && PyList_GET_SIZE(given) == self->arrays_count;
    for (Py_ssize_t index = 0; same && index < self->arrays_count; index++)
        same = PyArray_CheckExact(PyList_GET_ITEM(given, index));
    if (!same)
        PyErr_Format(PyExc_TypeError, "a list of %zd views is needed", self->arrays_count);
    return same;
}

PyObject *decoder_over(PyObject *object, PyObject *payload, uint64_t payload_bytes, PyObject *views, PyObject *wrap)
{
    TreeDecoder *self = (TreeDecoder *)object;
    Layout layout;
    PyObject *tree = NULL;
    if (!check_native(self) || !are_views(self, views))
        return NULL;
    const char *bytes = lay_payload_out(self, payload, payload_bytes, &layout);
    if (bytes == NULL)
        return NULL;
    Py_ssize_t found = 0;
    for (uint32_t index = 0; index < self->schema.leaves_count; index++) {
        if (self->schema.leaves[index].kind != LEAF_ARRAY)
            continue;
        /* `wrap` may run code that changes the list. */
        if (found >= PyList_GET_SIZE(views)) {
            PyErr_SetString(PyExc_RuntimeError, "a list of views changed while it was read");
            break;
        }
        PyObject *view = Py_NewRef(PyList_GET_ITEM(views, found));
        layout.arrays[index] = wrap == Py_None ? another((PyArrayObject *)view) : PyObject_CallOneArg(wrap, view);
        Py_DECREF(view);
        if (layout.arrays[index] == NULL)
            break;
        found++;
    }
    /* `wrap` may have moved the payload. */
    if (found == self->arrays_count && (bytes = payload_bytes_of(payload, (Py_ssize_t)payload_bytes)) != NULL)
        tree = tree_of(self, &layout, bytes);
    forget_layout(self, &layout);
    return tree;
}

Py_ssize_t stage_payload(PyObject *payload, uint64_t payload_bytes, PyObject *arena, PyObject *copier,
                         uint64_t write_id)
{
    char *from, *to;
    if (payload_bytes > PAYLOAD_LIMIT) {
        PyErr_SetString(PyExc_ValueError, "a payload of more bytes than a slot can have");
        return -1;
    }
    if ((from = payload_bytes_of(payload, (Py_ssize_t)payload_bytes)) == NULL ||
        (to = payload_bytes_of(arena, (Py_ssize_t)payload_bytes)) == NULL)
        return -1;
    if (!PyArray_ISWRITEABLE((PyArrayObject *)arena)) {
        PyErr_SetString(PyExc_ValueError, "this arena may only be read");
        return -1;
    }
    Py_ssize_t done = 0;
    if (copier != Py_None)
        done = copier_take((CutThroughCopier *)copier, (PyArrayObject *)arena, write_id);
    if (done > (Py_ssize_t)payload_bytes)
        done = (Py_ssize_t)payload_bytes;
    size_t rest = (size_t)payload_bytes - (size_t)done;
    if (rest < RELEASING_BYTES)
        memmove(to + done, from + done, rest);
    else {
        Py_BEGIN_ALLOW_THREADS
        memmove(to + done, from + done, rest);
        Py_END_ALLOW_THREADS
    }
    return done;
}

int is_decoder(PyObject *object) { return is_of_type(object, DECODER_TYPE); }

int decoder_is_complete(PyObject *object) { return ((TreeDecoder *)object)->is_complete; }

Py_ssize_t decoder_sizes_bytes(PyObject *object) { return 8 * (Py_ssize_t)((TreeDecoder *)object)->schema.sizes_count; }

/* Python's methods */

/* decode(payload, payload_bytes) */
static PyObject *decode(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    uint64_t bytes;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "decode(payload, payload_bytes)");
        return NULL;
    }
    return to_word(args[1], &bytes) < 0 ? NULL : decoder_decode(object, args[0], bytes);
}

/* views(payload, payload_bytes) */
static PyObject *views(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    uint64_t bytes;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "views(payload, payload_bytes)");
        return NULL;
    }
    return to_word(args[1], &bytes) < 0 ? NULL : decoder_views(object, args[0], bytes);
}

/* decode_over(payload, payload_bytes, views, wrap) */
static PyObject *decode_over(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    uint64_t bytes;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "decode_over(payload, payload_bytes, views, wrap)");
        return NULL;
    }
    return to_word(args[1], &bytes) < 0 ? NULL : decoder_over(object, args[0], bytes, args[2], args[3]);
}

PyObject *stage(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    uint64_t bytes, write_id;
    if (count != 5 || (args[3] != Py_None && !is_copier(args[3]))) {
        PyErr_SetString(PyExc_TypeError, "stage(payload, payload_bytes, arena, copier, write_id)");
        return NULL;
    }
    if (to_word(args[1], &bytes) < 0 || to_word(args[4], &write_id) < 0)
        return NULL;
    Py_ssize_t done = stage_payload(args[0], bytes, args[2], args[3], write_id);
    return done < 0 ? NULL : PyLong_FromSsize_t(done);
}

static PyMethodDef decoder_methods[] = {
    {"decode", (PyCFunction)(void (*)(void))decode, METH_FASTCALL, "The tree of a payload, its arrays copied."},
    {"views", (PyCFunction)(void (*)(void))views, METH_FASTCALL, "A view of the payload for each array leaf."},
    {"decode_over", (PyCFunction)(void (*)(void))decode_over, METH_FASTCALL,
     "The tree over the memory of these views: each array a new view, or the result of a function."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef decoder_members[] = {
    {"is_complete", T_BOOL, offsetof(TreeDecoder, is_complete), READONLY, "Whether it makes every leaf: none is bfloat16 or in GPU memory."},
    {"sizes_count", T_UINT, offsetof(TreeDecoder, schema) + offsetof(Schema, sizes_count), READONLY,
     "The number of sizes, at the front of a payload."},
    {"last_used", T_ULONGLONG, offsetof(TreeDecoder, last_used), READONLY, "Larger for the one that was used later."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot decoder_slots[] = {
    {Py_tp_doc, "Decodes trees of one structure."}, {Py_tp_new, decoder_new},         {Py_tp_dealloc, decoder_dealloc},
    {Py_tp_methods, decoder_methods},               {Py_tp_members, decoder_members}, {0, NULL},
};

PyType_Spec decoder_spec = {"shmserve._core.TreeDecoder", sizeof(TreeDecoder), 0, TYPE_FLAGS, decoder_slots};
