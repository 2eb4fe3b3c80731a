/* Reader and writer of metadata, and the layout of a payload.
 *
 * The reader is a recursive descent over the one form that the writer gives a tree: it has no stack, no memo and no
 * operation that names, calls or fills in an object.
 */

#include "schema.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>

/* Operations of pickle. */
enum {
    OP_PROTO = 0x80,
    OP_STOP = '.',
    OP_NONE = 'N',
    OP_LONG1 = 0x8a,
    OP_SHORT_TEXT = 0x8c,
    OP_TEXT = 'X',
    OP_INT1 = 'K',
    OP_INT2 = 'M',
    OP_INT4 = 'J',
    OP_TUPLE3 = 0x87,
    OP_LEAF = 'Q',
    OP_MARK = '(',
    OP_EMPTY_DICT = '}',
    OP_SET_ITEMS = 'u',
    OP_EMPTY_LIST = ']',
    OP_APPENDS = 'e',
    OP_TUPLE = 't'
};

static const struct {
    const char *name;
    uint8_t name_bytes, bytes;
} dtypes[DTYPES] = {
    [DTYPE_B1] = {"|b1", 3, 1}, [DTYPE_I1] = {"|i1", 3, 1}, [DTYPE_U1] = {"|u1", 3, 1},   [DTYPE_I2] = {"<i2", 3, 2},
    [DTYPE_U2] = {"<u2", 3, 2}, [DTYPE_F2] = {"<f2", 3, 2}, [DTYPE_BF2] = {"<bf2", 4, 2}, [DTYPE_I4] = {"<i4", 3, 4},
    [DTYPE_U4] = {"<u4", 3, 4}, [DTYPE_F4] = {"<f4", 3, 4}, [DTYPE_I8] = {"<i8", 3, 8},   [DTYPE_U8] = {"<u8", 3, 8},
    [DTYPE_F8] = {"<f8", 3, 8}, [DTYPE_C8] = {"<c8", 3, 8}, [DTYPE_C16] = {"<c16", 4, 16},
};

#define ONLY(dtype) (1u << (dtype))
#define ANY_DTYPE (ONLY(DTYPES) - 1)

static const struct {
    const char *name;
    uint8_t name_bytes, least_dimensions, most_dimensions;
    uint32_t dtypes;
} kinds[LEAF_KINDS] = {
    [LEAF_ARRAY] = {"array", 5, 0, DIMENSION_LIMIT, ANY_DTYPE},
    [LEAF_SCALAR] = {"scalar", 6, 0, 0, ANY_DTYPE},
    [LEAF_INT] = {"int", 3, 0, 0, ONLY(DTYPE_I8)},
    [LEAF_FLOAT] = {"float", 5, 0, 0, ONLY(DTYPE_F8)},
    [LEAF_BOOL] = {"bool", 4, 0, 0, ONLY(DTYPE_I8)},
    [LEAF_BYTES] = {"bytes", 5, 1, 1, ONLY(DTYPE_U1)},
    [LEAF_STR] = {"str", 3, 1, 1, ONLY(DTYPE_U1)},
    [LEAF_LIST] = {"list", 4, 1, 1, ONLY(DTYPE_B1) | ONLY(DTYPE_I8) | ONLY(DTYPE_F8)},
    [LEAF_DEVICE] = {"device", 6, 0, DIMENSION_LIMIT, ANY_DTYPE},
};

const char *dtype_name(int dtype) { return dtypes[dtype].name; }

uint64_t dtype_bytes(int dtype) { return dtypes[dtype].bytes; }

int is_number(int kind) { return kind == LEAF_INT || kind == LEAF_FLOAT || kind == LEAF_BOOL; }

/* Layout */

int lay_out(const Leaf *leaves, size_t leaves_count, const uint64_t *sizes, size_t sizes_count, size_t numbers_count,
            Place *places, uint64_t *payload_bytes)
{
    /* Every bound is far below 2^64, so that no sum can overflow; a product is checked before it is made. */
    uint64_t end = ((uint64_t)sizes_count + numbers_count) * 8, device_end = 0;
    for (size_t index = 0; index < leaves_count; index++) {
        uint64_t size = dtypes[leaves[index].dtype].bytes, space = size;
        for (int dimension = 0; dimension < leaves[index].dimensions; dimension++) {
            uint64_t length = *sizes++;
            /* An empty array, too: numpy refuses one whose other dimensions overflow. */
            uint64_t factor = length ? length : 1;
            if (factor >= LEAF_BYTES_LIMIT || space > (LEAF_BYTES_LIMIT - 1) / factor)
                return 0;
            space *= factor;
            size *= length;
        }
        int is_device = leaves[index].kind == LEAF_DEVICE;
        uint64_t *behind = is_device ? &device_end : &end, alignment = is_device ? DEVICE_ALIGNMENT : LEAF_ALIGNMENT;
        places[index].offset = (*behind + alignment - 1) / alignment * alignment;
        places[index].size = size;
        *behind = places[index].offset + size;
        if (*behind > PAYLOAD_LIMIT)
            return 0;
    }
    *payload_bytes = end;
    return end <= PAYLOAD_LIMIT;
}

