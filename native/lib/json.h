/* Reader of JSON that says one thing only, as shmserve/strict_json.py: UTF-8, no key twice, 64-bit integers, finite
 * numbers, whole characters, bounded depth. Both are fuzzed with the same inputs.
 *
 * The values of a text are kept one after another: a container, then what is in it; of an object each key before its
 * value.
 */

#ifndef SHMSERVE_LIB_JSON_H
#define SHMSERVE_LIB_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_DEPTH_LIMIT = 32 };
enum json_type { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_INTEGER, JSON_DOUBLE, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

typedef struct {
    uint8_t type;
    bool is_negative; /* of an integer */
    uint32_t next;    /* index of the value behind this one and all that is in it */
    uint32_t count;   /* items of an array, members of an object */
    uint32_t at,
        bytes; /* of a string: in `text`, decoded, followed by NUL; of others where the value lies in the source */
    uint64_t number; /* of an integer: its magnitude; of a string: a hash */
} JsonValue;

/* A text that was read. With `is_fixed` the memory is the caller's, and nothing is allocated. */
typedef struct {
    JsonValue *values;
    char *text;
    uint32_t count, room;
    size_t text_bytes, text_room;
    bool is_fixed;
} Json;

/* Read an object; false for what is none, or without memory. `source` stays the caller's. */
bool json_read(Json *json, const char *source, size_t bytes);
void json_free(Json *json);

/* The value of a member of an object, or NULL: `object` may be NULL, or something else. */
const JsonValue *json_member(const Json *json, const JsonValue *object, const char *name);

/* The text of a string value; NULL if it is none, or has a NUL in it. */
const char *json_text(const Json *json, const JsonValue *value);

/* A whole number from 0 on. */
bool json_word(const JsonValue *value, uint64_t *number);

static inline bool json_is(const JsonValue *value, enum json_type type) { return value != NULL && value->type == type; }
static inline bool json_is_bool(const JsonValue *value)
{
    return value != NULL && (value->type == JSON_TRUE || value->type == JSON_FALSE);
}

/* A text as the content of a JSON string, into `to`; what it takes, or 0 if there is too little room. */
size_t json_escape(char *to, size_t room, const char *text);

#endif
