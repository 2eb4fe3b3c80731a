/* The comparison of a structure with what the model was declared to take: the rules of shmserve/contract.py and
 * client/contract_check.py. A contract names each entry as TOML does ("robot.joints", "poses[2]"). Nothing here
 * allocates.
 */

#include "client.h"
#include "core/utf8.h"

#include <stdio.h>
#include <string.h>

enum { NAME_ROOM = STRUCTURE_PATH_ROOM };

const char *const contract_dtypes[DTYPES] = {"bool",    "int8",     "uint8",   "int16",     "uint16",
                                             "float16", "bfloat16", "int32",   "uint32",    "float32",
                                             "int64",   "uint64",   "float64", "complex64", "complex128"};

/* The entry of an observation that a contract has a name for. */
typedef struct {
    char type[24]; /* "float32", "str", "list[int]" */
    bool is_array; /* `type` is a dtype */
    bool has_length;
    uint32_t dims;
    int64_t first_size; /* index of its first size; -1: `length` is part of the structure */
    uint64_t length;
} Given;

typedef struct {
    const Schema *tree;
    const uint8_t *metadata;
    char *name; /* of the value that the walk is at */
    const char *sought;
    Given *found;
    uint32_t sizes_count; /* of the leaves that the walk has passed */
} Walk;

/* As str.isspace of Python. */
static bool is_space(uint32_t character)
{
    return (character >= 9 && character <= 13) || (character >= 28 && character <= 32) || character == 0x85 ||
           character == 0xa0 || character == 0x1680 || (character >= 0x2000 && character <= 0x200a) ||
           character == 0x2028 || character == 0x2029 || character == 0x202f || character == 0x205f ||
           character == 0x3000;
}

/* Whether a key needs no quotes. */
static bool is_bare(const uint8_t *key, size_t bytes)
{
    uint32_t character;
    for (size_t at = 0, length; at < bytes; at += length)
        if ((length = utf8_character(key + at, bytes - at, &character)) == 0 || is_space(character) ||
            character == '.' || character == '"' || character == '[' || character == ']')
            return false;
    return bytes > 0;
}

/* The key as json.dumps writes it. */
static size_t quote(char *to, const uint8_t *key, size_t bytes)
{
    static const char plain[] = "\b\t\n\f\r\"\\", letters[] = "btnfr\"\\";
    size_t at = 0;
    to[at++] = '"';
    for (size_t index = 0; index < bytes; index++) {
        const char *special = key[index] ? strchr(plain, key[index]) : NULL;
        if (special != NULL) {
            to[at++] = '\\';
            to[at++] = letters[special - plain];
        }
        else if (key[index] < 0x20)
            at += (size_t)sprintf(to + at, "\\u%04x", key[index]);
        else
            to[at++] = (char)key[index];
    }
    to[at++] = '"';
    return at;
}

/* Add the step of a key or of an item to the name, which has this many bytes; how many it has then. */
static size_t add_step(Walk *walk, size_t bytes, const Node *child, const Node *parent, uint32_t item)
{
    const uint8_t *key = walk->metadata + child->key_at;
    if (NAME_ROOM - bytes < 6 * (size_t)child->key_bytes + 32)
        return bytes; /* no contract has such a name */
    if (parent->type != NODE_DICT)
        return bytes + (size_t)sprintf(walk->name + bytes, "[%u]", item);
    if (child->key_type == KEY_INT)
        return bytes + (size_t)sprintf(walk->name + bytes, "[%lld]", (long long)child->key);
    if (bytes)
        walk->name[bytes++] = '.';
    if (!is_bare(key, child->key_bytes))
        return bytes + quote(walk->name + bytes, key, child->key_bytes);
    memcpy(walk->name + bytes, key, child->key_bytes);
    return bytes + child->key_bytes;
}

/* bool, int, float or str, which a list of them alone is one entry of; NULL for other values. */
static const char *scalar_type(const Node *node)
{
    if (node->type == NODE_LONG)
        return "int";
    if (node->type != NODE_LEAF)
        return NULL;
    switch (node->leaf.kind) {
    case LEAF_INT:
        return "int";
    case LEAF_FLOAT:
        return "float";
    case LEAF_BOOL:
        return "bool";
    case LEAF_STR:
        return "str";
    default:
        return NULL;
    }
}

static uint32_t after_node(const Schema *tree, uint32_t index)
{
    for (uint32_t left = 1; left; index++)
        left += tree->nodes[index].count - 1;
    return index;
}