/* Writer */

void metadata_begin(MetadataWriter *writer, uint8_t *bytes, size_t room)
{
    writer->bytes = bytes;
    writer->room = room < METADATA_LIMIT ? room : METADATA_LIMIT;
    writer->count = 0;
    writer->failed = writer->room < 2;
    if (!writer->failed) {
        bytes[0] = OP_PROTO;
        bytes[1] = 5;
        writer->count = 2;
    }
}

/* Room for that many more bytes; NULL, and the writer has failed. */
static uint8_t *more(MetadataWriter *writer, size_t count)
{
    if (writer->failed || count > writer->room - writer->count) {
        writer->failed = 1;
        return NULL;
    }
    uint8_t *bytes = writer->bytes + writer->count;
    writer->count += count;
    return bytes;
}

static void put(MetadataWriter *writer, uint8_t byte)
{
    uint8_t *to = more(writer, 1);
    if (to != NULL)
        *to = byte;
}

/* A number of that many bytes, little-endian. */
static void put_number(uint8_t *to, uint64_t number, int bytes)
{
    for (int index = 0; index < bytes; index++)
        to[index] = (uint8_t)(number >> (8 * index));
}

void metadata_leaf(MetadataWriter *writer, int kind, int dtype, int dimensions)
{
    size_t kind_bytes = kinds[kind].name_bytes, name_bytes = dtypes[dtype].name_bytes;
    uint8_t *to = more(writer, 8 + kind_bytes + name_bytes);
    if (to == NULL)
        return;
    *to++ = OP_SHORT_TEXT;
    *to++ = (uint8_t)kind_bytes;
    memcpy(to, kinds[kind].name, kind_bytes);
    to += kind_bytes;
    *to++ = OP_SHORT_TEXT;
    *to++ = (uint8_t)name_bytes;
    memcpy(to, dtypes[dtype].name, name_bytes);
    to += name_bytes;
    *to++ = OP_INT1;
    *to++ = (uint8_t)dimensions;
    *to++ = OP_TUPLE3;
    *to = OP_LEAF;
}

void metadata_none(MetadataWriter *writer) { put(writer, OP_NONE); }

void metadata_long(MetadataWriter *writer, const uint8_t *bytes, size_t count)
{
    uint8_t *to = count <= LONG_LIMIT ? more(writer, 2 + count) : NULL;
    if (to == NULL) {
        writer->failed = 1;
        return;
    }
    to[0] = OP_LONG1;
    to[1] = (uint8_t)count;
    memcpy(to + 2, bytes, count);
}

void metadata_text_key(MetadataWriter *writer, const char *key, size_t bytes)
{
    size_t head = bytes < 256 ? 2 : 5;
    uint8_t *to = bytes <= KEY_LIMIT ? more(writer, head + bytes) : NULL;
    if (to == NULL) {
        writer->failed = 1;
        return;
    }
    to[0] = head == 2 ? OP_SHORT_TEXT : OP_TEXT;
    put_number(to + 1, bytes, (int)head - 1);
    memcpy(to + head, key, bytes);
}

/* Bytes of the shortest two's complement. */
static int long_bytes(int64_t number)
{
    int bytes = 1;
    while (bytes < 8 && (number < -((int64_t)1 << (8 * bytes - 1)) || number >= (int64_t)1 << (8 * bytes - 1)))
        bytes++;
    return bytes;
}

void metadata_int_key(MetadataWriter *writer, int64_t key)
{
    int op = OP_LONG1, bytes = long_bytes(key), head = 2;
    if (key >= 0 && key < 1 << 8)
        op = OP_INT1, bytes = 1, head = 1;
    else if (key >= 0 && key < 1 << 16)
        op = OP_INT2, bytes = 2, head = 1;
    else if (key >= INT32_MIN && key <= INT32_MAX)
        op = OP_INT4, bytes = 4, head = 1;
    uint8_t *to = more(writer, (size_t)(head + bytes));
    if (to == NULL)
        return;
    to[0] = (uint8_t)op;
    if (head == 2)
        to[1] = (uint8_t)bytes;
    put_number(to + head, (uint64_t)key, bytes);
}

