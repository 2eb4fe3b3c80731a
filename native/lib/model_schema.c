/* The structure that a model was declared to take, from its contract: each entry has a name as TOML writes it. [S]. */

#include "client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEP_LIMIT = DEPTH_LIMIT + 1 };

typedef struct {
    const char *text; /* of a key, as the name has it; NULL: an integer */
    size_t bytes;
    long long number;
} Step;

typedef struct {
    Step steps[STEP_LIMIT];
    int count;
} Name;

typedef struct {
    shmserve_client *client;
    const Json *json;
    Name *names;
    const JsonValue **values;
    size_t names_count, entries_count, entries_room;
    shmserve_entry *entries;
    bool is_out_of_memory;
} Model;

/* Read "robot.joints", "\"a.b\"[2]": false for what is no name. */
static bool read_name(Name *name, const char *text)
{
    name->count = 0;
    for (bool is_first = true; *text; is_first = false) {
        Step step = {0};
        char *end;
        if (name->count == STEP_LIMIT)
            return false;
        if (*text == '[') {
            step.number = strtoll(text + 1, &end, 10);
            if (*end != ']' || end == text + 1)
                return false;
            text = end + 1;
        }
        else {
            if (!is_first && *text++ != '.')
                return false;
            step.text = text;
            if (*text == '"') {
                for (text++; *text && *text != '"'; text++)
                    if (*text == '\\' && text[1])
                        text++;
                if (!*text++)
                    return false;
            }
            else
                text += strcspn(text, ".[");
            step.bytes = (size_t)(text - step.text);
            if (!step.bytes)
                return false;
        }
        name->steps[name->count++] = step;
    }
    return true;
}

static bool is_same_step(const Step *one, const Step *other)
{
    if (one->text == NULL || other->text == NULL)
        return one->text == other->text && one->number == other->number;
    return one->bytes == other->bytes && memcmp(one->text, other->text, one->bytes) == 0;
}

static bool has_prefix(const Name *name, const Name *of, int count)
{
    if (name->count < count)
        return false;
    for (int step = 0; step < count; step++)
        if (!is_same_step(&name->steps[step], &of->steps[step]))
            return false;
    return true;
}

/* Whether the container of the first `count` steps of a name is a list: its entries are 0, 1, 2 and so on. */
static bool is_list(const Model *model, const Name *of, int count)
{
    long long next = 0;
    for (size_t index = 0; index < model->names_count; index++) {
        const Name *name = &model->names[index];
        if (!has_prefix(name, of, count) || name->count == count)
            continue;
        const Step *step = &name->steps[count];
        if (step->text != NULL || (step->number != next && step->number != next - 1))
            return false;
        next = step->number + 1;
    }
    return true;
}

/* A key of a name, with what JSON writes of it read, as a path has it. */
static size_t write_text_step(char *to, const Step *step)
{
    char object[2 * KEY_LIMIT + 16];
    const char *key = step->text;
    size_t bytes = step->bytes, at = 0;
    Json json = {0};
    if (*key == '"' && bytes < sizeof object - 8) {
        int count = snprintf(object, sizeof object, "{\"k\":%.*s}", (int)bytes, key);
        if (json_read(&json, object, (size_t)count) && json.count == 3) {
            key = json.text + json.values[2].at;
            bytes = json.values[2].bytes;
        }
    }
    for (size_t index = 0; index < bytes; index++) {
        char escape = key[index] == '/'                 ? '1'
                      : key[index] == '~'               ? '0'
                      : key[index] == '#' && index == 0 ? '2'
                      : key[index] == '\0'              ? '3'
                                                        : '\0';
        if (escape)
            to[at++] = '~';
        to[at++] = escape ? escape : key[index];
    }
    if (!bytes) {
        memcpy(to, "~4", 2);
        at = 2;
    }
    json_free(&json);
    return at;
}

