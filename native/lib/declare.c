/* Declared structures: from entries to metadata. */

#include "client.h"
#include "core/clock.h"
#include "core/utf8.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A container that is being written. */
typedef struct {
    int type;
    size_t path_bytes; /* of its path, which begins that of every entry in it */
    uint32_t items;
} Frame;

typedef struct {
    shmserve_client *client;
    MetadataWriter writer;
    const shmserve_entry *entries;
    size_t at; /* the entry that is being written */
    Frame frames[DEPTH_LIMIT + 1];
    int depth;
    char key[KEY_LIMIT + 1];
} Declaration;

static int wrong(const Declaration *declaration, const char *why)
{
    return fail(declaration->client, SHMSERVE_ARGUMENT, "entry %zu ('%.200s') cannot be declared: %s", declaration->at,
                declaration->entries[declaration->at].path, why);
}

/* The text that a step of a path stands for; -1 if it is none. */
static int unescape(char *to, const char *step, size_t bytes)
{
    int count = 0;
    for (size_t at = 0; at < bytes; at++) {
        char next = step[at];
        if (next == '~') {
            static const char meant[] = {'~', '/', '#', '\0'};
            if (++at == bytes || step[at] < '0' || step[at] > '4')
                return -1;
            if (step[at] == '4')
                continue;
            next = meant[step[at] - '0'];
        }
        if (count == KEY_LIMIT)
            return -1;
        to[count++] = next;
    }
    return count;
}

static bool read_integer(const char *text, size_t bytes, int64_t *number)
{
    char digits[24], *end;
    if (!bytes || bytes >= sizeof digits)
        return false;
    memcpy(digits, text, bytes);
    digits[bytes] = '\0';
    const char *first = digits + (digits[0] == '-');
    if (*first < '0' || *first > '9' || (*first == '0' && (first[1] || first != digits)))
        return false;
    errno = 0;
    *number = strtoll(digits, &end, 10);
    return !errno && !*end;
}

/* Write the key that a step has in the innermost container. */
static int write_key(Declaration *declaration, const char *step, size_t bytes)
{
    Frame *frame = &declaration->frames[declaration->depth - 1];
    int64_t number;
    if (frame->type != NODE_DICT) {
        if (!read_integer(step, bytes, &number) || number != (int64_t)frame->items++)
            return wrong(declaration,
                         "the items of a list or a tuple are declared in their order, as 0, 1, 2 and so on");
        return SHMSERVE_OK;
    }
    if (bytes && step[0] == '#') {
        if (!read_integer(step + 1, bytes - 1, &number))
            return wrong(declaration,
                         "a step that begins with # is an integer key of 64 bits; a text is written ~2 there");
        metadata_int_key(&declaration->writer, number);
        return SHMSERVE_OK;
    }
    int count = bytes ? unescape(declaration->key, step, bytes) : -1;
    if (count < 0)
        return wrong(declaration, "a step of its path is no key: 1 to 1024 bytes, / as ~1, ~ as ~0, nothing as ~4");
    if (!is_utf8((const uint8_t *)declaration->key, (size_t)count))
        return wrong(declaration, "its path is not UTF-8");
    metadata_text_key(&declaration->writer, declaration->key, (size_t)count);
    return SHMSERVE_OK;
}

static int open_container(Declaration *declaration, int type, size_t path_bytes)
{
    if (declaration->depth == DEPTH_LIMIT)
        return wrong(declaration, "it lies within more than 32 containers");
    declaration->frames[declaration->depth++] = (Frame){.type = type, .path_bytes = path_bytes};
    metadata_open(&declaration->writer, type);
    return SHMSERVE_OK;
}

static void close_container(Declaration *declaration)
{
    metadata_close(&declaration->writer, declaration->frames[--declaration->depth].type);
}

/* Whether a path lies in the container whose path is this beginning of it; `bytes` of 0: the outermost. */
static bool is_within(const char *path, const char *container, size_t bytes)
{
    return !bytes || (strncmp(path, container, bytes) == 0 && path[bytes] == '/');
}

/* Whether an earlier entry has this path, or lies in it. */
static bool was_there(const Declaration *declaration, const char *path, size_t bytes)
{
    for (size_t index = 0; index < declaration->at; index++) {
        const char *before = declaration->entries[index].path;
        if (strncmp(before, path, bytes) == 0 && (!before[bytes] || before[bytes] == '/'))
            return true;
    }
    return false;
}

