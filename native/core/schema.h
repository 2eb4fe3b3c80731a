/* Schema of one structure: its metadata, read and written, and the layout of its payload.
 *
 * The metadata describes a tree: containers with their keys, and for each leaf its kind, dtype and number of dimensions. It
 * says no length: lengths are data, at the front of the payload. The same tree always has the same metadata bytes.
 *
 *     payload   [sizes: a word for each dimension][numbers: a word each][leaves, each on a 64-byte boundary]
 *
 * shmserve/metadata.py has the grammar of the metadata, and byte dumps.
 */

#ifndef SHMSERVE_CORE_SCHEMA_H
#define SHMSERVE_CORE_SCHEMA_H

#include <stddef.h>
#include <stdint.h>

/* As in shmserve/metadata_leaf.py; a test compares both. */
enum {
    METADATA_LIMIT = 65536, /* bytes */
    NODE_LIMIT = 4096,      /* values of one tree, containers included */
    DEPTH_LIMIT = 32,       /* containers around a value */
    KEY_LIMIT = 1024,       /* bytes of a key */
    LONG_LIMIT = 16,        /* bytes of an integer, two's complement */
    DIMENSION_LIMIT = 16,
    LEAF_ALIGNMENT = 64,
    DEVICE_ALIGNMENT = 256 /* of a leaf in a slot's area of GPU memory */
};
#define LEAF_BYTES_LIMIT ((uint64_t)1 << 48) /* a leaf is smaller */
#define PAYLOAD_LIMIT ((uint64_t)1 << 32)    /* bytes of one payload, and of one slot's area of GPU memory */

/* Kinds of leaf, and their dtypes. A number is a word of the payload; every other leaf has its own place: a LEAF_DEVICE in the
 * slot's area of GPU memory, the others in the payload. */
enum {
    LEAF_ARRAY,
    LEAF_SCALAR,
    LEAF_INT,
    LEAF_FLOAT,
    LEAF_BOOL,
    LEAF_BYTES,
    LEAF_STR,
    LEAF_LIST,
    LEAF_DEVICE,
    LEAF_KINDS
};
enum {
    DTYPE_B1,
    DTYPE_I1,
    DTYPE_U1,
    DTYPE_I2,
    DTYPE_U2,
    DTYPE_F2,
    DTYPE_BF2,
    DTYPE_I4,
    DTYPE_U4,
    DTYPE_F4,
    DTYPE_I8,
    DTYPE_U8,
    DTYPE_F8,
    DTYPE_C8,
    DTYPE_C16,
    DTYPES
};

typedef struct {
    uint8_t kind, dtype, dimensions;
} Leaf;

typedef struct {
    uint64_t offset, size; /* bytes */
} Place;

enum { NODE_DICT, NODE_LIST, NODE_TUPLE, NODE_NONE, NODE_LONG, NODE_LEAF };
enum { KEY_NONE, KEY_TEXT, KEY_INT };

/* One value of the tree, in the order of a walk: a container, then its entries. */
typedef struct {
    uint8_t type, key_type;
    Leaf leaf;
    uint32_t count;             /* entries of a container */
    uint32_t at, bytes;         /* of a NODE_LONG, in the metadata */
    uint32_t key_at, key_bytes; /* of a KEY_TEXT, in the metadata: UTF-8 */
    int64_t key;                /* of a KEY_INT */
} Node;

typedef struct {
    Node *nodes;
    Leaf *leaves; /* those with a place, in the order of the tree */
    uint32_t nodes_count, leaves_count, numbers_count, sizes_count, devices_count;
} Schema;

const char *dtype_name(int dtype);
uint64_t dtype_bytes(int dtype);
int is_number(int kind);

/* Read metadata: 1, or 0 for bytes that are not the metadata of a tree, or without memory. The caller's own copy: bytes are read
 * more than once. */
int schema_read(Schema *schema, const uint8_t *metadata, size_t bytes);
void schema_free(Schema *schema);

/* A key of a dict, comparable without its node. */
typedef struct {
    const uint8_t *text; /* NULL: an integer */
    size_t bytes;
    int64_t number;
} SchemaKey;

/* Memory for a schema of that many nodes, with which a reader needs no other. */
typedef struct {
    Node *nodes;
    Leaf *leaves;
    SchemaKey *keys;
    uint32_t room;
} SchemaMemory;

/* As schema_read, into this memory; SCHEMA_ROOM: a tree may need more than that. Allocates nothing, and takes no schema_free. */
enum { SCHEMA_ROOM = -1 };
int schema_read_into(Schema *schema, const SchemaMemory *memory, const uint8_t *metadata, size_t bytes);

/* Lay these leaves out by the sizes of their dimensions: 1, or 0 for sizes that no payload can have. */
int lay_out(const Leaf *leaves, size_t leaves_count, const uint64_t *sizes, size_t sizes_count, size_t numbers_count,
            Place *places, uint64_t *payload_bytes);

/* Metadata that is being written. `failed` once it is longer than METADATA_LIMIT. */
typedef struct {
    uint8_t *bytes;
    size_t count, room;
    int failed;
} MetadataWriter;

void metadata_begin(MetadataWriter *writer, uint8_t *bytes, size_t room);
void metadata_leaf(MetadataWriter *writer, int kind, int dtype, int dimensions);
void metadata_none(MetadataWriter *writer);
void metadata_long(MetadataWriter *writer, const uint8_t *bytes, size_t count);
void metadata_text_key(MetadataWriter *writer, const char *key, size_t bytes);
void metadata_int_key(MetadataWriter *writer, int64_t key);
/* A container: `open`, its entries (of a dict each after its key), `close`. */
void metadata_open(MetadataWriter *writer, int type);
void metadata_close(MetadataWriter *writer, int type);
/* 1, or 0 if it is too long. */
int metadata_end(MetadataWriter *writer);

#endif
