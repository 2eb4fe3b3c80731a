/* Fuzzing of the core in C without an interpreter: the metadata reader and writer, and the layout.
 *
 *     core_fuzz SEEDS INPUTS [RANDOM]
 *
 * SEEDS has metadata, each behind its length (4 bytes). An input is a seed with a few changes. Metadata that is accepted must be
 * the bytes that the writer gives its tree, so that no structure has two forms. A layout is compared with one that is computed
 * in 128 bits. Prints the number of inputs and of those that were accepted.
 */

#include "core/schema.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAIL(...) (fprintf(stderr, __VA_ARGS__), abort())

enum { MOST_SEEDS = 4096, MOST_BYTES = METADATA_LIMIT + 64 };

static uint64_t state;

static uint64_t random_word(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static size_t below(size_t bound) { return bound ? random_word() % bound : 0; }

static struct {
    uint8_t *bytes;
    uint32_t count;
} seeds[MOST_SEEDS];
static size_t seeds_count;

static void read_seeds(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        FAIL("no file %s\n", path);
    uint32_t count;
    while (seeds_count < MOST_SEEDS && fread(&count, sizeof count, 1, file) == 1) {
        if (count > MOST_BYTES || (seeds[seeds_count].bytes = malloc(count + 1)) == NULL ||
            fread(seeds[seeds_count].bytes, 1, count, file) != count)
            FAIL("a seed is cut short\n");
        seeds[seeds_count++].count = count;
    }
    fclose(file);
    if (!seeds_count)
        FAIL("no seeds\n");
}

/* Operations of the grammar, and bytes at the edges. */
static const uint8_t words[] = {0x80, 5, '.', 'N', 0x8a, 0x8c, 'X', 'K', 'M', 'J', 0x87, 'Q', '(', '}', 'u', ']', 'e', 't', 0, 1,
                                15, 16, 17, 127, 128, 255};

static size_t change(uint8_t *bytes, size_t count)
{
    size_t at = below(count + 1), other, length;
    switch (below(7)) {
    case 0: /* another byte */
        if (at < count)
            bytes[at] = (uint8_t)random_word();
        return count;
    case 1:
        if (at < count)
            bytes[at] = words[below(sizeof words)];
        return count;
    case 2: /* insert */
        if (count == MOST_BYTES)
            return count;
        memmove(bytes + at + 1, bytes + at, count - at);
        bytes[at] = words[below(sizeof words)];
        return count + 1;
    case 3: /* remove */
        length = below(count - at + 1) % 9;
        memmove(bytes + at, bytes + at + length, count - at - length);
        return count - length;
    case 4: /* repeat a part */
        length = below(count - at + 1) % 65;
        if (count + length > MOST_BYTES)
            return count;
        memmove(bytes + at + length, bytes + at, count - at);
        return count + length;
    case 5: /* a part of another seed */
        other = below(seeds_count);
        length = below(seeds[other].count + 1) % 65;
        if (count + length > MOST_BYTES)
            return count;
        memmove(bytes + at + length, bytes + at, count - at);
        memcpy(bytes + at, seeds[other].bytes + below(seeds[other].count - length + 1), length);
        return count + length;
    default: /* a bit */
        if (at < count)
            bytes[at] ^= (uint8_t)(1u << below(8));
        return count;
    }
}

/* Write the value at this node; the node after it. */
static uint32_t write_node(MetadataWriter *writer, const Schema *schema, const uint8_t *metadata, uint32_t index)
{
    const Node *node = &schema->nodes[index++];
    if (node->key_type == KEY_TEXT)
        metadata_text_key(writer, (const char *)metadata + node->key_at, node->key_bytes);
    else if (node->key_type == KEY_INT)
        metadata_int_key(writer, node->key);
    switch (node->type) {
    case NODE_NONE:
        metadata_none(writer);
        return index;
    case NODE_LONG:
        metadata_long(writer, metadata + node->at, node->bytes);
        return index;
    case NODE_LEAF:
        metadata_leaf(writer, node->leaf.kind, node->leaf.dtype, node->leaf.dimensions);
        return index;
    default:
        metadata_open(writer, node->type);
        for (uint32_t entry = 0; entry < node->count; entry++)
            index = write_node(writer, schema, metadata, index);
        metadata_close(writer, node->type);
        return index;
    }
}

static void check_written(const Schema *schema, const uint8_t *metadata, size_t count)
{
    static uint8_t again[MOST_BYTES];
    MetadataWriter writer;
    metadata_begin(&writer, again, sizeof again);
    if (write_node(&writer, schema, metadata, 0) != schema->nodes_count || !metadata_end(&writer))
        FAIL("a tree that was read cannot be written\n");
    if (writer.count != count || memcmp(again, metadata, count) != 0)
        FAIL("metadata of %zu bytes has another form of %zu\n", count, writer.count);
}

static uint64_t some_size(void)
{
    switch (below(8)) {
    case 0:
        return random_word();
    case 1:
        return (uint64_t)1 << below(64);
    case 2:
        return ((uint64_t)1 << below(64)) - 1;
    case 3:
        return 0;
    default:
        return below(300);
    }
}

static void check_layout(const Schema *schema)
{
    uint64_t *sizes = malloc((schema->sizes_count + 1) * sizeof *sizes), payload_bytes = 0;
    Place *places = malloc((schema->leaves_count + 1) * sizeof *places);
    if (sizes == NULL || places == NULL)
        FAIL("no memory\n");
    for (uint32_t index = 0; index < schema->sizes_count; index++)
        sizes[index] = some_size();
    /* The sizes of each leaf that is not a number follow one another; numbers have none. */
    int made = lay_out(schema->leaves, schema->leaves_count, sizes, schema->sizes_count, schema->numbers_count, places,
                       &payload_bytes);
    __uint128_t end = (__uint128_t)8 * (schema->sizes_count + schema->numbers_count), device_end = 0;
    const uint64_t *size = sizes;
    int possible = 1;
    for (uint32_t index = 0; index < schema->leaves_count; index++) {
        const Leaf *leaf = &schema->leaves[index];
        __uint128_t bytes = dtype_bytes(leaf->dtype), space = bytes;
        for (int dimension = 0; dimension < leaf->dimensions; dimension++, size++) {
            space *= *size ? *size : 1;
            bytes = *size ? bytes * *size : 0;
            possible &= space < LEAF_BYTES_LIMIT;
            if (!possible)
                break;
        }
        if (!possible)
            break;
        __uint128_t *behind = leaf->kind == LEAF_DEVICE ? &device_end : &end;
        unsigned alignment = leaf->kind == LEAF_DEVICE ? DEVICE_ALIGNMENT : LEAF_ALIGNMENT;
        __uint128_t offset = (*behind + alignment - 1) / alignment * alignment;
        *behind = offset + bytes;
        if (*behind > PAYLOAD_LIMIT) {
            possible = 0;
            break;
        }
        if (made && (places[index].offset != offset || places[index].size != bytes))
            FAIL("leaf %" PRIu32 " lies elsewhere\n", index);
    }
    if (made != possible || (made && payload_bytes != end))
        FAIL("a layout is %s, but %s\n", made ? "made" : "refused", possible ? "possible" : "impossible");
    free(places);
    free(sizes);
}

/* The reader that allocates nothing says the same of metadata, or that it has too little room. */
static void check_fixed(const Schema *schema, int accepted, const uint8_t *metadata, size_t count)
{
    static Node nodes[NODE_LIMIT];
    static Leaf leaves[NODE_LIMIT];
    static SchemaKey keys[NODE_LIMIT];
    uint32_t room = below(4) ? NODE_LIMIT : (uint32_t)below(40);
    SchemaMemory memory = {nodes, leaves, keys, room};
    Schema fixed;
    int found = schema_read_into(&fixed, &memory, metadata, count);
    if (found == SCHEMA_ROOM ? accepted && schema->nodes_count <= room : found != accepted)
        FAIL("metadata is accepted: %d, with room for %" PRIu32 " nodes: %d\n", accepted, room, found);
    if (found == 1 && (fixed.nodes_count != schema->nodes_count || fixed.leaves_count != schema->leaves_count ||
                       memcmp(fixed.nodes, schema->nodes, fixed.nodes_count * sizeof *nodes) != 0))
        FAIL("metadata has two trees\n");
}

int main(int count, char **arguments)
{
    static uint8_t bytes[MOST_BYTES];
    if (count < 3)
        FAIL("core_fuzz SEEDS INPUTS [RANDOM]\n");
    read_seeds(arguments[1]);
    uint64_t inputs = strtoull(arguments[2], NULL, 10), accepted = 0;
    state = 0x9e3779b97f4a7c15u + (count > 3 ? strtoull(arguments[3], NULL, 10) : 0);
    for (uint64_t input = 0; input < inputs; input++) {
        size_t seed = below(seeds_count), length = seeds[seed].count;
        memcpy(bytes, seeds[seed].bytes, length);
        for (size_t changes = below(5); changes; changes--)
            length = change(bytes, length);
        /* Exactly as large as the input, so that a read behind it is seen. */
        uint8_t *exact = malloc(length ? length : 1);
        if (exact == NULL)
            FAIL("no memory\n");
        memcpy(exact, bytes, length);
        Schema schema;
        int is_accepted = schema_read(&schema, exact, length);
        check_fixed(&schema, is_accepted, exact, length);
        if (is_accepted) {
            accepted++;
            check_written(&schema, exact, length);
            check_layout(&schema);
            schema_free(&schema);
        }
        free(exact);
    }
    printf("%" PRIu64 " inputs, %" PRIu64 " accepted\n", inputs, accepted);
    return 0;
}