/* The leaf of an entry as the wire has it: kinds with one dtype and one number of dimensions have these. */
static int leaf_of(const Declaration *declaration, Leaf *leaf)
{
    const shmserve_entry *entry = &declaration->entries[declaration->at];
    uint32_t dims = entry->kind == SHMSERVE_ARRAY ? entry->dims
                    : entry->kind == SHMSERVE_BYTES || entry->kind == SHMSERVE_STR || entry->kind == SHMSERVE_LIST ? 1
                                                                                                                   : 0;
    int dtype = entry->kind == SHMSERVE_FLOAT                                  ? DTYPE_F8
                : entry->kind == SHMSERVE_INT || entry->kind == SHMSERVE_BOOL  ? DTYPE_I8
                : entry->kind == SHMSERVE_BYTES || entry->kind == SHMSERVE_STR ? DTYPE_U1
                                                                               : (int)entry->dtype;
    if (dims > DIMENSION_LIMIT)
        return wrong(declaration, "an array has at most 16 dimensions");
    if (dtype < 0 || dtype >= DTYPES)
        return wrong(declaration, "its dtype is none of enum shmserve_dtype");
    if (entry->kind == SHMSERVE_LIST && dtype != DTYPE_B1 && dtype != DTYPE_I8 && dtype != DTYPE_F8)
        return wrong(declaration, "a list has SHMSERVE_BOOL8, SHMSERVE_I64 or SHMSERVE_F64");
    *leaf = (Leaf){(uint8_t)entry->kind, (uint8_t)dtype, (uint8_t)dims};
    return SHMSERVE_OK;
}

static int write_entry(Declaration *declaration)
{
    const shmserve_entry *entry = &declaration->entries[declaration->at];
    size_t path_bytes = strlen(entry->path);
    int status;
    Leaf leaf = {0};
    if ((int)entry->kind < 0 || entry->kind > SHMSERVE_TUPLE)
        return wrong(declaration, "its kind is none of enum shmserve_kind");
    if (entry->kind >= SHMSERVE_DICT)
        return open_container(declaration,
                              entry->kind == SHMSERVE_DICT       ? NODE_DICT
                              : entry->kind == SHMSERVE_SEQUENCE ? NODE_LIST
                                                                 : NODE_TUPLE,
                              path_bytes);
    if (entry->kind == SHMSERVE_NONE) {
        metadata_none(&declaration->writer);
        return SHMSERVE_OK;
    }
    if (entry->kind == SHMSERVE_LONG) {
        if (entry->constant == NULL || entry->constant_bytes < 9 || entry->constant_bytes > LONG_LIMIT)
            return wrong(declaration, "a SHMSERVE_LONG has a constant of 9 to 16 bytes, in its shortest form");
        metadata_long(&declaration->writer, entry->constant, entry->constant_bytes);
        return SHMSERVE_OK;
    }
    if ((status = leaf_of(declaration, &leaf)) != SHMSERVE_OK)
        return status;
    metadata_leaf(&declaration->writer, leaf.kind, leaf.dtype, leaf.dimensions);
    return SHMSERVE_OK;
}

/* Close and open containers until the innermost one is that of the next entry, write its key, and the entry. */
static int place_entry(Declaration *declaration)
{
    const char *path = declaration->entries[declaration->at].path;
    int status = SHMSERVE_OK;
    if (path == NULL)
        return fail(declaration->client, SHMSERVE_ARGUMENT, "entry %zu has no path", declaration->at);
    if (!*path)
        return declaration->at ? wrong(declaration, "the whole tree is declared first, and once")
                               : write_entry(declaration);
    if (!declaration->at && (status = open_container(declaration, NODE_DICT, 0)) != SHMSERVE_OK)
        return status;
    const char *before = declaration->at ? declaration->entries[declaration->at - 1].path : "";
    while (declaration->depth && !(is_within(path, before, declaration->frames[declaration->depth - 1].path_bytes)))
        close_container(declaration);
    if (!declaration->depth)
        return wrong(declaration, "the whole tree is one value: no other entry lies beside it");
    for (;;) {
        size_t outer = declaration->frames[declaration->depth - 1].path_bytes;
        const char *step = path + outer + (outer != 0), *end = strchr(step, '/');
        size_t bytes = end != NULL ? (size_t)(end - step) : strlen(step), path_bytes = (size_t)(step - path) + bytes;
        if (was_there(declaration, path, path_bytes))
            return wrong(declaration,
                         "an entry with this path, or in the same container, was declared before and others "
                         "followed: the entries of a container lie one after another");
        if ((status = write_key(declaration, step, bytes)) != SHMSERVE_OK)
            return status;
        if (end == NULL)
            return write_entry(declaration);
        if ((status = open_container(declaration, NODE_DICT, path_bytes)) != SHMSERVE_OK)
            return status;
    }
}