static shmserve_entry *add_entry(Model *model, const char *path)
{
    if (model->entries_count == model->entries_room) {
        size_t room = model->entries_room ? 2 * model->entries_room : 16;
        shmserve_entry *entries =
            room <= 2 * (size_t)NODE_LIMIT ? realloc(model->entries, room * sizeof *entries) : NULL;
        if (entries == NULL) {
            model->is_out_of_memory = true;
            return NULL;
        }
        model->entries = entries;
        model->entries_room = room;
    }
    shmserve_entry *entry = &model->entries[model->entries_count];
    *entry = (shmserve_entry){.path = strdup(path)};
    if (entry->path == NULL) {
        model->is_out_of_memory = true;
        return NULL;
    }
    model->entries_count++;
    return entry;
}

/* The path of an entry, in `path`; lists that begin with it are added. */
static void write_path(Model *model, const Name *name, const Name *before, char *path)
{
    size_t bytes = 0;
    path[0] = '\0';
    for (int step = 0; step < name->count && !model->is_out_of_memory; step++) {
        bool list = is_list(model, name, step);
        bool is_new = before == NULL || !has_prefix(before, name, step) || before->count == step;
        if (list && is_new) {
            shmserve_entry *entry = add_entry(model, path);
            if (entry != NULL)
                entry->kind = SHMSERVE_SEQUENCE;
        }
        if (step)
            path[bytes++] = '/';
        if (name->steps[step].text != NULL)
            bytes += write_text_step(path + bytes, &name->steps[step]);
        else
            bytes += (size_t)sprintf(path + bytes, list ? "%lld" : "#%lld", name->steps[step].number);
        path[bytes] = '\0';
    }
}

static bool set_array(shmserve_entry *entry, const char *dtype, const JsonValue *shape)
{
    if (!json_is(shape, JSON_ARRAY) || shape->count > SHMSERVE_MAX_DIMS)
        return false;
    entry->kind = SHMSERVE_ARRAY;
    entry->dims = shape->count;
    for (uint32_t dimension = 0; dimension < shape->count; dimension++)
        if (!json_word(shape + 1 + dimension, &entry->shape[dimension]))
            entry->shape[dimension] = SHMSERVE_ANY_SIZE;
    for (size_t index = 0; index < DTYPES; index++)
        if (strcmp(contract_dtypes[index], dtype) == 0) {
            entry->dtype = (enum shmserve_dtype)index;
            return true;
        }
    return false;
}

/* The kind of an entry by its Python type; a list of texts has entries of its own. */
static bool set_type(Model *model, shmserve_entry *entry, const char *type, uint64_t length, char *path)
{
    static const struct {
        const char *name;
        enum shmserve_kind kind;
        enum shmserve_dtype dtype;
    } types[] = {{"int", SHMSERVE_INT, SHMSERVE_I64},          {"float", SHMSERVE_FLOAT, SHMSERVE_F64},
                 {"bool", SHMSERVE_BOOL, SHMSERVE_I64},        {"str", SHMSERVE_STR, SHMSERVE_U8},
                 {"bytes", SHMSERVE_BYTES, SHMSERVE_U8},       {"None", SHMSERVE_NONE, SHMSERVE_U8},
                 {"dict", SHMSERVE_DICT, SHMSERVE_U8},         {"list", SHMSERVE_SEQUENCE, SHMSERVE_U8},
                 {"tuple", SHMSERVE_TUPLE, SHMSERVE_U8},       {"list[int]", SHMSERVE_LIST, SHMSERVE_I64},
                 {"list[float]", SHMSERVE_LIST, SHMSERVE_F64}, {"list[bool]", SHMSERVE_LIST, SHMSERVE_BOOL8},
                 {"list[str]", SHMSERVE_SEQUENCE, SHMSERVE_U8}};
    for (size_t index = 0; index < sizeof types / sizeof *types; index++)
        if (strcmp(types[index].name, type) == 0) {
            entry->kind = types[index].kind;
            entry->dtype = types[index].dtype;
            entry->shape[0] = entry->kind == SHMSERVE_LIST ? length : 0;
            if (strcmp(type, "list[str]") == 0 && length == SHMSERVE_ANY_SIZE)
                return false; /* each text is an entry of the structure */
            size_t bytes = strlen(path);
            for (uint64_t item = 0; strcmp(type, "list[str]") == 0 && item < length; item++) {
                (void)sprintf(path + bytes, "%s%llu", bytes ? "/" : "", (unsigned long long)item);
                shmserve_entry *text = add_entry(model, path);
                if (text == NULL)
                    return true;
                text->kind = SHMSERVE_STR;
            }
            return true;
        }
    return false;
}

