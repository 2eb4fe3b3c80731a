/* The entries of a structure, from its metadata. Nothing here but structures_begin allocates: a reply of a new
 * structure is read in memory that is there already.
 */

#include "client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert((int)SHMSERVE_ARRAY == LEAF_ARRAY && (int)SHMSERVE_BOOL == LEAF_BOOL && (int)SHMSERVE_STR == LEAF_STR &&
                   (int)SHMSERVE_LIST == LEAF_LIST && (int)SHMSERVE_BYTES == LEAF_BYTES,
               "the header numbers the kinds of leaf as the core does");
_Static_assert((int)SHMSERVE_BOOL8 == DTYPE_B1 && (int)SHMSERVE_BF16 == DTYPE_BF2 && (int)SHMSERVE_F32 == DTYPE_F4 &&
                   (int)SHMSERVE_C128 == DTYPE_C16,
               "the header numbers the dtypes as the core does");
_Static_assert(SHMSERVE_MAX_DIMS == DIMENSION_LIMIT && SHMSERVE_MAX_SLOTS == MAX_SLOTS, "the limits of the header");

/* A container around the entry that is being written. */
typedef struct {
    uint8_t type;
    uint32_t left, item;
    size_t path_bytes;
} Frame;

/* The step of a key, as a path has it; what it takes. */
static size_t write_step(char *to, const Node *node, const uint8_t *metadata)
{
    static const char escapes[] = {'/', '1', '~', '0', '\0', '3'};
    size_t at = 0;
    if (node->key_type == KEY_INT)
        return (size_t)sprintf(to, "#%lld", (long long)node->key);
    if (!node->key_bytes) {
        memcpy(to, "~4", 2);
        return 2;
    }
    for (uint32_t index = 0; index < node->key_bytes; index++) {
        char next = (char)metadata[node->key_at + index];
        const char *escape = memchr(escapes, next, sizeof escapes);
        while (escape != NULL && (escape - escapes) % 2)
            escape = memchr(escape + 1, next, (size_t)(escapes + sizeof escapes - escape - 1));
        if (escape != NULL || (next == '#' && index == 0)) {
            to[at++] = '~';
            to[at++] = escape != NULL ? escape[1] : '2';
        }
        else
            to[at++] = next;
    }
    return at;
}

static enum shmserve_kind kind_of(const Node *node)
{
    switch (node->type) {
    case NODE_LEAF:
        return (enum shmserve_kind)node->leaf.kind;
    case NODE_NONE:
        return SHMSERVE_NONE;
    case NODE_LONG:
        return SHMSERVE_LONG;
    case NODE_DICT:
        return SHMSERVE_DICT;
    case NODE_LIST:
        return SHMSERVE_SEQUENCE;
    default:
        return SHMSERVE_TUPLE;
    }
}

/* An entry of `schema`, whose memory has room for it. */
static void add_entry(shmserve_schema *schema, const Node *node, const uint8_t *metadata, const char *path,
                      size_t bytes, size_t path_at)
{
    shmserve_entry *entry = &schema->entries[schema->entries_count];
    uint8_t *constant = schema->constants + (size_t)LONG_LIMIT * schema->entries_count;
    *entry =
        (shmserve_entry){.path = schema->paths + path_at, .kind = kind_of(node), .first_size = schema->sizes_count};
    memcpy(schema->paths + path_at, path, bytes);
    schema->paths[path_at + bytes] = '\0';
    if (node->type == NODE_LEAF) {
        entry->dtype = (enum shmserve_dtype)node->leaf.dtype;
        entry->dims = node->leaf.dimensions;
        schema->sizes_count += entry->dims;
    }
    for (int dimension = 0; dimension < SHMSERVE_MAX_DIMS; dimension++)
        entry->shape[dimension] = SHMSERVE_ANY_SIZE;
    if (node->type == NODE_LONG) {
        memcpy(constant, metadata + node->at, node->bytes);
        entry->constant = constant;
        entry->constant_bytes = node->bytes;
    }
    schema->entries_count++;
}