int metadata_of(shmserve_client *client, const shmserve_entry *entries, size_t count, uint8_t *metadata, size_t *bytes)
{
    Declaration declaration = {.client = client, .entries = entries};
    if (!count || count > NODE_LIMIT)
        return fail(client, SHMSERVE_ARGUMENT, "%zu entries: a tree has 1 to %d", count, NODE_LIMIT);
    metadata_begin(&declaration.writer, metadata, METADATA_LIMIT);
    for (; declaration.at < count; declaration.at++) {
        int status = place_entry(&declaration);
        if (status != SHMSERVE_OK)
            return status;
    }
    while (declaration.depth)
        close_container(&declaration);
    if (!metadata_end(&declaration.writer))
        return fail(client, SHMSERVE_ARGUMENT, "the structure takes more than %d bytes of metadata: use shorter keys",
                    METADATA_LIMIT);
    *bytes = declaration.writer.count;
    return SHMSERVE_OK;
}

static shmserve_schema *find_declared(shmserve_client *client, const uint8_t *metadata, size_t bytes)
{
    for (shmserve_schema *schema = client->declared; schema != NULL; schema = schema->next)
        if (schema->metadata_bytes == bytes && memcmp(schema->metadata, metadata, bytes) == 0)
            return schema;
    return NULL;
}

void free_declared(shmserve_schema *schema)
{
    uint32_t slots = schema->owner->options.slots;
    for (uint32_t slot = 0; slot < slots; slot++) {
        if (schema->places != NULL)
            free(schema->places[slot]);
        if (schema->sizes != NULL)
            free(schema->sizes[slot]);
    }
    free(schema->places);
    free(schema->sizes);
    free(schema->places_room);
    free(schema->default_sizes);
    free(schema->declared_sizes);
    free(schema->metadata);
    schema_free(&schema->tree);
    free(schema->entries);
    free(schema->leaves);
    free(schema->paths);
    free(schema->constants);
    free(schema);
}

static bool allocate(shmserve_client *client, shmserve_schema *schema, size_t count, size_t paths_bytes)
{
    uint32_t slots = client->options.slots;
    schema->entries = new_memory(client, count, sizeof *schema->entries);
    schema->leaves = new_memory(client, count, sizeof *schema->leaves);
    schema->paths = new_memory(client, paths_bytes, 1);
    schema->constants = new_memory(client, count, LONG_LIMIT);
    schema->places_room = new_memory(client, count, sizeof *schema->places_room);
    schema->default_sizes = new_memory(client, schema->tree.sizes_count, sizeof *schema->default_sizes);
    schema->declared_sizes = new_memory(client, schema->tree.sizes_count, sizeof *schema->declared_sizes);
    schema->places = new_memory(client, slots, sizeof *schema->places);
    schema->sizes = new_memory(client, slots, sizeof *schema->sizes);
    bool has_all = schema->entries != NULL && schema->leaves != NULL && schema->paths != NULL &&
                   schema->constants != NULL && schema->places_room != NULL && schema->default_sizes != NULL &&
                   schema->declared_sizes != NULL && schema->places != NULL && schema->sizes != NULL;
    for (uint32_t slot = 0; has_all && slot < slots; slot++) {
        schema->places[slot] = new_memory(client, count, sizeof **schema->places);
        schema->sizes[slot] = new_memory(client, schema->tree.sizes_count, sizeof **schema->sizes);
        has_all = schema->places[slot] != NULL && schema->sizes[slot] != NULL;
    }
    return has_all;
}

/* The caller's entries, with their own texts; the leaves of the tree are in the same order. */
static void copy_entries(shmserve_schema *schema, const shmserve_entry *entries, size_t count)
{
    size_t path_at = 0, leaf = 0;
    schema->numbers_count = schema->tree.numbers_count;
    schema->leaves_count = schema->tree.leaves_count;
    if (schema->leaves_count)
        memcpy(schema->leaves, schema->tree.leaves, schema->leaves_count * sizeof *schema->leaves);
    for (size_t index = 0; index < count; index++) {
        shmserve_entry *entry = &schema->entries[index];
        size_t bytes = strlen(entries[index].path) + 1;
        *entry = entries[index];
        entry->path = memcpy(schema->paths + path_at, entries[index].path, bytes);
        path_at += bytes;
        entry->first_size = schema->sizes_count;
        if (entry->kind == SHMSERVE_LONG)
            entry->constant = memcpy(schema->constants + LONG_LIMIT * index, entry->constant, entry->constant_bytes);
        if (entry->kind > SHMSERVE_LIST)
            entry->dims = 0;
        else if (is_number((int)entry->kind)) {
            entry->dims = 0;
            entry->dtype = entry->kind == SHMSERVE_FLOAT ? SHMSERVE_F64 : SHMSERVE_I64;
        }
        else {
            entry->dims = schema->leaves[leaf].dimensions;
            entry->dtype = (enum shmserve_dtype)schema->leaves[leaf].dtype;
            leaf++;
        }
        schema->sizes_count += entry->dims;
    }
    schema->entries_count = (uint32_t)count;
}