/* The operation that ends a container. */
static int end_of(int type) { return type == NODE_DICT ? OP_SET_ITEMS : type == NODE_LIST ? OP_APPENDS : OP_TUPLE; }

void metadata_open(MetadataWriter *writer, int type)
{
    if (type != NODE_TUPLE)
        put(writer, type == NODE_DICT ? OP_EMPTY_DICT : OP_EMPTY_LIST);
    put(writer, OP_MARK);
}

void metadata_close(MetadataWriter *writer, int type) { put(writer, (uint8_t)end_of(type)); }

int metadata_end(MetadataWriter *writer)
{
    put(writer, OP_STOP);
    return !writer->failed;
}

/* Reader */

typedef struct {
    Schema *schema;
    const uint8_t *metadata;
    size_t at, bytes;
    uint32_t nodes_room, leaves_room;
    const SchemaMemory *memory; /* NULL: allocate */
    int is_full;                /* the memory was too small */
} Reader;

static int peek(const Reader *reader) { return reader->at < reader->bytes ? reader->metadata[reader->at] : -1; }

static int next(Reader *reader) { return reader->at < reader->bytes ? reader->metadata[reader->at++] : -1; }

/* The place of that many bytes, which are passed over; 0 if there are fewer. No value begins at 0. */
static size_t pass(Reader *reader, size_t count)
{
    size_t at = reader->at;
    if (count > reader->bytes - at)
        return 0;
    reader->at += count;
    return at;
}

/* A number of that many bytes. */
static int read_number(Reader *reader, int bytes, uint64_t *number)
{
    size_t at = pass(reader, (size_t)bytes);
    *number = 0;
    for (int index = 0; at && index < bytes; index++)
        *number |= (uint64_t)reader->metadata[at + (size_t)index] << (8 * index);
    return at != 0;
}

static int64_t signed_number(uint64_t number, int bytes)
{
    int shift = 64 - 8 * bytes;
    return bytes ? (int64_t)(number << shift) >> shift : 0;
}

static Node *new_node(Reader *reader)
{
    Schema *schema = reader->schema;
    if (schema->nodes_count == NODE_LIMIT)
        return NULL;
    if (schema->nodes_count == reader->nodes_room) {
        if (reader->memory != NULL) {
            reader->is_full = 1;
            return NULL;
        }
        uint32_t room = reader->nodes_room ? 2 * reader->nodes_room : 32;
        Node *nodes = realloc(schema->nodes, room * sizeof *nodes);
        if (nodes == NULL)
            return NULL;
        schema->nodes = nodes;
        reader->nodes_room = room;
    }
    Node *node = &schema->nodes[schema->nodes_count++];
    memset(node, 0, sizeof *node);
    return node;
}

static int add_leaf(Reader *reader, Leaf leaf)
{
    Schema *schema = reader->schema;
    schema->sizes_count += leaf.dimensions;
    if (is_number(leaf.kind)) {
        schema->numbers_count++;
        return 1;
    }
    if (schema->leaves_count == reader->leaves_room) {
        uint32_t room = reader->leaves_room ? 2 * reader->leaves_room : 16;
        Leaf *leaves = realloc(schema->leaves, room * sizeof *leaves);
        if (leaves == NULL)
            return 0;
        schema->leaves = leaves;
        reader->leaves_room = room;
    }
    schema->leaves[schema->leaves_count++] = leaf;
    schema->devices_count += leaf.kind == LEAF_DEVICE;
    return 1;
}

/* The text of an OP_SHORT_TEXT whose operation was read. */
static size_t short_text(Reader *reader, size_t *bytes)
{
    int count = next(reader);
    *bytes = count < 0 ? 0 : (size_t)count;
    return count < 0 ? 0 : pass(reader, *bytes);
}