int structure_fill(shmserve_schema *schema, const Schema *tree, const uint8_t *metadata, char *path,
                   const StructureRoom *room, StructureRoom *needed)
{
    Frame frames[DEPTH_LIMIT + 2];
    int depth = 0;
    size_t path_at = 0;
    bool fits = tree->nodes_count <= room->nodes_room;
    schema->entries_count = schema->sizes_count = 0;
    for (uint32_t index = 0; index < tree->nodes_count; index++) {
        const Node *node = &tree->nodes[index];
        size_t bytes = 0;
        while (depth > 0 && !frames[depth - 1].left)
            depth--;
        if (depth > 0) {
            Frame *parent = &frames[depth - 1];
            bytes = parent->path_bytes;
            if (depth > 1)
                path[bytes++] = '/';
            bytes += parent->type == NODE_DICT ? write_step(path + bytes, node, metadata)
                                               : (size_t)sprintf(path + bytes, "%u", parent->item);
            parent->item++;
            parent->left--;
        }
        bool is_container = node->type == NODE_DICT || node->type == NODE_LIST || node->type == NODE_TUPLE;
        if (is_container)
            frames[depth++] = (Frame){.type = node->type, .left = node->count, .path_bytes = bytes};
        if (node->type == NODE_DICT && node->count)
            continue;
        fits = fits && path_at + bytes + 1 <= room->paths_room;
        if (fits)
            add_entry(schema, node, metadata, path, bytes, path_at);
        path_at += bytes + 1;
    }
    if (!fits) {
        while (needed->nodes_room < tree->nodes_count)
            needed->nodes_room *= 2;
        while (needed->paths_room < path_at)
            needed->paths_room *= 2;
        return SCHEMA_ROOM;
    }
    schema->leaves_count = tree->leaves_count;
    schema->numbers_count = tree->numbers_count;
    memcpy(schema->leaves, tree->leaves, tree->leaves_count * sizeof *tree->leaves);
    return 1;
}

int structures_begin(shmserve_client *client, const StructureRoom *room)
{
    bool has_all = true;
    uint32_t nodes = room->nodes_room;
    for (int index = 0; index < REPLY_STRUCTURES; index++) {
        shmserve_schema *schema = &client->structures[index];
        *schema = (shmserve_schema){.entries = new_memory(client, nodes, sizeof *schema->entries),
                                    .leaves = new_memory(client, nodes, sizeof *schema->leaves),
                                    .paths = new_memory(client, room->paths_room, 1),
                                    .constants = new_memory(client, nodes, LONG_LIMIT)};
        has_all = has_all && schema->entries != NULL && schema->leaves != NULL && schema->paths != NULL &&
                  schema->constants != NULL;
    }
    for (uint32_t index = 0; index < client->options.slots; index++) {
        Slot *slot = &client->slots[index];
        slot->views = new_memory(client, nodes, sizeof *slot->views);
        slot->reply_sizes = new_memory(client, (size_t)nodes * DIMENSION_LIMIT, sizeof *slot->reply_sizes);
        has_all = has_all && slot->views != NULL && slot->reply_sizes != NULL;
    }
    client->reader = (SchemaMemory){.nodes = new_memory(client, nodes, sizeof(Node)),
                                    .leaves = new_memory(client, nodes, sizeof(Leaf)),
                                    .keys = new_memory(client, nodes, sizeof(SchemaKey)),
                                    .room = nodes};
    client->places = new_memory(client, nodes, sizeof *client->places);
    client->room = *room;
    return has_all && client->reader.nodes != NULL && client->reader.leaves != NULL && client->reader.keys != NULL &&
                   client->places != NULL
               ? SHMSERVE_OK
               : SHMSERVE_MEMORY;
}

void structures_end(shmserve_client *client)
{
    for (int index = 0; index < REPLY_STRUCTURES; index++) {
        shmserve_schema *schema = &client->structures[index];
        free(schema->entries);
        free(schema->leaves);
        free(schema->paths);
        free(schema->constants);
        *schema = (shmserve_schema){0};
    }
    for (int index = 0; index < MAX_SLOTS; index++) {
        free(client->slots[index].views);
        free(client->slots[index].reply_sizes);
        client->slots[index].views = NULL;
        client->slots[index].reply_sizes = NULL;
    }
    free(client->reader.nodes);
    free(client->reader.leaves);
    free(client->reader.keys);
    free(client->places);
    client->reader = (SchemaMemory){0};
    client->places = NULL;
}

char *entry_place(const shmserve_entry *entry, char *payload, uint32_t sizes_count, const Place *places, uint32_t *leaf,
                  uint32_t *word, uint64_t *bytes)
{
    *bytes = 0;
    if (entry->kind > SHMSERVE_LIST)
        return NULL;
    if (is_number((int)entry->kind)) {
        *bytes = WORD;
        return payload + (size_t)WORD * (sizes_count + (*word)++);
    }
    const Place *place = &places[(*leaf)++];
    *bytes = place->size;
    return payload + place->offset;
}

EXPORTED size_t shmserve_entries(const shmserve_schema *schema, const shmserve_entry **entries)
{
    *entries = schema->entries;
    return schema->entries_count;
}

EXPORTED size_t shmserve_sizes(const shmserve_schema *schema) { return schema->sizes_count; }

EXPORTED int shmserve_find(const shmserve_schema *schema, const char *path)
{
    for (uint32_t index = 0; index < schema->entries_count; index++)
        if (strcmp(schema->entries[index].path, path) == 0)
            return (int)index;
    return -1;
}

EXPORTED size_t shmserve_dtype_bytes(enum shmserve_dtype dtype)
{
    return (int)dtype >= 0 && (int)dtype < DTYPES ? dtype_bytes((int)dtype) : 0;
}