/* The type that all items of a list or a tuple have, if they are scalars of one type. */
static const char *item_type(const Schema *tree, uint32_t index)
{
    const Node *node = &tree->nodes[index];
    const char *type = NULL;
    for (uint32_t item = 0; item < node->count; item++) {
        const char *own = scalar_type(&tree->nodes[index + 1 + item]);
        if (own == NULL || (type != NULL && own != type))
            return NULL;
        type = own;
    }
    return type;
}

static Given describe_leaf(const Leaf *leaf, uint32_t first_size)
{
    Given given = {.first_size = first_size};
    const char *type = "bytes";
    if (leaf->kind == LEAF_ARRAY || leaf->kind == LEAF_SCALAR) {
        given.is_array = true;
        given.dims = leaf->dimensions;
        type = contract_dtypes[leaf->dtype];
    }
    else if (leaf->kind == LEAF_LIST) {
        given.has_length = true;
        type = leaf->dtype == DTYPE_B1 ? "list[bool]" : leaf->dtype == DTYPE_I8 ? "list[int]" : "list[float]";
    }
    else if (leaf->kind != LEAF_BYTES)
        type = leaf->kind == LEAF_INT     ? "int"
               : leaf->kind == LEAF_FLOAT ? "float"
               : leaf->kind == LEAF_BOOL  ? "bool"
                                          : "str";
    (void)snprintf(given.type, sizeof given.type, "%s", type);
    return given;
}

/* Describe a value that is one entry; false for a container of entries. */
static bool describe(const Walk *walk, uint32_t index, Given *given)
{
    const Node *node = &walk->tree->nodes[index];
    const char *items = node->type == NODE_LIST || node->type == NODE_TUPLE ? item_type(walk->tree, index) : NULL;
    *given = (Given){.first_size = -1};
    switch (node->type) {
    case NODE_LEAF:
        *given = describe_leaf(&node->leaf, walk->sizes_count);
        return true;
    case NODE_NONE:
    case NODE_LONG:
        (void)snprintf(given->type, sizeof given->type, "%s", node->type == NODE_NONE ? "None" : "int");
        return true;
    default:
        if (node->count && items == NULL)
            return false;
        given->has_length = items != NULL;
        given->length = node->count;
        if (items != NULL)
            (void)snprintf(given->type, sizeof given->type, "list[%s]", items);
        else
            (void)snprintf(given->type, sizeof given->type, "%s",
                           node->type == NODE_DICT   ? "dict"
                           : node->type == NODE_LIST ? "list"
                                                     : "tuple");
        return true;
    }
}

/* Walk on from a value whose name has this many bytes; true once the sought entry is found. */
static bool walk_on(Walk *walk, uint32_t index, size_t bytes)
{
    const Node *node = &walk->tree->nodes[index];
    Given given;
    walk->name[bytes] = '\0';
    if (describe(walk, index, &given)) {
        if (strcmp(walk->name, walk->sought) == 0) {
            *walk->found = given;
            return true;
        }
        uint32_t end = after_node(walk->tree, index);
        for (; index < end; index++)
            if (walk->tree->nodes[index].type == NODE_LEAF)
                walk->sizes_count += walk->tree->nodes[index].leaf.dimensions;
        return false;
    }
    uint32_t child = index + 1;
    for (uint32_t item = 0; item < node->count; item++, child = after_node(walk->tree, child))
        if (walk_on(walk, child, add_step(walk, bytes, &walk->tree->nodes[child], node, item)))
            return true;
    return false;
}

static bool has_key(const uint8_t *metadata, const Node *node, const char *key)
{
    size_t bytes = strlen(key);
    return node->key_type == KEY_TEXT && node->key_bytes == bytes && memcmp(metadata + node->key_at, key, bytes) == 0;
}

/* The child of a dict with this key; 0 if there is none. */
static uint32_t child_of(const Schema *tree, const uint8_t *metadata, uint32_t index, const char *key)
{
    uint32_t child = index + 1;
    for (uint32_t item = 0; tree->nodes[index].type == NODE_DICT && item < tree->nodes[index].count;
         item++, child = after_node(tree, child))
        if (has_key(metadata, &tree->nodes[child], key))
            return child;
    return 0;
}

/* The value that the contract describes: all of it, or the observation within a request to a GR00T server. false: none.
 */