/* (kind, dtype, dimensions), as a persistent id; the operation of the kind was read. */
static int read_leaf(Reader *reader, Leaf *leaf)
{
    size_t kind_bytes, name_bytes, kind_at = short_text(reader, &kind_bytes);
    if (!kind_at || next(reader) != OP_SHORT_TEXT)
        return 0;
    size_t name_at = short_text(reader, &name_bytes);
    if (!name_at || next(reader) != OP_INT1)
        return 0;
    int kind = 0, dtype = 0, dimensions = next(reader);
    while (kind < LEAF_KINDS && (kinds[kind].name_bytes != kind_bytes ||
                                 memcmp(kinds[kind].name, reader->metadata + kind_at, kind_bytes) != 0))
        kind++;
    while (dtype < DTYPES && (dtypes[dtype].name_bytes != name_bytes ||
                              memcmp(dtypes[dtype].name, reader->metadata + name_at, name_bytes) != 0))
        dtype++;
    if (kind == LEAF_KINDS || dtype == DTYPES || !(kinds[kind].dtypes & ONLY(dtype)) ||
        dimensions < kinds[kind].least_dimensions || dimensions > kinds[kind].most_dimensions ||
        next(reader) != OP_TUPLE3 || next(reader) != OP_LEAF)
        return 0;
    *leaf = (Leaf){(uint8_t)kind, (uint8_t)dtype, (uint8_t)dimensions};
    return 1;
}

static int read_key(Reader *reader, Node *node)
{
    uint64_t number;
    int op = next(reader), bytes = op == OP_INT1 ? 1 : op == OP_INT2 ? 2 : op == OP_INT4 ? 4 : 0;
    if (op == OP_SHORT_TEXT || op == OP_TEXT) {
        if (!read_number(reader, op == OP_SHORT_TEXT ? 1 : 4, &number) || number > KEY_LIMIT ||
            (op == OP_TEXT && number < 256))
            return 0;
        node->key_type = KEY_TEXT;
        node->key_bytes = (uint32_t)number;
        node->key_at = (uint32_t)pass(reader, number);
        return node->key_at != 0 && is_utf8(reader->metadata + node->key_at, number);
    }
    if (op == OP_LONG1)
        bytes = next(reader);
    if (bytes < 1 || bytes > 8 || !read_number(reader, bytes, &number))
        return 0;
    node->key_type = KEY_INT;
    node->key = op == OP_INT4 || op == OP_LONG1 ? signed_number(number, bytes) : (int64_t)number;
    /* One form for each number: the one that the writer takes. */
    if (op == OP_INT2)
        return node->key >= 1 << 8;
    if (op == OP_INT4)
        return node->key < 0 || node->key >= 1 << 16;
    if (op == OP_LONG1)
        return (node->key < INT32_MIN || node->key > INT32_MAX) && bytes == long_bytes(node->key);
    return 1;
}

/* Beyond 64 bits, in the shortest form. */
static int read_long(Reader *reader, Node *node)
{
    int count = next(reader);
    if (count < 9 || count > LONG_LIMIT)
        return 0;
    size_t at = pass(reader, (size_t)count);
    if (!at)
        return 0;
    node->at = (uint32_t)at;
    node->bytes = (uint32_t)count;
    uint8_t last = reader->metadata[at + (size_t)count - 1], before = reader->metadata[at + (size_t)count - 2];
    return !(last == 0 && before < 0x80) && !(last == 0xff && before >= 0x80);
}

enum { FEW_KEYS = 16 };

/* The entry after this one of the same container. */
static uint32_t skip(const Schema *schema, uint32_t index)
{
    uint32_t left = 1;
    while (left) {
        left += schema->nodes[index].count;
        left--;
        index++;
    }
    return index;
}

static SchemaKey key_of(const Reader *reader, const Node *node)
{
    if (node->key_type == KEY_INT)
        return (SchemaKey){.number = node->key};
    return (SchemaKey){.text = reader->metadata + node->key_at, .bytes = node->key_bytes};
}

/* An order of keys: 0 for equal ones. */
static int compare_keys(const SchemaKey *one, const SchemaKey *other)
{
    if (one->text == NULL || other->text == NULL) {
        if (one->text != other->text)
            return one->text == NULL ? -1 : 1;
        return (one->number > other->number) - (one->number < other->number);
    }
    if (one->bytes != other->bytes)
        return one->bytes < other->bytes ? -1 : 1;
    return memcmp(one->text, other->text, one->bytes);
}

/* Let the key at this place of a heap of `count` keys sink below larger ones. */
static void sink(SchemaKey *keys, uint32_t at, uint32_t count)
{
    for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && compare_keys(&keys[child], &keys[child + 1]) < 0)
            child++;
        if (compare_keys(&keys[at], &keys[child]) >= 0)
            return;
        SchemaKey key = keys[at];
        keys[at] = keys[child];
        keys[child] = key;
    }
}