/* The sizes of a loan that gives none. */
static void set_default_sizes(shmserve_schema *schema, const shmserve_entry *entries)
{
    for (uint32_t index = 0; index < schema->entries_count; index++) {
        shmserve_entry *entry = &schema->entries[index];
        for (uint32_t dimension = 0; dimension < entry->dims; dimension++) {
            uint64_t size = entries[index].shape[dimension];
            entry->shape[dimension] = size;
            schema->default_sizes[entry->first_size + dimension] = size ? size : SHMSERVE_ANY_SIZE;
        }
    }
}

static int build(shmserve_client *client, shmserve_schema *schema, const shmserve_entry *entries, size_t count,
                 const uint8_t *metadata, size_t bytes)
{
    size_t paths_bytes = 0;
    for (size_t index = 0; index < count; index++)
        paths_bytes += strlen(entries[index].path) + 1;
    if (!schema_read(&schema->tree, metadata, bytes))
        return fail(
            client, SHMSERVE_ARGUMENT,
            "these %zu entries are no tree: it has more than %d values or two equal keys, or a constant is not in its "
            "shortest form",
            count, NODE_LIMIT);
    schema->metadata = new_memory(client, bytes, 1);
    if (schema->metadata == NULL || !allocate(client, schema, count, paths_bytes))
        return fail(client, SHMSERVE_MEMORY, "this process has no memory for a structure of %zu entries", count);
    memcpy(schema->metadata, metadata, bytes);
    schema->metadata_bytes = bytes;
    copy_entries(schema, entries, count);
    return SHMSERVE_OK;
}

static int add_declared(shmserve_client *client, const shmserve_entry *entries, size_t count, const uint8_t *metadata,
                        size_t bytes, shmserve_schema **made)
{
    shmserve_schema *schema = new_memory(client, 1, sizeof *schema);
    if (schema == NULL)
        return fail(client, SHMSERVE_MEMORY, "this process has no memory for a structure of %zu entries", count);
    schema->owner = client;
    int status = build(client, schema, entries, count, metadata, bytes);
    if (status != SHMSERVE_OK) {
        free_declared(schema);
        return status;
    }
    schema->number = ++client->declared_count;
    schema->next = client->declared;
    client->declared = schema;
    *made = schema;
    return SHMSERVE_OK;
}

EXPORTED int shmserve_declare(shmserve_client *client, const shmserve_entry *entries, size_t count,
                              const shmserve_schema **schema)
{
    uint8_t *metadata = client->metadata;
    size_t bytes;
    *schema = NULL;
    if (client->forks != forks_count())
        return check_usable(client);
    int status = metadata_of(client, entries, count, metadata, &bytes);
    if (status != SHMSERVE_OK)
        return status;
    shmserve_schema *found = find_declared(client, metadata, bytes);
    /* Lists of containers that are declared otherwise, as with a dict that is spelled out, have entries of their own.
     */
    if (found != NULL && found->entries_count != count)
        return fail(
            client, SHMSERVE_ARGUMENT,
            "this structure was declared before with %u entries, and now with %zu: leave out dicts that have entries",
            found->entries_count, count);
    if (found == NULL && (status = add_declared(client, entries, count, metadata, bytes, &found)) != SHMSERVE_OK)
        return status;
    set_default_sizes(found, entries);
    /* A service that was loading its model may have one now. */
    if (client->model == NULL && client->lease >= 0 && !client->is_lost &&
        monotonic_ns() - client->described_ns > REFRESH_NS)
        (void)refresh_model(client, after(1000000000u));
    status = compare_structure(client, found);
    if (status == SHMSERVE_MISMATCH && client->lease >= 0 && !client->is_lost &&
        monotonic_ns() - client->described_ns > REFRESH_NS) {
        /* The model may have been updated since it was described. */
        if (refresh_model(client, after(1000000000u)) == SHMSERVE_OK)
            status = compare_structure(client, found);
        else
            (void)compare_structure(client, found);
    }
    if (status == SHMSERVE_OK)
        *schema = found;
    return status;
}