static bool described_value(const shmserve_client *client, const shmserve_schema *schema, uint32_t *index)
{
    const Schema *tree = &schema->tree;
    const char *style = json_text(
        &client->description,
        json_member(&client->description, json_member(&client->description, client->model, "metadata"), "style"));
    *index = 0;
    if (style == NULL || strcmp(style, "gr00t") != 0 || tree->nodes[0].type != NODE_DICT || tree->nodes[0].count != 2)
        return true;
    uint32_t data = child_of(tree, schema->metadata, 0, "data");
    if (!data || tree->nodes[data].type != NODE_DICT || !child_of(tree, schema->metadata, 0, "endpoint"))
        return true;
    *index = child_of(tree, schema->metadata, data, "observation");
    return *index != 0;
}

static bool find_given(shmserve_client *client, const shmserve_schema *schema, uint32_t root, const char *name,
                       Given *given)
{
    Walk walk = {
        .tree = &schema->tree, .metadata = schema->metadata, .name = client->path, .sought = name, .found = given};
    for (uint32_t index = 0; index < root; index++)
        if (schema->tree.nodes[index].type == NODE_LEAF)
            walk.sizes_count += schema->tree.nodes[index].leaf.dimensions;
    return walk_on(&walk, root, 0);
}

/* bool, int or float for a single number of any type, else NULL. */
static const char *number_kind(const char *type, bool is_array, uint32_t dims)
{
    static const char *const kinds[][2] = {
        {"bool", "bool"}, {"int", "int"}, {"uint", "int"}, {"float", "float"}, {"bfloat", "float"}};
    if (is_array && dims)
        return NULL;
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
        if (is_array ? strncmp(type, kinds[kind][0], strlen(kinds[kind][0])) == 0
                     : strcmp(type, kinds[kind][0]) == 0 && strcmp(kinds[kind][0], kinds[kind][1]) == 0)
            return kinds[kind][1];
    return NULL;
}

/* The size that a contract declares; SHMSERVE_ANY_SIZE: any, which it declares as -1. */
static uint64_t declared_size(const JsonValue *value)
{
    uint64_t size;
    return json_word(value, &size) ? size : SHMSERVE_ANY_SIZE;
}

static bool is_size(uint64_t declared, uint64_t given)
{
    return declared == SHMSERVE_ANY_SIZE || given == SHMSERVE_ANY_SIZE || declared == given;
}

/* Whether an entry is what is declared; fills in the declared sizes, if there is room for them. */
static bool is_declared(const Json *json, const JsonValue *declared, const Given *given, const uint64_t *sizes,
                        uint64_t *declared_sizes)
{
    const JsonValue *dtype = json_member(json, declared, "dtype"), *shape = json_member(json, declared, "shape");
    const JsonValue *length = json_member(json, declared, "length");
    const char *type = json_text(json, dtype != NULL ? dtype : json_member(json, declared, "type"));
    uint32_t dims = json_is(shape, JSON_ARRAY) ? shape->count : 0;
    if (type == NULL)
        return true; /* what no daemon writes */
    const char *takes = number_kind(type, dtype != NULL, dims),
               *is = number_kind(given->type, given->is_array, given->dims);
    if (takes != NULL && is != NULL &&
        (strcmp(takes, is) == 0 || (strcmp(takes, "float") == 0 && strcmp(is, "int") == 0)))
        return true;
    if ((dtype != NULL) != given->is_array || strcmp(type, given->type) != 0)
        return false;
    if (!given->is_array) {
        if ((length != NULL) != given->has_length)
            return false;
        if (length == NULL)
            return true;
        if (given->first_size < 0)
            return is_size(declared_size(length), given->length);
        if (declared_sizes != NULL)
            declared_sizes[given->first_size] = declared_size(length);
        return is_size(declared_size(length), sizes[given->first_size]);
    }
    if (dims != given->dims)
        return false;
    bool fits = true;
    for (uint32_t dimension = 0; dimension < dims; dimension++) {
        uint64_t declared_one = declared_size(shape + 1 + dimension);
        if (declared_sizes != NULL)
            declared_sizes[given->first_size + dimension] = declared_one;
        fits = fits && is_size(declared_one, sizes[given->first_size + dimension]);
    }
    return fits;
}

static void add_size(Text *text, uint64_t size)
{
    if (size == SHMSERVE_ANY_SIZE)
        text_add(text, "?");
    else
        text_add(text, "%llu", (unsigned long long)size);
}

static void add_given(Text *text, const Given *given, const uint64_t *sizes)
{
    text_add(text, "%s", given->type);
    if (given->has_length) {
        text_add(text, " of ");
        add_size(text, given->first_size < 0 ? given->length : sizes[given->first_size]);
    }
    for (uint32_t dimension = 0; given->is_array && dimension < given->dims; dimension++) {
        text_add(text, dimension ? ", " : "[");
        add_size(text, sizes[given->first_size + dimension]);
    }
    if (given->is_array)
        text_add(text, given->dims ? "]" : "[]");
}