static int add_value(Model *model, size_t index, char *path)
{
    const Json *json = model->json;
    const JsonValue *value = model->values[index], *dtype = json_member(json, value, "dtype");
    const char *type = json_text(json, dtype != NULL ? dtype : json_member(json, value, "type"));
    const JsonValue *stated = json_member(json, value, "length");
    uint64_t length = 0;
    if (stated != NULL && !json_word(stated, &length))
        length = SHMSERVE_ANY_SIZE;
    write_path(model, &model->names[index], index ? &model->names[index - 1] : NULL, path);
    shmserve_entry *entry = model->is_out_of_memory ? NULL : add_entry(model, path);
    if (entry == NULL)
        return fail(model->client, SHMSERVE_MEMORY, "this process has no memory for the structure of the model of '%s'",
                    model->client->service);
    bool is_set = type != NULL && (dtype != NULL ? set_array(entry, type, json_member(json, value, "shape"))
                                                 : set_type(model, entry, type, length, path));
    if (is_set && !model->is_out_of_memory)
        return SHMSERVE_OK;
    return fail(
        model->client, SHMSERVE_MISMATCH,
        "the model of '%s' takes an entry '%.200s' of type %.100s%s, which a C program cannot send: let its policy take "
        "arrays, numbers and texts",
        model->client->service, path, type != NULL ? type : "none",
        length == SHMSERVE_ANY_SIZE ? " of any length" : "");
}

static int declare_all(Model *model, const JsonValue *table, const shmserve_schema **schema)
{
    uint32_t at = (uint32_t)(table - model->json->values) + 1;
    for (; at < table->next; at = model->json->values[at + 1].next) {
        const char *text = json_text(model->json, &model->json->values[at]);
        if (text == NULL || !read_name(&model->names[model->names_count], text))
            return fail(model->client, SHMSERVE_MISMATCH,
                        "the contract of the model of '%s' has an entry without a name", model->client->service);
        model->values[model->names_count++] = &model->json->values[at + 1];
    }
    char *path = malloc(STRUCTURE_PATH_ROOM);
    int status =
        path != NULL ? SHMSERVE_OK : fail(model->client, SHMSERVE_MEMORY, "this process has no memory for a path");
    for (size_t index = 0; status == SHMSERVE_OK && index < model->names_count; index++)
        status = add_value(model, index, path);
    free(path);
    return status == SHMSERVE_OK ? shmserve_declare(model->client, model->entries, model->entries_count, schema)
                                 : status;
}

EXPORTED int shmserve_declare_as_model(shmserve_client *client, const shmserve_schema **schema)
{
    int status = check_usable(client);
    *schema = NULL;
    if (status != SHMSERVE_OK || (status = refresh_model(client, after(1000000000u))) != SHMSERVE_OK)
        return status;
    if (client->model == NULL)
        return fail(client, SHMSERVE_UNAVAILABLE,
                    "the service '%s' is loading its model, shmserve-admin wait-ready waits for it", client->service);
    const Json *json = &client->description;
    const JsonValue *table = json_member(json, json_member(json, client->model, "contract"), "observation");
    if (!json_is(table, JSON_OBJECT))
        return fail(
            client, SHMSERVE_MISMATCH,
            "the model of '%s' declares nothing: give its package an example observation, or use shmserve_declare",
            client->service);
    Model model = {.client = client, .json = json};
    model.names = calloc(table->count + 1, sizeof *model.names);
    model.values = calloc(table->count + 1, sizeof *model.values);
    if (model.names == NULL || model.values == NULL)
        status = fail(client, SHMSERVE_MEMORY, "this process has no memory for the structure of the model of '%s'",
                      client->service);
    else
        status = declare_all(&model, table, schema);
    for (size_t index = 0; index < model.entries_count; index++)
        free((char *)(uintptr_t)model.entries[index].path);
    free(model.entries);
    free(model.names);
    free(model.values);
    return status;
}