/* In place: qsort of the C library may allocate. */
static void sort_keys(SchemaKey *keys, uint32_t count)
{
    for (uint32_t at = count / 2; at > 0; at--)
        sink(keys, at - 1, count);
    for (uint32_t left = count; left > 1; left--) {
        SchemaKey largest = keys[0];
        keys[0] = keys[left - 1];
        keys[left - 1] = largest;
        sink(keys, 0, left - 1);
    }
}

/* Whether the entries of a dict have different keys. Many are sorted, not hashed: nobody can choose keys that collide. */
static int are_keys_unique(const Reader *reader, uint32_t dict)
{
    const Schema *schema = reader->schema;
    uint32_t count = schema->nodes[dict].count, index = dict + 1;
    SchemaKey few[FEW_KEYS], *keys = few;
    if (count > FEW_KEYS)
        keys = reader->memory != NULL ? reader->memory->keys : malloc(count * sizeof *keys);
    int unique = keys != NULL;
    for (uint32_t entry = 0; unique && entry < count; entry++, index = skip(schema, index)) {
        keys[entry] = key_of(reader, &schema->nodes[index]);
        for (uint32_t before = 0; unique && count <= FEW_KEYS && before < entry; before++)
            unique = compare_keys(&keys[before], &keys[entry]) != 0;
    }
    if (count > FEW_KEYS && unique) {
        sort_keys(keys, count);
        for (uint32_t entry = 1; unique && entry < count; entry++)
            unique = compare_keys(&keys[entry - 1], &keys[entry]) != 0;
    }
    if (keys != few && reader->memory == NULL)
        free(keys);
    return unique;
}

static int read_value(Reader *reader, Node key, int depth);

/* The entries up to the operation that ends the container; its MARK was read. */
static int read_entries(Reader *reader, uint32_t container, int type, int depth)
{
    while (peek(reader) != end_of(type)) {
        Node key = {0};
        if (depth >= DEPTH_LIMIT || (type == NODE_DICT && !read_key(reader, &key)) ||
            !read_value(reader, key, depth + 1))
            return 0;
        reader->schema->nodes[container].count++;
    }
    reader->at++;
    return type != NODE_DICT || are_keys_unique(reader, container);
}

/* A value of the tree, with `depth` containers around it; `key` is a node with its key alone. */
static int read_value(Reader *reader, Node key, int depth)
{
    Node *node = new_node(reader);
    if (node == NULL)
        return 0;
    *node = key;
    uint32_t index = reader->schema->nodes_count - 1;
    switch (next(reader)) {
    case OP_NONE:
        node->type = NODE_NONE;
        return 1;
    case OP_LONG1:
        node->type = NODE_LONG;
        return read_long(reader, node);
    case OP_SHORT_TEXT:
        node->type = NODE_LEAF;
        return read_leaf(reader, &node->leaf) && add_leaf(reader, node->leaf);
    case OP_MARK:
        node->type = NODE_TUPLE;
        return read_entries(reader, index, NODE_TUPLE, depth);
    case OP_EMPTY_DICT:
        node->type = NODE_DICT;
        return next(reader) == OP_MARK && read_entries(reader, index, NODE_DICT, depth);
    case OP_EMPTY_LIST:
        node->type = NODE_LIST;
        return next(reader) == OP_MARK && read_entries(reader, index, NODE_LIST, depth);
    default:
        return 0;
    }
}

static int read_tree(Reader *reader)
{
    const uint8_t *metadata = reader->metadata;
    return reader->bytes >= 4 && reader->bytes <= METADATA_LIMIT && metadata[0] == OP_PROTO && metadata[1] == 5 &&
           read_value(reader, (Node){0}, 0) && next(reader) == OP_STOP && reader->at == reader->bytes;
}

int schema_read(Schema *schema, const uint8_t *metadata, size_t bytes)
{
    Reader reader = {.schema = schema, .metadata = metadata, .at = 2, .bytes = bytes};
    memset(schema, 0, sizeof *schema);
    if (read_tree(&reader))
        return 1;
    schema_free(schema);
    return 0;
}

int schema_read_into(Schema *schema, const SchemaMemory *memory, const uint8_t *metadata, size_t bytes)
{
    Reader reader = {.schema = schema, .metadata = metadata, .at = 2, .bytes = bytes, .memory = memory};
    *schema = (Schema){.nodes = memory->nodes, .leaves = memory->leaves};
    reader.nodes_room = reader.leaves_room = memory->room;
    if (read_tree(&reader))
        return 1;
    return reader.is_full ? SCHEMA_ROOM : 0;
}

void schema_free(Schema *schema)
{
    free(schema->nodes);
    free(schema->leaves);
    memset(schema, 0, sizeof *schema);
}