/* A size that a contract declares: -1 is any, as in Python's texts. */
static void add_declared_size(Text *text, uint64_t size)
{
    if (size == SHMSERVE_ANY_SIZE)
        text_add(text, "-1");
    else
        add_size(text, size);
}

static void add_declared(Text *text, const Json *json, const JsonValue *declared)
{
    const JsonValue *dtype = json_member(json, declared, "dtype"), *shape = json_member(json, declared, "shape");
    const JsonValue *length = json_member(json, declared, "length");
    const char *type = json_text(json, dtype != NULL ? dtype : json_member(json, declared, "type"));
    text_add(text, "%s", type);
    if (length != NULL) {
        text_add(text, " of ");
        add_declared_size(text, declared_size(length));
    }
    uint32_t dims = json_is(shape, JSON_ARRAY) ? shape->count : 0;
    for (uint32_t dimension = 0; dimension < dims; dimension++) {
        text_add(text, dimension ? ", " : "[");
        add_declared_size(text, declared_size(shape + 1 + dimension));
    }
    if (dtype != NULL)
        text_add(text, dims ? "]" : "[]");
}

/* Compare with these sizes: OK, or MISMATCH with the text, a line for each difference. */
static int compare(shmserve_client *client, const shmserve_schema *schema, const uint64_t *sizes,
                   uint64_t *declared_sizes)
{
    const Json *json = &client->description;
    const JsonValue *model = client->model;
    const JsonValue *table = json_member(json, json_member(json, model, "contract"), "observation");
    uint32_t root, differences = 0;
    Text text;
    if (!json_is(table, JSON_OBJECT) || !described_value(client, schema, &root))
        return SHMSERVE_OK;
    uint32_t end = table->next;
    for (uint32_t at = (uint32_t)(table - json->values) + 1; at < end; at = json->values[at + 1].next) {
        const JsonValue *declared = &json->values[at + 1];
        const char *name = json_text(json, &json->values[at]);
        Given given;
        bool is_given = name != NULL && find_given(client, schema, root, name, &given);
        if (name == NULL || (is_given && is_declared(json, declared, &given, sizes, declared_sizes)))
            continue;
        if (!differences++) {
            const char *called = json_text(json, json_member(json, model, "name"));
            text_begin(&text, client->text, sizeof client->text);
            text_add(&text,
                     "the observation is not what '%s' (version %s), served by '%s', was declared to take (declared -> "
                     "given):",
                     called != NULL ? called : "", json_text(json, json_member(json, model, "version")),
                     client->service);
        }
        text_add(&text, "\n  observation%s%s: ", *name && *name != '[' ? "." : "", name);
        add_declared(&text, json, declared);
        text_add(&text, " -> ");
        if (is_given)
            add_given(&text, &given, sizes);
        else
            text_add(&text, "absent");
    }
    if (!differences)
        return SHMSERVE_OK;
    text_add(&text, "\nSend what it declares, or open the client with check_contract = 0 if it takes this, too");
    return SHMSERVE_MISMATCH;
}

int compare_structure(shmserve_client *client, shmserve_schema *schema)
{
    for (uint32_t size = 0; size < schema->sizes_count; size++)
        schema->declared_sizes[size] = SHMSERVE_ANY_SIZE;
    schema->is_refused = false;
    if (!client->options.check_contract || client->model == NULL)
        return SHMSERVE_OK;
    int status = compare(client, schema, schema->default_sizes, schema->declared_sizes);
    schema->is_refused = status != SHMSERVE_OK;
    return status;
}

int compare_all(shmserve_client *client)
{
    int status = SHMSERVE_OK;
    for (shmserve_schema *schema = client->declared; schema != NULL; schema = schema->next)
        if (compare_structure(client, schema) != SHMSERVE_OK)
            status = SHMSERVE_MISMATCH;
    return status;
}

int compare_sizes(shmserve_client *client, const shmserve_schema *schema, const uint64_t *sizes)
{
    if (!client->options.check_contract || client->model == NULL)
        return SHMSERVE_OK;
    if (!schema->is_refused) {
        uint32_t size = 0;
        while (size < schema->sizes_count && is_size(schema->declared_sizes[size], sizes[size]))
            size++;
        if (size == schema->sizes_count)
            return SHMSERVE_OK;
    }
    return compare(client, schema, sizes, NULL);
}
